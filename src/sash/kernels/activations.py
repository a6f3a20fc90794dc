"""What happens to activations before they meet integer weights: they are rotated, and rounded to int8.

Shape suffixes: T tokens, K inputs, G groups of inputs of g.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sash.kernels import layout

MAX_BLOCK = 512
"""Inputs that one Hadamard matrix mixes at most."""

MAX_BLOCKS = 15
"""Blocks that are mixed with each other at most."""


def rotation_of(k: int) -> int:
    """How many inputs of k are mixed with each other by `rotate`.

    The largest power of two that divides k, at most 512; or all of k, where that is smaller and divides k into at most
    15 blocks.

    >>> rotation_of(4096), rotation_of(1536), rotation_of(640), rotation_of(576), rotation_of(33)
    (512, 512, 640, 576, 1)
    """
    block = min(k & -k, MAX_BLOCK)
    return k if block < MAX_BLOCK and k // block <= MAX_BLOCKS else block


def is_rotation(rotation: int, k: int) -> bool:
    """Whether `rotate` can mix so many of k inputs."""
    if rotation < 1 or k % rotation:
        return False
    block = rotation & -rotation
    return block <= MAX_BLOCK and rotation // block <= MAX_BLOCKS


def rotate(x: Tensor, rotation: int) -> Tensor:
    """Mix each run of `rotation` values by an orthogonal matrix: float32 of the shape of `x`.

    It spreads what stands out in a few inputs over many, so that one scale a token is enough (QuaRot, arXiv
    2404.00456). Blocks of the largest power of two that divides `rotation` go through a Hadamard matrix over the square
    root of their size; where there are several, they are then mixed with each other by a Hartley matrix,
    cas(2 pi i j / n) / sqrt(n) with cas = cos + sin. Both are symmetric and orthogonal, and so is the whole:
    (W R)(R x) = W x, and rotating twice gives `x` again.

    Sums and differences are taken in float32 of values at distance 1, 2, 4, ..., then multiplied once by
    float32(1 / sqrt(block)); Hartley sums run over blocks in ascending order, each product rounded.

    Args:
        x: any float type; its last dimension is a multiple of `rotation`.
        rotation: see `is_rotation`.

    >>> rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]), 4)
    tensor([ 5., -1., -2.,  0.])
    >>> rotate(rotate(torch.arange(12.0), 12), 12).round().tolist() == list(range(12))
    True
    """
    x = x.float()
    if rotation == 1:
        return x
    shape, distance, block = x.shape, 1, rotation & -rotation
    while distance < block:
        pairs = x.reshape(-1, 2, distance)
        first, second = pairs[:, 0], pairs[:, 1]
        x = torch.stack((first + second, first - second), dim=1)
        distance *= 2
    if block > 1:
        x = x * torch.tensor(block**-0.5, dtype=torch.float32)
    if rotation > block:
        x = _hartley(x.reshape(-1, rotation // block, block))
    return x.reshape(shape)


def _hartley(x_RCB: Tensor) -> Tensor:
    """Mix C blocks of each of R runs."""
    count = x_RCB.shape[1]
    turns = [[2 * math.pi / count * (i * j % count) for j in range(count)] for i in range(count)]
    matrix_CC = torch.tensor([[(math.cos(turn) + math.sin(turn)) / math.sqrt(count) for turn in row] for row in turns])
    out_RCB = x_RCB[:, :1] * matrix_CC[:, 0, None]
    for block in range(1, count):
        out_RCB = out_RCB + x_RCB[:, block, None] * matrix_CC[:, block, None]
    return out_RCB


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
    # A number over a tensor would be taken as the number times the reciprocal, and so be rounded twice.
    inverse_TG1 = torch.where(largest_TG1 > 0, torch.full_like(largest_TG1, 127) / largest_TG1, 0.0)
    q_TGg = (x_TGg * inverse_TG1).round_().to(torch.int8)
    return q_TGg.flatten(1), (largest_TG1 / 127).squeeze(-1)
