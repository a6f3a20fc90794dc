"""Families are data: each file maps a checkpoint's configuration and tensor names onto ours, and nothing else.

To add one, write a module with a function `Source -> Description` and name it in the tables below. Nothing downstream
asks which family a model is of.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from sash.errors import ConfigError
from sash.families.description import Description, Source, TensorSlice, parse_slice
from sash.families.reading import ConfigReader

__all__ = ["Description", "Kind", "Source", "TensorSlice", "describe", "parse_slice"]

Kind = Literal["huggingface", "mistral", "gguf"]

FAMILIES: Mapping[Kind, Mapping[str, str]] = {
    "huggingface": {
        "gemma3": "gemma3",
        "gemma3_text": "gemma3",
        "llama": "llama",
        "longformer": "longformer",
        "ministral": "mistral",
        "mistral": "mistral",
        "mixtral": "mixtral",
        "qwen2": "qwen2",
    },
    "mistral": {"transformer": "mistral"},
    "gguf": {"gemma3": "gemma3", "llama": "llama", "qwen2": "qwen2"},
}
"""Layout -> what the file calls its architecture -> the module of this package whose `from_<layout>` reads it."""

ARCHITECTURE_KEY: Mapping[Kind, tuple[str, str]] = {
    "huggingface": ("config.json", "model_type"),
    "mistral": ("params.json", "model_type"),
    "gguf": ("GGUF metadata", "general.architecture"),
}


def describe(
    kind: Kind,
    config: Mapping[str, object],
    names: frozenset[str] = frozenset(),
    read_vector: Callable[[str], Sequence[float]] | None = None,
) -> Description:
    """What a checkpoint is, in our terms.

    Args:
        kind: the layout of the files.
        config: config.json, params.json or the metadata of a GGUF file, as parsed; not trusted.
        names: the tensors that there are. Each must then be mapped, or known to be unneeded; without them the usual
            names are assumed and nothing is checked.
        read_vector: reads a one-dimensional tensor by name; needed for GGUF files with frequency divisors.

    Raises:
        ConfigError: an unknown architecture, a value out of range, or a key or tensor that could change the result and
            is not understood.
        CheckpointError: a tensor is missing.
        UsageError: a vector must be read, and `read_vector` is not given.
    """
    file, key = ARCHITECTURE_KEY[kind]
    given = ConfigReader(config, file)
    families = FAMILIES[kind]
    name = given.text(key, families, "transformer") if kind == "mistral" else given.text(key, families)
    module = importlib.import_module(f"sash.families.{families[name]}")
    read: Callable[[Source], Description] = getattr(module, f"from_{kind}")
    try:
        return read(Source(config, names, read_vector))
    except (OverflowError, ZeroDivisionError) as error:
        raise ConfigError(f"{file}: values that no model can have together ({error})") from error
