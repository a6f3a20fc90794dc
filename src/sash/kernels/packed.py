"""A weight in the kernels' layout, and what it stands for.

Shape suffixes: K inputs, R chosen outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.kernels import layout
from sash.kernels.activations import is_rotation, rotate, rotation_of

Kind = Literal["bf16", "int8", "int4", "int4m"]
"""What a weight's values are; `int4m` is int4 whose groups have integer multipliers instead of scales."""

INT4: tuple[Kind, ...] = ("int4", "int4m")

MULTIPLIERS = (-15, 16)
"""The least and the largest multiplier of an int4m group: q is -8 to 7, and their product still a value of int8."""

GROUPS = (32, 64)
"""Inputs that may share an int4 scale."""


_TENSORS = ("data", "scale", "minimum", "multiplier")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedForm:
    """How a weight is packed: all about it but its values.

    Attributes:
        kind: what its values are.
        n, k: outputs and inputs, before padding.
        group: inputs that share an int4 scale or an int4m multiplier, 32 or 64; 0 for the other kinds.
        minimum: whether each int4 group has a minimum beside its scale.
        rotation: inputs that `rotate` mixes before they meet an int8 or int4m weight, which is stored rotated; 1 for
            none.

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
        if self.kind not in get_args(Kind):
            raise UsageError(f"weights are packed as {', '.join(get_args(Kind))}; got {self.kind!r}")
        if self.n < 1 or self.k < 1:
            raise UsageError(f"a weight has 1 or more outputs and inputs; got {self.n} and {self.k}")
        if self.kind in INT4 and self.group not in GROUPS:
            raise UsageError(f"{' or '.join(map(str, GROUPS))} inputs share an int4 scale; got {self.group}")
        if self.kind not in INT4 and self.group:
            raise UsageError(f"only int4 weights have groups; got one of {self.group} for {self.kind}")
        if self.kind != "int4" and self.minimum:
            raise UsageError(f"only int4 weights have minima, and {self.kind} is another kind")
        if not is_rotation(self.rotation, self.k):
            raise UsageError(f"a rotation mixes {rotation_of(self.k)} of {self.k} inputs, say; got {self.rotation}")
        if self.rotation > 1 and self.kind not in ("int8", "int4m"):
            raise UsageError(
                f"only int8 and int4m weights are rotated; got a rotation of {self.rotation} for {self.kind}"
            )

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
        shape = (tiles, padded_k // self.group, 16)
        data = (torch.uint8, (tiles, padded_k // 64, 8, 64))
        if self.kind == "int4m":
            return {"data": data, "scale": (torch.float32, (padded_n,)), "multiplier": (torch.int8, shape)}
        groups = (torch.float16, shape)
        forms: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"data": data, "scale": groups}
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
        data: the values: bfloat16, int8, or uint8 for int4 and int4m.
        scale: int8, int4m: float32 [padded outputs]; int4: float16 [tiles, groups, 16]; None for bf16.
        minimum: float16 of the shape of an int4 scale, or None: a value is scale * q + minimum.
        multiplier: int4m: int8 [tiles, groups, 16], see `MULTIPLIERS`: a value is scale * (multiplier * q).

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
    multiplier: Tensor | None = None

    def __post_init__(self) -> None:
        wanted = self.form.tensors()
        for name in _TENSORS:
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
        """A weight of a form, of tensors by the names that `PackedForm.tensors` gives them.

        Raises:
            UsageError: there are no data among them.
        """
        data, scale, minimum, multiplier = (tensors.get(name) for name in _TENSORS)
        if data is None:
            raise UsageError("a packed weight needs its data")
        return cls(form.kind, form.n, form.k, data, scale, minimum, form.group, form.rotation, multiplier)

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
        named = {name: getattr(self, name) for name in _TENSORS}
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
    if weight.multiplier is not None:
        tile, lane = rows_R // layout.TILE, rows_R % layout.TILE
        values_RK *= weight.multiplier[tile, :, lane].float().repeat_interleave(weight.group, 1)[:, : weight.k]
    if weight.kind in ("int8", "int4m"):
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
