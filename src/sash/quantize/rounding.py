"""Choosing scales: float weights to int8 rows, and to int4 groups of least squared error.

Shape suffixes: N outputs, K inputs, G groups of inputs of g.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sash.errors import CheckpointError
from sash.kernels.layout import BLOCK
from sash.kernels.packed import MULTIPLIERS

# What the largest value of a group is rounded to, tried in turn. Up to 8 it fits; above, it is cut off a little, so
# that the many others lie on a finer grid.
_LARGEST = (7.0, 7.6, 8.0, 8.4, 8.9, 9.6)

_SLICE_VALUES = 1 << 17
"""Values that are searched at once, so that what is computed on the way stays in the processor's caches."""

_HALF_MAX = 65504.0


def int8_rows(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 with a scale of its own: largest / 127.

    Returns:
        int8 [N, K] from -127 to 127, and float32 [N].

    Raises:
        CheckpointError: a value that is not finite.

    >>> q, scale = int8_rows(torch.tensor([[0.5, -1.27, 0.0], [0.0, 0.0, 0.0]]))
    >>> q.tolist(), [round(s, 6) for s in scale.tolist()]
    ([[50, -127, 0], [0, 0, 0]], [0.01, 0.0])
    """
    largest_N1 = weight_NK.abs().amax(1, keepdim=True)
    if not bool(largest_N1.isfinite().all()):
        raise CheckpointError("a weight has values that are not finite: the checkpoint is broken, download it again")
    scale_N1 = largest_N1 / 127
    q_NK = (weight_NK / torch.where(scale_N1 > 0, scale_N1, 1.0)).round_().clamp_(-127, 127)
    return q_NK.to(torch.int8), scale_N1.squeeze(1)


def int4_groups(weight_NK: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Round groups of inputs to 16 levels, scale * q, with the least squared error found.

    A few ranges are tried; for each, values are rounded to the levels it gives and the scale is then fitted to them by
    least squares, as ggml's quantisers do (ggml-quants.c, `make_qx_quants`).

    Args:
        weight_NK: float32.
        group: inputs that share a scale. The last group is filled up with zeros.

    Returns:
        int8 [N, K] from -8 to 7, and float16 scales [N, G], G = K padded to 64 / group. A scale may be negative.

    Raises:
        CheckpointError: a value that is not finite, or too large for float16 scales.

    >>> q, scale = int4_groups(torch.tensor([[1.0, -4.0, 3.5] + [0.0] * 29]), 32)
    >>> q[0, :4].tolist(), scale[0, 0].item()
    ([2, -8, 7, 0], 0.5)
    """
    k = weight_NK.shape[1]
    weight_NGg = F.pad(weight_NK, (0, -k % BLOCK)).reshape(len(weight_NK), -1, group)
    if not bool(weight_NGg.abs().amax() < _HALF_MAX / 2):
        raise CheckpointError("a weight has values that are too large for int4: use int8 weights")
    rows = max(1, _SLICE_VALUES // weight_NGg[0].numel())
    found = [_search(part) for part in torch.split(weight_NGg, rows)]
    q_NGg, scale_NG = (torch.cat(parts) for parts in zip(*found, strict=True))
    return q_NGg.flatten(1)[:, :k].contiguous(), scale_NG


def int4_multiples(weight_NK: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round groups of inputs to 16 levels, scale * multiplier * q: a float scale a row, a small integer a group.

    Scales of groups are chosen as by `int4_groups` and rounded to multiples of a fraction of the row's largest.

    Args:
        weight_NK: float32.
        group: inputs that share a multiplier. The last group is filled up with zeros.

    Returns:
        int8 [N, K] from -8 to 7, float32 scales [N], and int8 multipliers [N, G] in `MULTIPLIERS`.

    Raises:
        CheckpointError: as `int4_groups`.

    >>> q, scale, multiplier = int4_multiples(torch.tensor([[-16.0] * 32 + [4.0, 8.0] * 16]), 32)
    >>> (q * scale[:, None] * multiplier.repeat_interleave(32, 1)).round(decimals=1).unique().tolist()
    [-16.0, 4.0, 8.0]
    """
    k = weight_NK.shape[1]
    _, group_scale_NG = int4_groups(weight_NK, group)
    wanted_NG = group_scale_NG.float()
    least, most = MULTIPLIERS
    scale_N = torch.maximum(wanted_NG.amax(1) / most, wanted_NG.amin(1) / least).clamp_min(0)
    multiplier_NG = (wanted_NG / torch.where(scale_N > 0, scale_N, 1.0)[:, None]).round_().clamp_(least, most)
    step_NG = multiplier_NG * scale_N[:, None]
    step_NK = torch.where(step_NG == 0, math.inf, step_NG).repeat_interleave(group, 1)[:, :k]
    q_NK = (weight_NK / step_NK).round_().clamp_(-8, 7)
    return q_NK.to(torch.int8), scale_N, multiplier_NG.to(torch.int8)


def _search(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[n, G, g] -> q of the same shape and scales [n, G]."""
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    scale, best = torch.zeros_like(largest), torch.full_like(largest, -1.0)
    safe = torch.where(largest == 0, 1.0, largest)
    q, scratch = torch.empty_like(weight), torch.empty_like(weight)
    for level in _LARGEST:
        torch.mul(weight, -level / safe, out=q).round_().clamp_(-8, 7)
        along = torch.mul(q, weight, out=scratch).sum(-1, keepdim=True)
        size = torch.mul(q, q, out=scratch).sum(-1, keepdim=True).clamp_min_(1)
        gain = along.square() / size  # What is left of the squared length of `weight` is less by so much.
        better = gain > best
        scale, best = torch.where(better, along / size, scale), torch.where(better, gain, best)
    scale = scale.half()
    torch.div(weight, torch.where(scale == 0, 1.0, scale.float()), out=q).round_().clamp_(-8, 7)
    return q.to(torch.int8), scale.squeeze(-1)
