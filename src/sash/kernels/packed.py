"""A weight in the kernels' layout, and what it stands for.

Shape suffixes: K inputs, R chosen outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.kernels import layout
from sash.kernels.activations import MAX_ROTATION, rotate

Kind = Literal["bf16", "int8", "int4"]

GROUPS = (32, 64)
"""Inputs that may share an int4 scale."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight of n outputs and k inputs in the kernels' layout (see `sash.kernels.layout`).

    Attributes:
        kind: what its values are.
        n, k: outputs and inputs, before padding.
        data: the values: bfloat16, int8, or uint8 for int4.
        scale: int8: float32 [padded outputs]; int4: float16 [tiles, groups, 16]; None for bf16.
        minimum: float16 of the shape of an int4 scale, or None: a value is scale * q + minimum.
        group: inputs that share an int4 scale, 32 or 64; 0 for the other kinds.
        rotation: inputs that `rotate` mixes before they meet an int8 weight, which is stored rotated; 1 for none.
    """

    kind: Kind
    n: int
    k: int
    data: Tensor
    scale: Tensor | None = None
    minimum: Tensor | None = None
    group: int = 0
    rotation: int = 1

    def __post_init__(self) -> None:
        check_form(self.kind, self.n, self.k, self.group, self.rotation)
        wanted = part_forms(self.kind, self.n, self.k, self.group, minimum=self.minimum is not None)
        for name in ("data", "scale", "minimum"):
            tensor = getattr(self, name)
            if tensor is None and name not in wanted:
                continue
            if tensor is None or name not in wanted:
                raise UsageError(f"a packed {self.kind} weight has {' and '.join(wanted)}: see {name}")
            dtype, shape = wanted[name]
            if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
                raise UsageError(
                    f"{name} of a packed {self.kind} weight of {self.n} x {self.k} is {dtype} {list(shape)}, "
                    f"contiguous; got {tensor.dtype} {list(tensor.shape)}"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def tiles(self) -> int:
        """Tiles of 16 outputs."""
        return self.data.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name: data, and scale and minimum where it has them."""
        named = {"data": self.data, "scale": self.scale, "minimum": self.minimum}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def check_form(kind: str, n: int, k: int, group: int, rotation: int) -> None:
    """Check the numbers that say how a weight is packed.

    Raises:
        UsageError: they contradict each other.
    """
    if kind not in ("bf16", "int8", "int4"):
        raise UsageError(f"weights are packed as bf16, int8 or int4; got {kind!r}")
    if n < 1 or k < 1:
        raise UsageError(f"a weight has 1 or more outputs and inputs; got {n} and {k}")
    if kind == "int4" and group not in GROUPS:
        raise UsageError(f"{' or '.join(map(str, GROUPS))} inputs share an int4 scale; got {group}")
    if kind != "int4" and group:
        raise UsageError(f"only int4 weights have groups; got one of {group} for {kind}")
    if rotation < 1 or rotation > MAX_ROTATION or rotation & (rotation - 1) or k % rotation:
        raise UsageError(f"a rotation mixes a power of two of inputs that divides {k}, at most 256; got {rotation}")
    if rotation > 1 and kind != "int8":
        raise UsageError(f"only int8 weights are rotated; got a rotation of {rotation} for {kind}")


def part_forms(
    kind: Kind, n: int, k: int, group: int = 0, *, minimum: bool = False
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of a packed weight; see `PackedWeight`.

    >>> part_forms("int4", 100, 64, 32)["scale"]
    (torch.float16, (7, 2, 16))
    """
    padded_n, padded_k = layout.padded(n, k)
    tiles = padded_n // layout.TILE
    if kind == "bf16":
        return {"data": (torch.bfloat16, (tiles, padded_k // 32, 16, 16, 2))}
    if kind == "int8":
        return {"data": (torch.int8, (tiles, padded_k // 64, 16, 16, 4)), "scale": (torch.float32, (padded_n,))}
    groups = (torch.float16, (tiles, padded_k // group, 16))
    forms = {"data": (torch.uint8, (tiles, padded_k // 64, 8, 64)), "scale": groups}
    return forms | {"minimum": groups} if minimum else forms


def packed_nbytes(kind: Kind, n: int, k: int, group: int = 0, *, minimum: bool = False) -> int:
    """Bytes of a packed weight.

    >>> packed_nbytes("int4", 4096, 4096, 64) / (4096 * 4096)
    0.53125
    """
    forms = part_forms(kind, n, k, group, minimum=minimum).values()
    return sum(dtype.itemsize * prod(shape) for dtype, shape in forms)


def dequantize(weight: PackedWeight) -> Tensor:
    """The weight that the packed values stand for, with any rotation undone: float32 [n, k]."""
    return rows(weight, torch.arange(weight.n, device=weight.data.device))


def rows(weight: PackedWeight, rows_R: Tensor) -> Tensor:
    """Some rows of the weight that the packed values stand for, any rotation undone: float32 [R, k].

    Args:
        weight: packed.
        rows_R: which, int64, below n.
    """
    values_RK = layout.rows_of(weight.data, rows_R, weight.k).float()
    if weight.kind == "int8":
        return rotate(values_RK * present(weight.scale)[rows_R, None], weight.rotation)
    if weight.kind == "int4":
        tile, lane = rows_R // layout.TILE, rows_R % layout.TILE
        scale_RK = present(weight.scale)[tile, :, lane].float().repeat_interleave(weight.group, 1)[:, : weight.k]
        values_RK = values_RK * scale_RK
        if weight.minimum is not None:
            values_RK += weight.minimum[tile, :, lane].float().repeat_interleave(weight.group, 1)[:, : weight.k]
    return values_RK


def present(scale: Tensor | None) -> Tensor:
    """The scales of a weight of integers, which `PackedWeight` has checked that it has."""
    if scale is None:
        raise UsageError("a packed weight of integers needs its scales")
    return scale
