"""A checkpoint's weights as packed parts, made tensor by tensor and slice by slice: no float copy of the model is made.

Where `int4` is asked for, these weights take 4 bits: all whose source is a float type or has at most 5 bits a value.
Weights of a mixed GGUF file that were given more are kept at 8, for that is how good the file is; so are the embedding
and the output head, which suffer most, unless the file itself has them in 4. ggml's own blocks of 4 bits are kept as
they are; everything else is rotated and rounded anew. A part of several weights is packed in one way, the finer one.

Shape suffixes: N rows of a slice, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from math import prod
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sash.checkpoint.four_bits import FOUR_BITS, GROUP, WITH_MINIMA, levels
from sash.checkpoint.ggml_types import BY_NAME
from sash.checkpoint.source import Checkpoint
from sash.errors import CheckpointError, UnsupportedError, UsageError
from sash.families import Description
from sash.families.description import parse_slice
from sash.kernels import blocks
from sash.kernels.activations import rotation_of
from sash.kernels.layout import TILE
from sash.kernels.packed import GROUPS, PackedForm, PackedWeight
from sash.network.parts import Part, Weights, parts_of
from sash.network.shapes import parameter_shapes
from sash.quantize import Packer, fuse_rows, interleave_tiles, padded_rows

USUAL_GROUP = 64
"""Inputs that share an int4 scale, where the source does not say."""

_MOST_BITS = 5.0
_SLICE_VALUES = 1 << 18
_STRAIGHT_VALUES = 1 << 22
"""What is read at once for the threads to share where no floats are made of it: some 2 to 4 MiB."""

_TABLES = frozenset({"tok_embeddings", "output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows of a stored tensor: a whole matrix, or an expert's part of one.

    Attributes:
        checkpoint: open.
        name: the tensor's, in the checkpoint.
        first, n: the rows, all dimensions but the last counted as one.
        k: values a row.
    """

    checkpoint: Checkpoint
    name: str
    first: int
    n: int
    k: int

    @property
    def kind(self) -> str:
        """Storage type: "BF16", "Q4_K"."""
        return self.checkpoint.dtype_name(self.name)

    @property
    def bits(self) -> float | None:
        """Bits a value where it is quantised, scales included; None where it is not."""
        stored = BY_NAME.get(self.kind)
        return None if stored is None or stored.block == 1 else 8 * stored.nbytes / stored.block

    def floats(self, first: int, count: int) -> Tensor:
        """Some of the rows, float32 [count, k]."""
        return self.checkpoint.read_rows(self.name, self.first + first, count)

    def slices(self, n_values: int) -> Iterator[tuple[int, int]]:
        """The rows in slices of whole tiles and about so many values: first row and count."""
        step = max(1, n_values // (TILE * self.k)) * TILE
        for first in range(0, self.n, step):
            yield first, min(step, self.n - first)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPlan:
    """How a part is made.

    Attributes:
        name, part: which.
        sources: what it is made of, in order.
        form: how it is packed; None where it is not.
    """

    name: str
    part: Part
    sources: tuple[Source, ...]
    form: PackedForm | None

    @property
    def n_values(self) -> int:
        """Values to read."""
        return sum(source.n * source.k for source in self.sources)

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of its tensors by their whole names."""
        if self.form is None:
            return {self.name: (torch.float32, self.part.shape)}
        return {f"{self.name}.{name}": form for name, form in self.form.tensors().items()}

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.tensors().values())

    def make(self) -> PackedWeight | Tensor:
        """Read and pack it.

        Raises:
            CheckpointError: values that are not finite, or a file that changed.
        """
        try:
            if self.form is None:
                return self._plain()
            if all(blocks.serves(source.kind, self.form) for source in self.sources):
                return self._straight(self.form)
            pieces = [_pack(source, self.form) for source in self.sources]
        except CheckpointError as error:
            raise CheckpointError(f"{self.name}: {error}") from error
        if len(pieces) == 1:
            return pieces[0]
        return interleave_tiles(*pieces) if self.part.join == "tiles" else fuse_rows(pieces)

    def _straight(self, form: PackedForm) -> PackedWeight:
        """Blocks natively into the tiles that they have in the joined part: the same bits as by way of pieces."""
        tensors = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in form.tensors().items()}
        in_turn = self.part.join == "tiles"
        begins, step = 0, len(self.sources) if in_turn else 1
        for source in self.sources:
            for first, count in source.slices(_STRAIGHT_VALUES):
                raw_NB = source.checkpoint.read_row_bytes(source.name, source.first + first, count)
                tile = begins + first // TILE * step
                blocks.pack(raw_NB, source.kind, form, tensors, tile=tile, step=step)
            begins += 1 if in_turn else padded_rows(source.n) // TILE
        return PackedWeight.of(form, tensors)

    def _plain(self) -> Tensor:
        if len(self.sources) == 1:
            return self.sources[0].floats(0, self.sources[0].n).view(self.part.shape)
        pieces = [source.floats(0, source.n).view(-1) for source in self.sources]
        return torch.cat([F.pad(piece, (0, padded_rows(len(piece)) - len(piece))) for piece in pieces])


def packed_parts(
    checkpoint: Checkpoint, description: Description, weights: Weights, group: int | None = None
) -> dict[str, PackedWeight | Tensor]:
    """All parts of a decoder, see `sash.network.parts`, packed from any checkpoint.

    Args:
        checkpoint: open; it may be closed afterwards.
        description: what it holds.
        weights: what they are packed as; for int4 see the top of this module.
        group: inputs that share an int4 scale or multiplier; None for what the source has, else 64.

    Raises:
        CheckpointError: a tensor is missing, of another shape than the configuration says, or holds no finite numbers.
        UsageError: `weights` or `group` cannot be.
    """
    return {plan.name: plan.make() for plan in plan_parts(checkpoint, description, weights, group)}


def plan_parts(
    checkpoint: Checkpoint, description: Description, weights: Weights, group: int | None = None
) -> list[PartPlan]:
    """How every part would be made, without reading any values; see `packed_parts`.

    Raises:
        UsageError: weights or a group that cannot be.
        UnsupportedError: a parameter that is not both in the network and in the table of its family.
    """
    if weights not in get_args(Weights):
        raise UsageError(f"weights are packed as {', '.join(get_args(Weights))}; got {weights!r}")
    if group is not None and group not in GROUPS:
        raise UsageError(f"{' or '.join(map(str, GROUPS))} inputs share an int4 scale; got {group}")
    if group is not None and weights != "int4":
        raise UsageError(f"a group is for int4 weights, and {weights} was asked for")
    config = description.decoder
    odd = sorted(set(parameter_shapes(config)) ^ set(description.weights))
    if odd:
        raise UnsupportedError(f"parameter {odd[0]} is in the network or in the family's table, but not in both")
    plans = []
    for name, part in parts_of(config).items():
        sources = tuple(
            _source(checkpoint, description.weights[ours], (rows, part.k) if part.k else (rows,))
            for ours, rows in zip(part.sources, part.rows, strict=True)
        )
        form = None if part.join == "plain" else _form(name, part, sources, weights, group)
        plans.append(PartPlan(name=name, part=part, sources=sources, form=form))
    return plans


def source_digest(checkpoint: Checkpoint) -> str:
    """What tells a checkpoint from others without reading it: SHA-256 over its tensors' names, types and shapes."""
    lines = (f"{name}\t{checkpoint.dtype_name(name)}\t{checkpoint.shape(name)}" for name in sorted(checkpoint.names()))
    return sha256("\n".join(lines).encode()).hexdigest()


def _source(checkpoint: Checkpoint, weight: str, shape: tuple[int, ...]) -> Source:
    """The rows that a value of `Description.weights` names, checked against the shape that they should have."""
    part = parse_slice(weight)
    stored, first = checkpoint.shape(part.name), 0
    for index in part.index:
        if isinstance(index, int) and len(stored) > 1 and index < stored[0]:
            stored = stored[1:]
            first += index * prod(stored[:-1])
        elif isinstance(index, slice) and len(stored) > 1 and index.stop <= stored[0]:
            stored = (index.stop - index.start, *stored[1:])
            first += index.start * prod(stored[1:-1])
        else:
            raise CheckpointError(f"tensor {part.name} is {list(stored)}, so there is no {weight} in it")
    if stored != shape:
        raise CheckpointError(
            f"tensor {weight} is {list(stored)}, but the configuration makes it {list(shape)}: "
            "configuration and weights are not of one model"
        )
    n, k = shape if len(shape) == 2 else (1, shape[0])
    return Source(checkpoint=checkpoint, name=part.name, first=first, n=n, k=k)


def _form(name: str, part: Part, sources: tuple[Source, ...], weights: Weights, group: int | None) -> PackedForm:
    """How to pack a part."""
    if weights == "bf16":
        return PackedForm(kind="bf16", n=part.n, k=part.k)
    kinds, rotation = {source.kind for source in sources}, rotation_of(part.k)
    fine = any(source.bits is not None and source.bits > _MOST_BITS for source in sources)
    as_it_is = kinds <= FOUR_BITS and group in (None, GROUP)
    if weights == "int8" or fine or (name in _TABLES and not as_it_is):
        return PackedForm(kind="int8", n=part.n, k=part.k, rotation=rotation)
    if as_it_is:
        return PackedForm(kind="int4", n=part.n, k=part.k, group=GROUP, minimum=bool(kinds & WITH_MINIMA))
    return PackedForm(kind="int4m", n=part.n, k=part.k, group=group or USUAL_GROUP, rotation=rotation)


def _pack(source: Source, form: PackedForm) -> PackedWeight:
    """One of a part's weights."""
    packer = Packer(replace(form, n=source.n))
    for first, count in source.slices(_SLICE_VALUES):
        if form.kind == "int4":
            raw = source.checkpoint.read_row_bytes(source.name, source.first + first, count)
            packer.add_levels(*levels(raw, source.kind))
        else:
            packer.add(source.floats(first, count))
    return packer.done()
