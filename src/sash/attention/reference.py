"""The oracle: attention by its definition, dense and in float32. Everything else is tested against this file.

Shape suffixes: T queries, S keys, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.segment import Segment

Rotate = Callable[[Tensor, Tensor], Tensor]


def attend_segment(q_THK: Tensor, segment: Segment, scale: float) -> tuple[Tensor, Tensor]:
    """One segment by the definition: outputs [T, H, K] and log-sum-exp [T, H], both float32."""
    scores_HTS = _scores(q_THK, segment.keys_GSK.transpose(0, 1)) * scale
    if segment.log_weights_S is not None:
        scores_HTS = scores_HTS + segment.log_weights_S
    if segment.mask is not None:
        scores_HTS = scores_HTS.masked_fill(~segment.mask.allowed_TS, -math.inf)
    lse_HT = torch.logsumexp(scores_HTS, dim=-1)
    weights_HTS = torch.nan_to_num(torch.exp(scores_HTS - lse_HT.unsqueeze(-1)), nan=0.0)
    return _mix(weights_HTS, segment.values_GSK.transpose(0, 1)), lse_HT.transpose(0, 1)


def attention(
    q_THK: Tensor,
    k_SGK: Tensor,
    v_SGK: Tensor,
    pattern: AttentionPattern,
    queries: TokenMeta,
    keys: TokenMeta,
    scale: float,
    rotate: Rotate,
) -> Tensor:
    """Attention of whole sequences: every query against every key, the pattern's predicate as the mask.

    Args:
        q_THK, k_SGK, v_SGK: queries and keys before rotation, and values.
        pattern: who sees whom.
        queries, keys: metadata, each field a scalar or of shape [T] and [S].
        scale: what q.k is multiplied by.
        rotate: (x [N, heads, K], positions [N]) -> x rotated; the identity for no rotary embedding.

    Returns:
        [T, H, K] float32. Pinned keys meet the query at the clamped distance (`AttentionPattern.clamp`).
    """
    position_T, position_S = torch.as_tensor(queries.position), torch.as_tensor(keys.position)
    rotated_SGK = rotate(k_SGK.float(), position_S)
    scores_HTS = _scores(rotate(q_THK.float(), position_T), rotated_SGK)
    allowed_TS = pattern.allows(queries.reshape(-1, 1), keys.reshape(1, -1))
    if pattern.pins:
        for key in range(position_S.numel()):
            if not bool(pattern.is_pin(keys.take(slice(key, key + 1))).all()):
                continue
            last_pin_T = _last_pin(pattern, queries, keys)
            clamped_T = pattern.clamp(position_T, last_pin_T)
            column_HT1 = _scores(rotate(q_THK.float(), clamped_T), rotated_SGK[key : key + 1])
            scores_HTS[:, :, key : key + 1] = column_HT1
    scores_HTS = (scores_HTS * scale).masked_fill(~allowed_TS, -math.inf)
    weights_HTS = torch.nan_to_num(torch.softmax(scores_HTS, dim=-1), nan=0.0)
    return _mix(weights_HTS, v_SGK)


def _last_pin(pattern: AttentionPattern, queries: TokenMeta, keys: TokenMeta) -> Tensor:
    """Position of the last pinned key at or before each query of the same sequence, [T]; -1 where there is none."""
    query, key = queries.reshape(-1, 1), keys.reshape(1, -1)
    seen_TS = (query.sequence == key.sequence) & (key.position <= query.position) & pattern.is_pin(key)
    position_TS = torch.as_tensor(key.position).expand(seen_TS.shape)
    return torch.where(seen_TS, position_TS, -1).amax(1)


def _scores(q_THK: Tensor, k_SGK: Tensor) -> Tensor:
    n_queries, n_heads, head_dim = q_THK.shape
    q_TGRK = q_THK.float().view(n_queries, k_SGK.shape[1], -1, head_dim)
    return torch.einsum("tgrk,sgk->grts", q_TGRK, k_SGK.float()).reshape(n_heads, n_queries, k_SGK.shape[0])


def _mix(weights_HTS: Tensor, v_SGK: Tensor) -> Tensor:
    n_heads, n_queries, n_keys = weights_HTS.shape
    weights_GRTS = weights_HTS.view(v_SGK.shape[1], -1, n_queries, n_keys)
    out_TGRK = torch.einsum("grts,sgk->tgrk", weights_GRTS, v_SGK.float())
    return out_TGRK.reshape(n_queries, n_heads, v_SGK.shape[2])
