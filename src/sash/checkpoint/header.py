"""`sash.json`: what a quantised folder says of itself. Needs no torch.

A folder of packed weights holds `sash.json`, `model.safetensors` with the parts of `sash.network.parts` in the layout
of `sash.kernels.layout`, the files of the tokenizer, and the licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sash.checkpoint.config_json import config_from_json, config_to_json, read_typed
from sash.checkpoint.json_object import read_object
from sash.errors import CheckpointError, ConfigError, UnsupportedError
from sash.network.config import ModelConfig
from sash.network.parts import Weights

FILE = "sash.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "sash-quantized"
VERSION = 1

MAX_BYTES = 16 * 2**20
MAX_VALUES = 1_000_000
MAX_PARTS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a folder was made from.

    Attributes:
        name: the model's name, as it was given; for people.
        tensors_sha256: of the names, types and shapes of its tensors.
        licence: name of its licence; None where nothing says.
        tokenizer: where the tokenizer is: "gguf" in tokenizer.gguf, "mistral" in a tokenizer.model of Mistral's,
            "folder" in files with names that say what they are.
    """

    name: str
    tensors_sha256: str
    licence: str | None
    tokenizer: Literal["gguf", "mistral", "folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The contents of `sash.json`.

    Attributes:
        weights: what was asked for: "int8" or "int4".
        origin: what it was made from.
        config: the network.
        parts: how each packed part is packed, the fields of `PackedForm`; not checked here.
    """

    weights: Weights
    origin: Origin
    config: ModelConfig
    parts: Mapping[str, object]

    def to_json(self) -> dict[str, Any]:
        """Plain values, the format and its version included."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "weights": self.weights,
            "origin": asdict(self.origin),
            "config": config_to_json(self.config),
            "parts": dict(self.parts),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Header:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: it is no such object.
            ConfigError: a configuration that cannot be.
            UnsupportedError: a later version.
        """
        if value.get("format") != FORMAT:
            raise CheckpointError(
                f"{FILE} does not say that it is of the format {FORMAT}: it belongs to something else"
            )
        version = value.get("version")
        if type(version) is not int or version < 1:
            raise CheckpointError(f"{FILE} does not say which version of its format it is")
        if version != VERSION:
            raise UnsupportedError(f"{FILE} is of version {version}, and version {VERSION} is read: update Sash")
        names = {"format", "version", "weights", "origin", "config", "parts"}
        odd = sorted(names ^ set(value))
        if odd:
            raise CheckpointError(f"{FILE} has {'an unknown' if odd[0] in value else 'no'} {odd[0][:80]!a}")
        parts = value["parts"]
        if not isinstance(parts, Mapping) or len(parts) > MAX_PARTS:
            raise CheckpointError(f"the parts of {FILE} must be an object of at most {MAX_PARTS} values")
        try:
            weights = read_typed(Weights, value["weights"], "weights")
            origin = read_typed(Origin, value["origin"], "origin")
        except ConfigError as error:
            raise CheckpointError(f"{FILE} is broken: {error}") from error
        return cls(weights=weights, origin=origin, config=config_from_json(value["config"]), parts=parts)


def read_header(folder: Path) -> Mapping[str, object]:
    """`sash.json` of a folder, parsed but not checked; see `Header.from_json`.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    return read_object(folder / FILE, max_bytes=MAX_BYTES, max_values=MAX_VALUES)


def storage_sizes(config: Mapping[str, object]) -> dict[str, int]:
    """How many values of a quantised folder's packed parts are stored as what, by a `sash.json` as parsed.

    Raises:
        CheckpointError: a part that is not described.
    """
    sizes: dict[str, int] = {}
    for name, form in Header.from_json(config).parts.items():
        kind, n, k = (form.get(key) if isinstance(form, Mapping) else None for key in ("kind", "n", "k"))
        if not isinstance(kind, str) or type(n) is not int or type(k) is not int or min(n, k) < 1:
            raise CheckpointError(f"{FILE} does not say how {name[:80]!a} is packed")
        sizes[kind[:20]] = sizes.get(kind[:20], 0) + n * k
    return sizes
