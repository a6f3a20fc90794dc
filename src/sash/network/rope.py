"""Rotary position embedding, computed for the positions of a step and never tabled, so that it has no last position.

Angles are formed in float64: at position 10,000,000 a float32 product of position and frequency is off by up to half
a radian. Source: RoFormer (arXiv 2104.09864), section 3.4.2; scalings as `RopeScaling` says.

Shape suffixes: T tokens, H heads, K head dimension, F = K / 2 frequencies.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from sash.network.config import RopeConfig, RopeScaling


@lru_cache(maxsize=256)
def frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angle per position of each pair, [F] float64, and what cos and sin are multiplied by; computed once.

    >>> frequencies(RopeConfig(theta=10_000.0), 4)[0].tolist()
    [1.0, 0.01]
    """
    # Whoever asks first, training may ask next: it must be a tensor of the usual kind.
    with torch.inference_mode(False), torch.device("cpu"):
        return _frequencies(rope, head_dim)


def _frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    exponent_F = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    plain_F = rope.theta**-exponent_F
    scaling = rope.scaling
    if scaling is None:
        return plain_F, 1.0
    factor = 1.0 if scaling.attention_factor is None else scaling.attention_factor
    if scaling.kind == "linear":
        return plain_F / scaling.factor, factor
    if scaling.kind == "llama3":
        return _llama3(plain_F, scaling), factor
    if scaling.kind == "yarn":
        if scaling.attention_factor is None:
            factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        return _yarn(plain_F, rope.theta, head_dim, scaling), factor
    return plain_F / torch.tensor(scaling.factors, dtype=torch.float64), factor


def _llama3(plain_F: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow frequencies are divided by the factor, fast ones kept, others blended (Llama 3.1, `apply_scaling`)."""
    rotations_F = scaling.original_context * plain_F / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep_F = ((rotations_F - low) / (high - low)).clamp(0, 1)
    return keep_F * plain_F + (1 - keep_F) * plain_F / scaling.factor


def _yarn(plain_F: Tensor, theta: float, head_dim: int, scaling: RopeScaling) -> Tensor:
    """A ramp over the pair's index between two numbers of rotations (YaRN, arXiv 2309.00071, section 3.2)."""

    def pair_of(rotations: float) -> float:
        return head_dim * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_of(scaling.beta_slow)), head_dim - 1)
    ramp_F = (torch.arange(head_dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    keep_F = 1 - ramp_F.clamp(0, 1)
    return keep_F * plain_F + (1 - keep_F) * plain_F / scaling.factor


def angles(frequencies_F: Tensor, factor: float, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cosine and sine of every position and pair, each [T, F] in `dtype`."""
    on = torch.device("cpu") if positions_T.device.type == "mps" else positions_T.device  # MPS has no float64
    angle_TF = positions_T.to(on, torch.float64)[:, None] * frequencies_F.to(on)
    cos_TF = (angle_TF.cos() * factor).to(positions_T.device, dtype)
    sin_TF = (angle_TF.sin() * factor).to(positions_T.device, dtype)
    return cos_TF, sin_TF


_BLOCK = 256
"""Positions whose angles are computed together."""


@lru_cache(maxsize=64)
def _block(rope: RopeConfig, head_dim: int, block: int) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.device("cpu"):
        positions_T = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
        return angles(*frequencies(rope, head_dim), positions_T, torch.float32)


def known_angles(rope: RopeConfig, head_dim: int, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """`angles` in float32 on the CPU, out of blocks of positions of which the last few are remembered.

    A step of writing needs a position that is in the block of the one before. Cosines in torch may wake threads, which
    then wait for more work by spinning, and hold up whoever computes next on their cores. And a position's angles are
    computed in one and the same company, whatever the step holds.

    >>> positions_T = torch.tensor([3, 100_000])
    >>> rope = RopeConfig(theta=10_000.0)
    >>> once = angles(*frequencies(rope, 4), positions_T, torch.float32)
    >>> all(torch.equal(*pair) for pair in zip(known_angles(rope, 4, positions_T), once, strict=True))
    True
    >>> all(torch.equal(one, both[1:]) for one, both in zip(known_angles(rope, 4, positions_T[1:]), once, strict=True))
    True
    """
    if positions_T.shape[0] == 1:  # as in every step of writing: nothing is computed, nor copied
        block, slot = divmod(int(positions_T), _BLOCK)
        cos_BF, sin_BF = _block(rope, head_dim, block)
        return cos_BF[slot : slot + 1], sin_BF[slot : slot + 1]
    blocks_T = positions_T // _BLOCK
    if len(positions_T) <= 16:
        found = [_block(rope, head_dim, block) for block in blocks_T.tolist()]
        slots = (positions_T % _BLOCK).tolist()
        cos_TF, sin_TF = (
            torch.stack([pair[part][slot] for pair, slot in zip(found, slots, strict=True)]) for part in (0, 1)
        )
        return cos_TF, sin_TF
    cos_TF, sin_TF = torch.empty(2, len(positions_T), head_dim // 2)
    for block in sorted(set(blocks_T.tolist())):
        here_N = (blocks_T == block).nonzero().squeeze(1)
        for out_TF, known_TF in zip((cos_TF, sin_TF), _block(rope, head_dim, block), strict=True):
            out_TF[here_N] = known_TF[positions_T[here_N] - block * _BLOCK]
    return cos_TF, sin_TF


def rotate(x_THK: Tensor, cos_TF: Tensor, sin_TF: Tensor, layout: str) -> Tensor:
    """Turn each pair of components of every head by its angle; `layout` says which components are a pair."""
    cos_T1F, sin_T1F = cos_TF[:, None], sin_TF[:, None]
    if layout == "half":
        a_THF, b_THF = x_THK.chunk(2, dim=-1)
        return torch.cat((a_THF * cos_T1F - b_THF * sin_T1F, b_THF * cos_T1F + a_THF * sin_T1F), dim=-1)
    a_THF, b_THF = x_THK[..., 0::2], x_THK[..., 1::2]
    turned = torch.stack((a_THF * cos_T1F - b_THF * sin_T1F, b_THF * cos_T1F + a_THF * sin_T1F), dim=-1)
    return turned.flatten(-2)
