"""What is known of a model before its weights are read: configuration, size, tokenizer. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sash import hub
from sash.errors import ModelNotFoundError, UsageError
from sash.explain.presets import PRESETS
from sash.network.config import ModelConfig

if TYPE_CHECKING:
    from sash.checkpoint.source import Checkpoint
    from sash.network.encoder_config import EncoderConfig
    from sash.text.tokenizer import Tokenizer

Dtype = Literal["float32", "float16", "bfloat16"]

ITEMSIZE: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number."""

_SHORT: dict[Dtype, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model by its files' tables, or by a preset, which has no files.

    Attributes:
        name: as the user wrote it.
        path: its folder or file; None for a preset.
        config: the network.
        dtype: what it is loaded in on a CPU unless told otherwise.
    """

    name: str
    path: Path | None
    config: ModelConfig | EncoderConfig
    dtype: Dtype

    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer.

        Raises:
            UsageError: a preset has none.
            TokenizerError: it is missing or broken.
        """
        if self.path is None:
            raise UsageError(f"{self.name} is known by its figures only and has no tokenizer: name a model with files")
        return open_tokenizer(self.path)


def look_up(name: str) -> KnownModel:
    """A model by name or path; where there is none of that name, a preset.

    Raises:
        ModelNotFoundError: neither a model that is here nor a preset.
        CheckpointError, ConfigError: its files are broken or not understood.
    """
    from sash.checkpoint.description import read_description
    from sash.checkpoint.source import open_checkpoint

    try:
        path = hub.resolve(name)
    except ModelNotFoundError:
        if name in PRESETS:
            return KnownModel(name=name, path=None, config=PRESETS[name], dtype="bfloat16")
        raise
    with open_checkpoint(path) as checkpoint:
        description = read_description(checkpoint)
        return KnownModel(name=name, path=path, config=description.config, dtype=usual_dtype(checkpoint))


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder or GGUF file; a folder may hold the tokenizer's files only."""
    from sash.checkpoint.companions import tokenizer_of
    from sash.checkpoint.header import FILE
    from sash.checkpoint.source import open_checkpoint
    from sash.text.opening import from_folder

    whole = not path.is_dir() or (path / FILE).is_file() or any(path.glob("*.[gG][gG][uU][fF]"))
    if not whole:
        return from_folder(path)
    with open_checkpoint(path) as checkpoint:
        return tokenizer_of(checkpoint)


def usual_dtype(checkpoint: Checkpoint) -> Dtype:
    """What a CPU computes in by default: float32 where most of the checkpoint is stored so, else bfloat16."""
    return "float32" if checkpoint.main_dtype_name == "F32" else "bfloat16"


def parse_dtype(text: str | None, default: Dtype) -> Dtype:
    """A dtype by its name, long or short; None and "auto" give the default.

    Raises:
        UsageError: no such dtype.

    >>> parse_dtype("bf16", "float32"), parse_dtype(None, "float32")
    ('bfloat16', 'float32')
    """
    if text is None or text == "auto":
        return default
    for name, short in _SHORT.items():
        if text in (name, short):
            return name
    raise UsageError(f"--dtype {text!r} is not known: use auto, {', '.join(ITEMSIZE)}")
