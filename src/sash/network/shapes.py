"""The parameters of a decoder: their names, their shapes, how many there are. Needs no torch.

Names are those of Mistral's own files. A linear layer's weight has the shape (outputs, inputs).
"""

from __future__ import annotations

from math import prod

from sash.network.config import LayerConfig, ModelConfig, MoEConfig

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every parameter, from the input up; a tied output head is not listed again.

    Returns:
        For example `layers.0.attention.wq.weight` -> (n_heads * head_dim, dim).
    """
    blocks = {layer.moe: _block(config, layer) for layer in config.layers}
    shapes: dict[str, Shape] = {"tok_embeddings.weight": (config.vocab_size, config.dim)}
    for index, layer in enumerate(config.layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in blocks[layer.moe].items()}
    shapes["norm.weight"] = (config.dim,)
    if not config.tied_embeddings:
        shapes["output.weight"] = (config.vocab_size, config.dim)
    return shapes


def n_parameters(config: ModelConfig) -> int:
    """Parameters of the whole model; a tied output head counts once."""
    return sum(prod(shape) for shape in parameter_shapes(config).values())


def n_active_parameters(config: ModelConfig) -> int:
    """Parameters that take part in one token's prediction: all, but only `top_k` experts of every mixture.

    Embedding and output head count whole, as in the 13B of Mixtral 8x7B's paper (arXiv 2401.04088, section 3).
    """
    idle = sum(
        _size(_feed_forward(config, layer.moe)) - _active_feed_forward(config, layer.moe) for layer in config.layers
    )
    return n_parameters(config) - idle


def _block(config: ModelConfig, layer: LayerConfig) -> dict[str, Shape]:
    """Names within a layer."""
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads, "wv": config.n_kv_heads}
    shapes: dict[str, Shape] = {"attention_norm.weight": (config.dim,)}
    shapes |= {f"attention.{w}.weight": (n * config.head_dim, config.dim) for w, n in heads.items()}
    if config.qkv_bias:
        shapes |= {f"attention.{w}.bias": (n * config.head_dim,) for w, n in heads.items()}
    if config.qk_norm:
        shapes |= {f"attention.{norm}.weight": (config.head_dim,) for norm in ("q_norm", "k_norm")}
    shapes["attention.wo.weight"] = (config.dim, config.n_heads * config.head_dim)
    if config.post_norms:
        shapes["attention_post_norm.weight"] = (config.dim,)
    shapes["ffn_norm.weight"] = (config.dim,)
    shapes |= {f"feed_forward.{name}": shape for name, shape in _feed_forward(config, layer.moe).items()}
    if config.post_norms:
        shapes["ffn_post_norm.weight"] = (config.dim,)
    return shapes


def _feed_forward(config: ModelConfig, moe: MoEConfig | None) -> dict[str, Shape]:
    """Names within a gated feed-forward network, or within a mixture of them, however deep."""
    if moe is None:
        up, down = (config.hidden_dim, config.dim), (config.dim, config.hidden_dim)
        return {"w1.weight": up, "w2.weight": down, "w3.weight": up}
    expert = _feed_forward(config, moe.expert)
    router: dict[str, Shape] = {"gate.weight": (moe.n_experts, config.dim)}
    return router | {f"experts.{e}.{name}": shape for e in range(moe.n_experts) for name, shape in expert.items()}


def _active_feed_forward(config: ModelConfig, moe: MoEConfig | None) -> int:
    """Parameters of a feed-forward network that one token meets."""
    if moe is None:
        return _size(_feed_forward(config, None))
    return moe.n_experts * config.dim + moe.top_k * _active_feed_forward(config, moe.expert)


def _size(shapes: dict[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values())
