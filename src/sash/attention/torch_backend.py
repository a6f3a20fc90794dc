"""Segment attention in torch: one code for CPU, CUDA and MPS, no N x N tensor, no repeated keys.

On the CPU torch's own flash kernel does a segment, because it also returns the log-sum-exp and never holds the
scores. Elsewhere, where gradients are wanted, and for dtypes that kernel lacks, the scores of one block of queries
are computed as they are written in the paper. Both read keys and values in place; the heads of a group share them
through a stride of zero.

Shape suffixes: T queries, S keys, H query heads, G key/value heads, R = H / G, M = R T, K head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sash.attention.segment import Segment


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's CPU flash kernel computes this."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def attend_segment(q_THK: Tensor, segment: Segment, scale: float) -> tuple[Tensor, Tensor]:
    """One segment: outputs [T, H, K] and log-sum-exp [T, H] (float32, -inf for a query that sees nothing)."""
    # The kernel's log-sum-exp carries no gradient, and a merge of segments needs one.
    differentiated = torch.is_grad_enabled() and q_THK.requires_grad
    if has_flash(q_THK.device, q_THK.dtype) and not differentiated:
        return attend_flash_cpu(q_THK, segment, scale)
    return attend_explicit(q_THK, segment, scale)


def attend_flash_cpu(q_THK: Tensor, segment: Segment, scale: float) -> tuple[Tensor, Tensor]:
    """`attend_segment` by torch's CPU flash kernel: groups are its batch, the heads of a group its heads."""
    n_queries, n_heads, head_dim = q_THK.shape
    n_groups, n_keys, _ = segment.keys_GSK.shape
    per_group = n_heads // n_groups
    shared = (n_groups, per_group, n_keys, head_dim)
    bias_TS = segment.bias_TS
    out_GRTK, lse_GRT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_THK.view(n_queries, n_groups, per_group, head_dim).permute(1, 2, 0, 3),
        segment.keys_GSK.unsqueeze(1).expand(shared),
        segment.values_GSK.unsqueeze(1).expand(shared),
        0.0,
        False,
        attn_mask=None if bias_TS is None else bias_TS.to(q_THK.dtype).expand(n_queries, n_keys)[None, None],
        scale=scale,
    )
    out_THK = out_GRTK.permute(2, 0, 1, 3).reshape(n_queries, n_heads, head_dim)
    lse_TH = lse_GRT.permute(2, 0, 1).reshape(n_queries, n_heads)
    if segment.mask is not None and segment.mask.blind_T is not None:
        # The kernel reports 0 for a query that sees nothing, which a merge would take for a weight of one.
        lse_TH = lse_TH.masked_fill(segment.mask.blind_T[:, None], -math.inf)
    return out_THK, lse_TH


def attend_explicit(q_THK: Tensor, segment: Segment, scale: float) -> tuple[Tensor, Tensor]:
    """`attend_segment` as the paper writes it: softmax(q k^T) v over one block, with float32 scores."""
    n_queries, n_heads, head_dim = q_THK.shape
    n_groups = segment.keys_GSK.shape[0]
    per_group = n_heads // n_groups
    q_GMK = q_THK.view(n_queries, n_groups, per_group, head_dim).permute(1, 2, 0, 3).reshape(n_groups, -1, head_dim)
    scores_GMS = torch.bmm(q_GMK, segment.keys_GSK.transpose(1, 2)).float() * scale
    if segment.log_weights_S is not None:
        scores_GMS = scores_GMS + segment.log_weights_S
    if segment.mask is not None:
        allowed_MS = segment.mask.allowed_TS.repeat(per_group, 1)
        scores_GMS = scores_GMS.masked_fill(~allowed_MS, -math.inf)
    top_GM1 = scores_GMS.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    weights_GMS = torch.exp(scores_GMS - top_GM1)
    sum_GM1 = weights_GMS.sum(-1, keepdim=True)
    out_GMK = torch.bmm(weights_GMS.to(q_THK.dtype), segment.values_GSK).float() / sum_GM1.clamp_min(1e-38)
    lse_GM = (top_GM1 + sum_GM1.log()).squeeze(-1)
    out_THK = out_GMK.view(n_groups, per_group, n_queries, head_dim).permute(2, 0, 1, 3)
    lse_TH = lse_GM.view(n_groups, per_group, n_queries).permute(2, 0, 1)
    return out_THK.reshape(n_queries, n_heads, head_dim), lse_TH.reshape(n_queries, n_heads)
