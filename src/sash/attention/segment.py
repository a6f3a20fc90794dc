"""Attention is a merge of segments: each a run of keys with its own softmax statistics, joined exactly.

A query attends to a short list of segments (pins, ring, the step's own tokens). For a segment s with scores x, the
backend returns o_s = softmax(x) v and lse_s = log sum exp(x). Over all segments the exact answer is
sum_s exp(lse_s - m) o_s / sum_s exp(lse_s - m) with m = max lse_s (online softmax, Milakov and Gimelshein,
arXiv 1805.02867; as FlashAttention splits keys, arXiv 2205.14135, section 3.1).

Shape suffixes: T queries, S keys, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys of a segment each query sees, in the two forms that backends read.

    Attributes:
        allowed_TS: bool.
        bias_TS: 0 where allowed and -inf where not, in the dtype of the queries.
        blind_T: queries that see no key of the segment, or None if there is no such query.
    """

    allowed_TS: Tensor
    bias_TS: Tensor
    blind_T: Tensor | None

    @staticmethod
    def of(allowed_TS: Tensor, dtype: torch.dtype) -> Mask | None:
        """The mask of `allowed_TS`, or None if it allows all."""
        if bool(allowed_TS.all()):
            return None
        bias_TS = torch.zeros(allowed_TS.shape, dtype=dtype, device=allowed_TS.device)
        bias_TS.masked_fill_(~allowed_TS, -math.inf)
        blind_T = ~allowed_TS.any(dim=1)
        return Mask(allowed_TS, bias_TS, blind_T if bool(blind_T.any()) else None)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of keys that some queries attend to, read in place.

    Attributes:
        keys_GSK, values_GSK: rotated keys, and values; views are welcome, K contiguous.
        mask: None if every query sees every key.
        clamped: whether these keys are to meet the queries rotated at the clamped distance.
        log_weights_S: added to the scores of all queries, float32: logarithms of how many tokens each key stands for.
    """

    keys_GSK: Tensor
    values_GSK: Tensor
    mask: Mask | None = None
    clamped: bool = False
    log_weights_S: Tensor | None = None

    @property
    def bias_TS(self) -> Tensor | None:
        """What is added to the scores, [T or 1, S]: mask and weights; None for nothing."""
        if self.log_weights_S is None:
            return None if self.mask is None else self.mask.bias_TS
        bias_1S = self.log_weights_S[None]
        return bias_1S if self.mask is None else self.mask.bias_TS + bias_1S.to(self.mask.bias_TS.dtype)


class Backend(Protocol):
    """Computes one segment: outputs [T, H, K] and log-sum-exp [T, H] in float32 (-inf where a query sees nothing)."""

    def __call__(self, q_THK: Tensor, segment: Segment, scale: float) -> tuple[Tensor, Tensor]:
        """Attend `q_THK` to one segment."""
        ...


def attend(
    q_THK: Tensor, clamped_q_THK: Tensor | None, segments: list[Segment], scale: float, backend: Backend
) -> Tensor:
    """Attend queries to the union of `segments`.

    Args:
        q_THK: rotated queries.
        clamped_q_THK: the same queries rotated at the clamped distance; None where both are equal.
        segments: at least one; every query sees at least one key of them together.
        scale: what q.k is multiplied by.
        backend: what computes a segment.

    Returns:
        [T, H, K] in the dtype of the queries.
    """
    parts = [
        backend(q_THK if clamped_q_THK is None or not segment.clamped else clamped_q_THK, segment, scale)
        for segment in segments
    ]
    if len(parts) == 1:
        return parts[0][0].to(q_THK.dtype)
    return merge(parts).to(q_THK.dtype)


def merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Join segments' (output [T, H, K], log-sum-exp [T, H]) into the softmax over all their keys, in float32."""
    top_TH = torch.stack([lse for _, lse in parts]).amax(0)
    total_THK = torch.zeros_like(parts[0][0], dtype=torch.float32)
    weight_TH = torch.zeros_like(top_TH)
    for out_THK, lse_TH in parts:
        share_TH = torch.exp(lse_TH - top_TH)
        total_THK.addcmul_(out_THK.float(), share_TH.unsqueeze(-1))
        weight_TH += share_TH
    return total_THK.div_(weight_TH.unsqueeze(-1))
