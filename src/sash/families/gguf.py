"""What the decoders of GGUF files have in common.

Only keys under the architecture's own name ("llama.attention.head_count") shape the network; whatever else a file
says describes its origin, its tokenizer, or how it was quantised.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Literal

from sash.families.description import Source
from sash.families.reading import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    ConfigReader,
)
from sash.families.rope import MIN_THETA, gguf_scaling
from sash.network.config import ModelConfig, MoEConfig, RopeConfig

SOURCE = "GGUF metadata"


def reader(source: Source, architecture: str) -> ConfigReader:
    """The keys of one architecture, without its name in front.

    Raises:
        ConfigError: the file is an adapter, a projector, or one part of several.
    """
    general = ConfigReader(source.config, SOURCE)
    general.fixed("general.type", "model")
    if general.integer("split.count", 1, low=0) > 1:
        raise general.refusal("split.count", "1: join the parts with `llama-gguf-split --merge` first")
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in source.config.items() if key.startswith(prefix)}
    keys = ConfigReader(own, SOURCE, prefix)
    keys.fixed("attention.causal", True)
    for name in (
        "attention.clamp_kqv",
        "attention.max_alibi_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    ):
        keys.fixed(name, 0.0)
    keys.fixed("use_parallel_residual", False)
    return keys


def n_layers(keys: ConfigReader) -> int:
    """How many layers there are."""
    return keys.integer("block_count", high=MAX_LAYERS)


def n_heads(keys: ConfigReader, key: str, default: int | None = None) -> int:
    """A number of heads; converters may write it once a layer, but it must be the same in all."""
    value = keys.raw(key)
    if isinstance(value, list | tuple):
        heads = value[0] if len(value) == n_layers(keys) else None
        if isinstance(heads, bool) or not isinstance(heads, int) or not 1 <= heads <= MAX_HEADS:
            raise keys.refusal(key, "a number of heads, or one for each layer")
        if any(other != heads for other in value):
            raise keys.refusal(key, "the same in every layer")
        return heads
    if default is None:
        return keys.integer(key, high=MAX_HEADS)
    return keys.integer(key, default, high=MAX_HEADS)


def head_dim(keys: ConfigReader) -> int:
    """Dimension of a head: of queries, keys and values alike, all of it rotated.

    Raises:
        ConfigError: values of another dimension, or a part of the head that is not rotated.
    """
    per_head = max(1, keys.integer("embedding_length") // n_heads(keys, "attention.head_count"))
    size = keys.integer("attention.key_length", per_head)
    for name, default in (("attention.value_length", per_head), ("rope.dimension_count", size)):
        if keys.integer(name, default) != size:
            raise keys.refusal(name, f"{size}, as attention.key_length is")
    return size


def rope(keys: ConfigReader, theta: float, layout: Literal["half", "interleaved"]) -> RopeConfig:
    """The rotary embedding of layers that have no other."""
    theta = keys.number("rope.freq_base", theta, above=MIN_THETA)
    return RopeConfig(theta=theta, layout=layout, scaling=gguf_scaling(keys, context_length(keys)))


def context_length(keys: ConfigReader) -> int:
    """Positions the model was trained on; 0 where the file does not say."""
    return keys.integer("context_length", 0, high=MAX_POSITIONS)


def moe(keys: ConfigReader) -> MoEConfig | None:
    """The mixture of every layer; None where there are no experts.

    Raises:
        ConfigError: experts of another width than the file's feed-forward networks.
    """
    experts = keys.integer("expert_count", 0, low=0, high=MAX_EXPERTS)
    if not experts:
        keys.fixed("expert_used_count", 0)
        return None
    keys.fixed("expert_feed_forward_length", keys.integer("feed_forward_length"))
    return MoEConfig(n_experts=experts, top_k=keys.integer("expert_used_count", high=experts))


def decoder(keys: ConfigReader, source: Source, **own: Any) -> ModelConfig:
    """A decoder whose sizes are read from `keys`; `own` is what the family decided, and wins.

    The output head is tied where the file stores none.

    Raises:
        ConfigError: a value out of range.
    """
    heads = n_heads(keys, "attention.head_count")
    sizes: dict[str, Any] = {
        "vocab_size": _vocabulary(keys, source),
        "dim": keys.integer("embedding_length"),
        "n_heads": heads,
        "n_kv_heads": n_heads(keys, "attention.head_count_kv", heads),
        "head_dim": head_dim(keys),
        "hidden_dim": keys.integer("feed_forward_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon", high=1.0),
        "context": context_length(keys),
        "tied_embeddings": bool(source.names) and "output.weight" not in source.names,
    }
    return ModelConfig(**{**sizes, **own})


def _vocabulary(keys: ConfigReader, source: Source) -> int:
    """Tokens: as the network's keys say, or else as many as the tokenizer has."""
    tokens = source.config.get("tokenizer.ggml.tokens")
    if "vocab_size" in keys or not isinstance(tokens, Sized) or not 0 < len(tokens) <= MAX_VOCABULARY:
        return keys.integer("vocab_size", high=MAX_VOCABULARY)
    return len(tokens)
