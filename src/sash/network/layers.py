"""The parts of a decoder block, each testable alone.

Shape suffixes: T packed tokens, D dim, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sash.network.config import LayerConfig, ModelConfig
from sash.network.step import Step

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def embedding(n: int, dim: int) -> nn.Embedding:
    """A table of n vectors, drawn at random unless it is built without memory.

    On the meta device torch would draw them by its compiler's decompositions, and import the compiler: seconds.
    """
    weight = torch.empty(n, dim)
    return nn.Embedding(n, dim, _weight=weight if weight.is_meta else nn.init.normal_(weight))


class RMSNorm(nn.Module):
    """x / rms(x) * (weight + offset), computed in float32 (arXiv 1910.07467, equation 4)."""

    def __init__(self, dim: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`; the dtype stays."""
        x_float = x.float()
        scaled = x_float * torch.rsqrt(x_float.square().mean(-1, keepdim=True) + self.eps)
        return (scaled * (self.weight.float() + self.offset)).to(x.dtype)


class FeedForward(nn.Module):
    """Gated feed-forward network: w2(act(w1 x) * w3 x) (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        out_TD: Tensor = self.w2(self.activation(self.w1(x_TD)) * self.w3(x_TD))
        return out_TD


class Attention(nn.Module):
    """Grouped-query attention under a pattern. Who sees whom and where keys live is the step's business."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.scale = config.attention_scale if config.attention_scale is not None else config.head_dim**-0.5
        self.layer = layer
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=config.qkv_bias)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=config.qkv_bias)
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_offset)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_offset)
        self.qk_norm = config.qk_norm

    def forward(self, x_TD: Tensor, step: Step) -> Tensor:
        """[T, D] -> [T, D]; the step's keys and values are committed to its cache, if it has one."""
        q_THK = self.wq(x_TD).unflatten(-1, (self.n_heads, self.head_dim))
        k_TGK = self.wk(x_TD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v_TGK = self.wv(x_TD).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if self.qk_norm:
            q_THK, k_TGK = self.q_norm(q_THK), self.k_norm(k_TGK)
        out_THK = step.attend(self.index, self.layer, q_THK, k_TGK, v_TGK, self.scale)
        out_TD: Tensor = self.wo(out_THK.flatten(-2))
        return out_TD
