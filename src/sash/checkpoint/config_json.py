"""A `ModelConfig` as JSON and back. What comes back was checked field by field; needs no torch.

The fields of the dataclasses are the format: a field more or less, a value of another type, or one that the dataclass
refuses, and the file is refused.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sash.checkpoint.stored import quoted
from sash.errors import ConfigError, SashError
from sash.families.reading import MAX_EXPERTS, MAX_LAYERS, MAX_POSITIONS
from sash.network.config import ModelConfig, MoEConfig

MAX_ITEMS = 1 << 16
MAX_FLOAT = 1e30
MAX_TEXT = 1000


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """Plain values, every field by its name."""
    return asdict(config)


def config_from_json(value: object) -> ModelConfig:
    """The configuration that `config_to_json` made plain.

    Raises:
        ConfigError: it is not such an object, or not a configuration that can be.
    """
    config: ModelConfig = read_typed(ModelConfig, value, "config")
    if config.n_layers > MAX_LAYERS:
        raise ConfigError(f"config.layers has {config.n_layers} layers: at most {MAX_LAYERS} are read")
    if sum(_experts(layer.moe) for layer in config.layers) > MAX_EXPERTS:
        raise ConfigError(f"config.layers has more than {MAX_EXPERTS} experts")
    return config


def _experts(moe: MoEConfig | None) -> int:
    """Experts of a mixture, mixtures within mixtures multiplied out."""
    return 0 if moe is None else moe.n_experts * max(1, _experts(moe.expert))


def read_typed(kind: Any, value: object, where: str) -> Any:
    """A value of JSON as the type that a field is annotated with: a dataclass, tuple, union, literal or plain type.

    Args:
        kind: the type.
        value: as parsed; not trusted.
        where: names the value in errors.

    Raises:
        ConfigError: it is of another type, or the dataclass refuses it.
    """
    if is_dataclass(kind):
        return _read_fields(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in inner):
            raise ConfigError(f"{where} is {_shown(value)}: {', '.join(map(repr, inner))} can be")
        return value
    if origin in (Union, types.UnionType):
        return _read_either(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) > MAX_ITEMS:
            raise ConfigError(f"{where} must be a list of at most {MAX_ITEMS} values")
        return tuple(read_typed(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    return _read_plain(kind, value, where)


def _read_fields(kind: Any, value: object, where: str) -> Any:
    names = {field.name for field in fields(kind)}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{where} must be an object with named values")
    odd = sorted(names ^ set(value))
    if odd:
        wrong = "is not known" if odd[0] in value else "is missing"
        raise ConfigError(f"{where}.{quoted(odd[0])[1:-1]} {wrong}: this version of Sash writes other files")
    hints = _hints(kind)
    given = {name: read_typed(hints[name], value[name], f"{where}.{name}") for name in sorted(names)}
    try:
        return kind(**given)
    except SashError as error:
        raise ConfigError(f"{where}: {error}") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_either(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    """A value of one of several types; None is one of them where the field may be empty."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return read_typed(kind, value, where)
        except ConfigError:
            continue
    return read_typed(others[-1], value, where)


def _read_plain(kind: Any, value: object, where: str) -> Any:
    plain = {
        int: type(value) is int and abs(value) <= MAX_POSITIONS,
        float: type(value) in (int, float) and abs(value) <= MAX_FLOAT,  # type: ignore[arg-type]
        str: isinstance(value, str) and len(value) <= MAX_TEXT,
        bool: isinstance(value, bool),
    }
    if not plain[kind]:
        raise ConfigError(f"{where} must be of the type {kind.__name__} and of a size that can be; got {_shown(value)}")
    return kind(value)


def _shown(value: object) -> str:
    """A value of an untrusted file, short and safe to show."""
    return quoted(repr(value))[1:-1]
