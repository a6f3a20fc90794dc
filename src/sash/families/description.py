"""What a family says about a checkpoint, and what it is told."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sash.errors import CheckpointError, ConfigError, UnsupportedError
from sash.network.config import ModelConfig
from sash.network.encoder_config import EncoderConfig

logger = logging.getLogger("sash.families")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint as a family sees it.

    Attributes:
        config: config.json, params.json or the metadata of a GGUF file, as parsed; not trusted.
        names: the tensors of the checkpoint; empty where only the configuration is at hand, and then nothing about
            tensors is checked and the usual names are assumed.
        read_vector: reads a one-dimensional tensor; None where tensors are not at hand.
    """

    config: Mapping[str, object]
    names: frozenset[str] = frozenset()
    read_vector: Callable[[str], Sequence[float]] | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """A checkpoint in our terms.

    Attributes:
        config: a `ModelConfig` for a decoder, an `EncoderConfig` for an encoder.
        weights: our parameter names -> the checkpoint's. A value may name a part of a tensor, see `parse_slice`.
        ignored: tensors of the checkpoint that are known to be unneeded.
    """

    config: ModelConfig | EncoderConfig
    weights: Mapping[str, str]
    ignored: frozenset[str] = field(default=frozenset())

    @property
    def decoder(self) -> ModelConfig:
        """The configuration, where the checkpoint is a decoder.

        Raises:
            UnsupportedError: it is an encoder, which can't write text.
        """
        if not isinstance(self.config, ModelConfig):
            raise UnsupportedError(
                f"{self.config.architecture} is an encoder: it reads text and fills masks, but can't write on"
            )
        return self.config


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A tensor, or a part of it: `index` is what to index it with, outermost dimension first."""

    name: str
    index: tuple[int | slice, ...] = ()


_SLICE = re.compile(r"(?P<name>[^\[\]]+)\[(?P<expert>\d{1,6})(?:, (?P<start>\d{1,9}):(?P<stop>\d{1,9}))?\]")


def parse_slice(weight: str) -> TensorSlice:
    """The tensor and the part of it that a value of `Description.weights` names, in NumPy's notation.

    Checkpoints that fuse the experts of a layer into one tensor need it: "name[3]" is expert 3, "name[3, 0:14336]"
    the first 14,336 rows of expert 3. Dimensions count from the outermost; for GGUF, whose files list them the other
    way round, that is the last listed.

    >>> parse_slice("norm.weight")
    TensorSlice(name='norm.weight', index=())
    >>> parse_slice("blk.0.ffn_gate_exps.weight[3]").index
    (3,)
    >>> parse_slice("gate_up_proj[3, 0:8]").index
    (3, slice(0, 8, None))
    """
    match = _SLICE.fullmatch(weight)
    if match is None:
        return TensorSlice(weight)
    index: tuple[int | slice, ...] = (int(match["expert"]),)
    if match["start"] is not None:
        index += (slice(int(match["start"]), int(match["stop"])),)
    return TensorSlice(match["name"], index)


def account(weights: Mapping[str, str], names: frozenset[str], unneeded: Iterable[str] = ()) -> frozenset[str]:
    """Account for every tensor of a checkpoint, and give those that are known to be unneeded.

    Args:
        weights: as in `Description`.
        names: the tensors that there are; empty where that is not known, and then nothing is checked.
        unneeded: regular expressions of names that do not matter.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: a tensor is left that nobody uses, so the model would compute something else.
    """
    if not names:
        return frozenset()
    wanted = {parse_slice(weight).name for weight in weights.values()}
    missing = sorted(wanted - names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"tensor {missing[0]}{more} is missing: the checkpoint is incomplete, fetch it again")
    pattern = re.compile("|".join(f"(?:{part})" for part in unneeded) or r"(?!)")
    spare = names - wanted
    unknown = sorted(name for name in spare if not pattern.fullmatch(name))
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ConfigError(f"tensor {unknown[0][:80]} is not understood and could change the result{more}")
    return spare
