"""What happens to activations before they meet integer weights: they are rotated, and rounded to int8.

Shape suffixes: T tokens, K inputs, G groups of inputs of g.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sash.kernels import layout

MAX_ROTATION = 256
"""Inputs that `rotate` mixes at most."""


def rotation_of(k: int) -> int:
    """How many inputs of k are mixed with each other: the largest power of two that divides k, at most 256.

    >>> rotation_of(4096), rotation_of(640), rotation_of(576), rotation_of(33)
    (256, 128, 64, 1)
    """
    return min(k & -k, MAX_ROTATION)


def rotate(x: Tensor, block: int) -> Tensor:
    """Mix each run of `block` values by a Hadamard matrix over sqrt(block): float32 of the shape of `x`.

    It spreads what stands out in a few inputs over many, so that one scale a token is enough (QuaRot, arXiv
    2404.00456). The matrix is symmetric and orthogonal, so that (W R)(R x) = W x, and rotating twice gives `x` again.
    Sums and differences are taken in float32 of values at distance 1, 2, 4, ..., then multiplied once by
    float32(1 / sqrt(block)).

    Args:
        x: any float type; its last dimension is a multiple of `block`.
        block: a power of two.

    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), 4)
    tensor([ 5., -1., -2.,  0.])
    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), 1)
    tensor([1., 2., 3., 4.])
    """
    x = x.float()
    if block == 1:
        return x
    shape, distance = x.shape, 1
    while distance < block:
        pairs = x.reshape(-1, 2, distance)
        first, second = pairs[:, 0], pairs[:, 1]
        x = torch.stack((first + second, first - second), dim=1)
        distance *= 2
    return x.reshape(shape) * torch.tensor(block**-0.5, dtype=torch.float32)


def quantize_activations(x_TK: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Activations as int8 with a scale for each token, or for each token and group of inputs.

    q = round(x * (127 / largest)), to the nearest and to even at ties, and scale = largest / 127, in float32; where all
    values are 0, so are both.

    Args:
        x_TK: float32.
        group: inputs that share a scale; None for all of a token. The last group may be short.

    Returns:
        int8 [T, K padded to a multiple of 64] and float32 [T, G], G = 1 without groups.

    >>> q, scale = quantize_activations(torch.tensor([[0.0, 1.0, -12.7]]))
    >>> q[0, :3].tolist(), q.shape, round(scale.item(), 6)
    ([0, 10, -127], torch.Size([1, 64]), 0.1)
    """
    x_TK = F.pad(x_TK.float(), (0, -x_TK.shape[1] % layout.BLOCK))
    x_TGg = x_TK.reshape(len(x_TK), -1, group or x_TK.shape[1])
    largest_TG1 = x_TGg.abs().amax(-1, keepdim=True)
    inverse_TG1 = torch.where(largest_TG1 > 0, 127 / largest_TG1, 0.0)
    q_TGg = (x_TGg * inverse_TG1).round_().to(torch.int8)
    return q_TGg.flatten(1), (largest_TG1 / 127).squeeze(-1)
