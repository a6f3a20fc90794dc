"""From float rows, or from levels and scales that a file already has, to a packed weight; slice by slice.

Shape suffixes: N rows of a slice, K inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from sash.errors import UsageError
from sash.kernels import layout, native
from sash.kernels.activations import rotate
from sash.kernels.packed import PackedForm, PackedWeight
from sash.quantize.rounding import int4_groups, int4_multiples, int8_rows


class Packer:
    """Takes a weight's rows from the first to the last and packs them.

    Every slice but the last has a multiple of 16 rows.
    """

    def __init__(self, form: PackedForm) -> None:
        self._form = form
        self._rows = 0
        self._rotation = rotate(torch.eye(form.rotation), form.rotation)
        self._tensors = {name: torch.zeros(shape, dtype=dtype) for name, (dtype, shape) in form.tensors().items()}

    def add(self, weight_NK: Tensor) -> None:
        """The next rows, in float32; they are rounded as the form says.

        Raises:
            CheckpointError: values that are not finite.
            UsageError: more rows than the form has.
        """
        kind = self._form.kind
        if kind == "bf16":
            self._place(len(weight_NK), data=layout.pack_bf16(weight_NK))
        elif kind == "int8":
            if native.available():
                data, scale_N = native.pack_int8(weight_NK, self._form.rotation)
            else:
                q_NK, scale_N = int8_rows(self._rotated(weight_NK))
                data = layout.pack_int8(q_NK)
            self._place(len(weight_NK), data=data, scale=scale_N)
        elif kind == "int4m":
            q_NK, scale_N, multiplier_NG = int4_multiples(self._rotated(weight_NK), self._form.group)
            packed = layout.pack_groups(self._filled(multiplier_NG))
            self._place(len(weight_NK), data=layout.pack_int4(q_NK), scale=scale_N, multiplier=packed)
        else:
            self.add_levels(*int4_groups(weight_NK, self._form.group), None)

    def add_levels(self, q_NK: Tensor, scale_NG: Tensor, minimum_NG: Tensor | None) -> None:
        """The next rows of an int4 weight, rounded already: int8 from -8 to 7, float16 scales and minima.

        Rows without minima in a weight that has them get minima of 0, and so do scales of inputs that are padding.

        Raises:
            UsageError: more rows than the form has, or minima in a weight that has none.
        """
        if minimum_NG is not None and not self._form.minimum:
            raise UsageError("minima for a weight that has none")
        groups = {"scale": scale_NG}
        if self._form.minimum:
            groups["minimum"] = torch.zeros_like(scale_NG) if minimum_NG is None else minimum_NG
        packed = {name: layout.pack_groups(self._filled(values_NG)) for name, values_NG in groups.items()}
        self._place(len(q_NK), data=layout.pack_int4(q_NK), **packed)

    def _rotated(self, weight_NK: Tensor) -> Tensor:
        """One product is much faster here than the additions of `rotate`, and differs in the last bits only."""
        return (weight_NK.view(-1, self._form.rotation) @ self._rotation).view(weight_NK.shape)

    def _filled(self, values_NG: Tensor) -> Tensor:
        """Groups of inputs that are padding have zeros."""
        return F.pad(values_NG, (0, layout.padded(1, self._form.k)[1] // self._form.group - values_NG.shape[1]))

    def done(self) -> PackedWeight:
        """The weight.

        Raises:
            UsageError: rows are lacking.
        """
        if self._rows != self._form.n:
            raise UsageError(f"{self._rows} of {self._form.n} rows were given")
        return PackedWeight.of(self._form, self._tensors)

    def _place(self, n: int, **parts: Tensor) -> None:
        first = self._rows
        self._rows += n
        if first % layout.TILE or self._rows > self._form.n:
            raise UsageError(f"rows {first} to {self._rows} of {self._form.n}: slices are whole tiles, in order")
        for name, part in parts.items():
            at = first if self._tensors[name].dim() == 1 else first // layout.TILE
            self._tensors[name][at : at + len(part)] = part


def pack(form: PackedForm, slices: Iterable[Tensor]) -> PackedWeight:
    """Pack a weight of float32 slices of rows, [N, K] each; see `Packer`.

    >>> weight_NK = torch.eye(40, 64)
    >>> form = PackedForm(kind="int8", n=40, k=64, rotation=64)
    >>> from sash.kernels.packed import dequantize
    >>> bool((dequantize(pack(form, [weight_NK])) - weight_NK).abs().max() < 0.01)
    True
    """
    packer = Packer(form)
    for weight_NK in slices:
        packer.add(weight_NK)
    return packer.done()
