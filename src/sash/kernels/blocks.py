"""Rows of ggml's quantised blocks straight into packed tensors, without floats of more than a row.

What comes out is, bit for bit, what `sash.quantize.Packer` makes of the floats or levels that `sash.checkpoint` reads
from the same blocks.

Shape suffixes: N rows of a slice, B bytes a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sash.errors import CheckpointError, UsageError
from sash.kernels import layout, native
from sash.kernels.packed import PackedForm

_NUMBERS = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
}  # fmt: skip
_LEVELS = frozenset({"Q4_0", "Q4_1", "Q4_K"})


def serves(kind: str, form: PackedForm) -> bool:
    """Whether rows stored as `kind` are packed natively: any of them as int8, those of 4 bits as they are."""
    if not native.available() or kind not in _NUMBERS:
        return False
    return form.kind == "int8" or (form.kind == "int4" and form.group == 32 and kind in _LEVELS)


def pack(raw_NB: Tensor, kind: str, form: PackedForm, tensors: Mapping[str, Tensor], *, tile: int, step: int) -> None:
    """Pack rows into every `step`-th tile from `tile` on; the last tile's other rows become zeros.

    Args:
        raw_NB: uint8, whole rows of blocks.
        kind: ggml's name of the storage type; `serves` has said that it is packed.
        form: of the weight that the tiles belong to.
        tensors: its tensors, as `PackedForm.tensors` names them.
        tile, step: where the rows go.

    Raises:
        CheckpointError: values, for int8, or float16 scales and minima, for int4, that are not finite.
        UsageError: rows or tiles that cannot be.
    """
    if not serves(kind, form) or raw_NB.dtype != torch.uint8 or raw_NB.dim() != 2:
        raise UsageError(f"rows of {kind} in {raw_NB.dtype} are not packed natively as {form.kind}")
    last = tile + (-(-len(raw_NB) // layout.TILE) - 1) * step
    if step < 1 or not 0 <= tile <= last < form.tensors()["data"][1][0]:
        raise UsageError(f"tiles {tile} to {last} are not in a weight of {form.n} outputs")
    if raw_NB.shape[1] != native.module().block_row_bytes(_NUMBERS[kind], form.k):
        raise UsageError(f"a row of {form.k} values of {kind} is not of {raw_NB.shape[1]} bytes")
    for name, (dtype, shape) in form.tensors().items():
        if tensors[name].dtype != dtype or tuple(tensors[name].shape) != shape:
            raise UsageError(f"{name} of a packed {form.kind} weight is {dtype} {list(shape)}")
    data, scale, minimum = (tensors.get(name) for name in ("data", "scale", "minimum"))
    at, scale_at, minimum_at = (_tile_address(part, tile) for part in (data, scale, minimum))
    scales = (scale_at, 0) if form.kind == "int8" else (0, scale_at)
    rows = (native.address(raw_NB), len(raw_NB), form.k)
    if not native.module().pack_blocks(_NUMBERS[kind], *rows, form.rotation, at, *scales, minimum_at, step):
        if form.kind == "int4":
            raise CheckpointError("a weight has values that are not finite, or too large for int4: use int8 weights")
        raise CheckpointError("a weight has values that are not finite: the checkpoint is broken, download it again")


def _tile_address(part: Tensor | None, tile: int) -> int:
    """Where a tile of a packed tensor begins; the scales of int8 weights are a flat list of outputs."""
    if part is None:
        return 0
    tiles = len(part) // layout.TILE if part.dim() == 1 else len(part)
    return native.address(part) + part.nbytes // tiles * tile
