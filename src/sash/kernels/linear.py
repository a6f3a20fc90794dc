"""Products with packed weights, as they are defined: `linear_twin` is the arithmetic that every native kernel follows.

A result depends on its own row of activations only. Products of integers are exact, and float32 sums run in one stated
order, so a row comes out the same bit for bit, whatever company it has in a batch and however many threads there are.

- int8: weights have a scale for each output, activations (rotated first, see `rotate`) one for each token:
  y[t, n] = float(dot[t, n]) * (sx[t] * sw[n]).
- int4m: as int8, the weight being q times its group's multiplier, which is again an int8.
- int4: weights have a scale, and perhaps a minimum, for each output and group of inputs, activations a scale for each
  token and group. Over the groups g in ascending order: acc = fma(float(dot[t, n, g]), sx[t, g] * sw[n, g], acc). With
  minima a second sum runs beside it: low = fma(minimum[n, g], sx[t, g] * float(sum[t, g]), low), sum being that of the
  group's quantised activations; y = acc + low.
- bf16: activations are rounded to bfloat16; products are exact in float32. The kernels add them up in float32 in an
  order of their own; here they are added in float64 and rounded once.

Shape suffixes: T tokens, N outputs, K inputs, G groups of inputs, R chosen outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.kernels import layout, native
from sash.kernels.activations import quantize_activations, rotate
from sash.kernels.packed import PackedWeight, present

__all__ = ["PackedWeight", "fused_multiply_add", "linear", "linear_twin", "quantize_activations", "rotate"]

_EXACT_INPUTS = 1024
"""So many products of two int8 values (127 x 127) add up to less than 2^24, so float32 holds every partial sum."""

_SCRATCH_VALUES = 1 << 22

_BELOW_FLOAT32 = (1 << 29) - 1
"""The bits of a float64 that a float32 lacks; `_HALF_FLOAT32` is half of the last that it has."""
_HALF_FLOAT32 = 1 << 28


def linear(x_TK: Tensor, weight: PackedWeight) -> Tensor:
    """Activations times the weight's transpose, [T, N] float32; see the top of this module for its arithmetic.

    Args:
        x_TK: activations, float32, contiguous.
        weight: packed.

    Raises:
        UsageError: activations of another width or type.
    """
    if x_TK.dim() != 2 or x_TK.shape[1] != weight.k or x_TK.dtype != torch.float32:
        raise UsageError(f"activations are float32 [tokens, {weight.k}]; got {x_TK.dtype} {list(x_TK.shape)}")
    if native.available() and weight.data.device.type == "cpu":
        return native.Linear(weight)(x_TK.contiguous())
    return linear_twin(x_TK, weight)


def linear_twin(x_TK: Tensor, weight: PackedWeight) -> Tensor:
    """`linear` by torch alone: slower, and what the native kernels are held against."""
    if weight.kind == "bf16":
        return _bf16(x_TK, weight)
    if weight.kind in ("int8", "int4m"):
        return _int8(x_TK, weight)
    return _int4(x_TK, weight)


def _bf16(x_TK: Tensor, weight: PackedWeight) -> Tensor:
    x_TK = x_TK.to(torch.bfloat16).double()
    tiles = max(1, _SCRATCH_VALUES // (layout.TILE * weight.k))
    parts = [
        x_TK @ layout.unpack_bf16(data, data.shape[0] * layout.TILE, weight.k).double().T
        for data in torch.split(weight.data, tiles)
    ]
    return torch.cat(parts, dim=1)[:, : weight.n].float()


def _int8(x_TK: Tensor, weight: PackedWeight) -> Tensor:
    scale_N = present(weight.scale)
    q_TK, scale_T1 = quantize_activations(rotate(x_TK, weight.rotation))
    x_TK, parts = q_TK.float(), []
    tiles = max(1, _SCRATCH_VALUES // (layout.TILE * x_TK.shape[1]))
    for first in range(0, weight.tiles, tiles):
        w_NK = _integers(weight, slice(first, first + tiles), x_TK.shape[1])
        dot_TN = torch.zeros(len(x_TK), len(w_NK), dtype=torch.int32, device=x_TK.device)
        for x_Tk, w_Nk in zip(*(torch.split(side, _EXACT_INPUTS, 1) for side in (x_TK, w_NK)), strict=True):
            dot_TN += (x_Tk @ w_Nk.T).int()
        parts.append(dot_TN.float())
    return (torch.cat(parts, dim=1) * (scale_T1 * scale_N))[:, : weight.n].contiguous()


def _integers(weight: PackedWeight, tiles: slice, k: int) -> Tensor:
    """The integers that an output's scale is for, float32 [N, K padded]."""
    data = weight.data[tiles]
    n = len(data) * layout.TILE
    if weight.multiplier is None:
        return layout.unpack_int8(data, n, k).float()
    multiplier_NG = layout.unpack_groups(weight.multiplier[tiles], n).float()
    return layout.unpack_int4(data, n, k).float() * multiplier_NG.repeat_interleave(weight.group, 1)


def _int4(x_TK: Tensor, weight: PackedWeight) -> Tensor:
    q_TK, scale_TG = quantize_activations(x_TK, weight.group)
    x_GTg = q_TK.float().view(len(q_TK), -1, weight.group).transpose(0, 1)
    sums_TG = x_GTg.sum(-1).T
    scale, parts = present(weight.scale), []
    tiles = max(1, _SCRATCH_VALUES // (layout.TILE * max(q_TK.shape[1], x_GTg.shape[0] * len(x_TK))))
    for first in range(0, weight.tiles, tiles):
        here = slice(first, first + tiles)
        n = len(weight.data[here]) * layout.TILE
        w_NK = layout.unpack_int4(weight.data[here], n, q_TK.shape[1]).float()
        dot_GTN = x_GTg @ w_NK.view(n, -1, weight.group).permute(1, 2, 0)
        scale_NG = layout.unpack_groups(scale[here], n).float()
        out_TN = torch.zeros(len(x_TK), n, device=x_TK.device)
        for g, dot_TN in enumerate(dot_GTN):
            out_TN = fused_multiply_add(dot_TN, scale_TG[:, g, None] * scale_NG[:, g], out_TN)
        if weight.minimum is not None:
            minimum_NG = layout.unpack_groups(weight.minimum[here], n).float()
            low_TN = torch.zeros_like(out_TN)
            for g in range(scale_TG.shape[1]):
                low_TN = fused_multiply_add((scale_TG * sums_TG)[:, g, None], minimum_NG[:, g], low_TN)
            out_TN = out_TN + low_TN
        parts.append(out_TN)
    return torch.cat(parts, dim=1)[:, : weight.n].contiguous()


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The sum a * b + c of float32 values, rounded once, as the processor's instruction does.

    The product is exact in float64. So that the sum's rounding there cannot tip the one to float32, it is rounded to
    odd (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008): towards zero, with the last bit
    set where anything was lost.

    >>> a, c = torch.tensor(1 + 2**-12), torch.tensor(-1 - 2**-11)
    >>> fused_multiply_add(a, a, c).item() == 2**-24, (a * a + c).item()
    (True, 0.0)
    """
    product, addend = a.double() * b.double(), c.double()
    total = product + addend
    bits = total.view(torch.int64)
    if not bool((bits & _BELOW_FLOAT32 == _HALF_FLOAT32).any()):
        return total.float()  # Nothing lies half way between two float32, where alone a lost bit could tip it.
    apart = total - product
    lost = (product - (total - apart)) + (addend - apart)
    towards = torch.where((lost > 0) == (total > 0), 1, -1)
    odd = torch.where((lost != 0) & (bits & 1 == 0), bits + towards, bits)
    return odd.view(torch.float64).float()
