"""A weight in the kernels' layout, and what it stands for.

Shape suffixes: K inputs, R chosen outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedForm:
    """How a weight is packed: all about it but its values.

    Attributes:
        kind: what its values are.
        n, k: outputs and inputs, before padding.
        group: inputs that share an int4 scale, 32 or 64; 0 for the other kinds.
        minimum: whether each int4 group has a minimum beside its scale.
        rotation: inputs that `rotate` mixes before they meet an int8 weight, which is stored rotated; 1 for none.

    Raises:
        UsageError: they contradict each other.
    """

    kind: Kind
    n: int
    k: int
    group: int = 0
    minimum: bool = False
    rotation: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("bf16", "int8", "int4"):
            raise UsageError(f"weights are packed as bf16, int8 or int4; got {self.kind!r}")
        if self.n < 1 or self.k < 1:
            raise UsageError(f"a weight has 1 or more outputs and inputs; got {self.n} and {self.k}")
        if self.kind == "int4" and self.group not in GROUPS:
            raise UsageError(f"{' or '.join(map(str, GROUPS))} inputs share an int4 scale; got {self.group}")
        if self.kind != "int4" and (self.group or self.minimum):
            raise UsageError(f"only int4 weights have groups and minima; got a group of {self.group} for {self.kind}")
        block = self.rotation
        if not 1 <= block <= MAX_ROTATION or block & (block - 1) or self.k % block:
            raise UsageError(
                f"a rotation mixes a power of two of inputs that divides {self.k}, up to 256; got {block}"
            )
        if block > 1 and self.kind != "int8":
            raise UsageError(f"only int8 weights are rotated; got a rotation of {block} for {self.kind}")

    def tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each tensor.

        >>> PackedForm(kind="int4", n=100, k=64, group=32).tensors()["scale"]
        (torch.float16, (7, 2, 16))
        """
        padded_n, padded_k = layout.padded(self.n, self.k)
        tiles = padded_n // layout.TILE
        if self.kind == "bf16":
            return {"data": (torch.bfloat16, (tiles, padded_k // 32, 16, 16, 2))}
        if self.kind == "int8":
            return {"data": (torch.int8, (tiles, padded_k // 64, 16, 16, 4)), "scale": (torch.float32, (padded_n,))}
        groups = (torch.float16, (tiles, padded_k // self.group, 16))
        forms = {"data": (torch.uint8, (tiles, padded_k // 64, 8, 64)), "scale": groups}
        return forms | {"minimum": groups} if self.minimum else forms

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors.

        >>> PackedForm(kind="int4", n=4096, k=4096, group=64).nbytes / (4096 * 4096)
        0.53125
        """
        return sum(dtype.itemsize * prod(shape) for dtype, shape in self.tensors().values())


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight of n outputs and k inputs in the kernels' layout (see `sash.kernels.layout`).

    Attributes:
        kind, n, k, group, rotation: see `PackedForm`.
        data: the values: bfloat16, int8, or uint8 for int4.
        scale: int8: float32 [padded outputs]; int4: float16 [tiles, groups, 16]; None for bf16.
        minimum: float16 of the shape of an int4 scale, or None: a value is scale * q + minimum.

    Raises:
        UsageError: tensors of another type or shape, or numbers that contradict each other.
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
        wanted = self.form.tensors()
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

    @classmethod
    def of(cls, form: PackedForm, tensors: Mapping[str, Tensor]) -> PackedWeight:
        """A weight of a form, of tensors by the names that `PackedForm.tensors` gives them."""
        data, scale, minimum = (tensors.get(name) for name in ("data", "scale", "minimum"))
        if data is None:
            raise UsageError("a packed weight needs its data")
        return cls(form.kind, form.n, form.k, data, scale, minimum, form.group, form.rotation)

    @property
    def form(self) -> PackedForm:
        """How it is packed."""
        return PackedForm(
            kind=self.kind,
            n=self.n,
            k=self.k,
            group=self.group,
            minimum=self.kind == "int4" and self.minimum is not None,
            rotation=self.rotation,
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

    def __deepcopy__(self, memo: dict[int, object]) -> PackedWeight:
        """Itself: a packed weight never changes, so copies of a network share it."""
        return self


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
