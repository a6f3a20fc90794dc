"""Models as plain constants, for questions that need no files: what would it hold, what would it cost."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sash.attention.pattern import AttentionPattern
from sash.network.config import LayerConfig, ModelConfig, MoEConfig, RopeConfig


def _mistral(architecture: str, layer: LayerConfig, context: int) -> ModelConfig:
    """The shape that Mistral 7B and Mixtral 8x7B share."""
    return ModelConfig(
        architecture=architecture,
        vocab_size=32_000,
        dim=4096,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        hidden_dim=14_336,
        layers=(layer,) * 32,
        context=context,
    )


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        # arXiv 2310.06825, table 1; the checkpoint is v0.1: later ones have no window.
        "mistral-7b": _mistral("mistral", LayerConfig(pattern=AttentionPattern(window=4096)), context=8192),
        # arXiv 2401.04088, table 1: full attention.
        "mixtral-8x7b": _mistral(
            "mixtral",
            LayerConfig(rope=RopeConfig(theta=1e6), moe=MoEConfig(n_experts=8, top_k=2)),
            context=32_768,
        ),
    }
)
