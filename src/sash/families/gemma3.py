"""Gemma 3, text: five windowed layers, then a full one, each kind with a rotary base of its own.

Constants of the architecture, which its files may leave out: the period of 6, the windowed layers' base of 10,000,
which no rotary scaling touches, embeddings times sqrt(dim), GeGLU, four norms a block, and norms of queries and keys.
Hugging Face files store norm weights less 1, GGUF files store them whole. The text part of a model that also sees
(`model_type` "gemma3") reads like any other.
"""

from __future__ import annotations

import math
from typing import Any

from sash.families import gguf, names
from sash.families.description import Description, Source
from sash.families.huggingface import INERT, context_length, decoder, layers_of, n_layers, windowed_layers
from sash.families.reading import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from sash.families.rope import MIN_THETA, layered_rope
from sash.network.config import ModelConfig, RopeConfig

PERIOD = 6
FULL_THETA = 1_000_000.0
WINDOWED_THETA = 10_000.0
LAYERS_OF_27B = 62

DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
"""What transformers takes for keys that are missing: the files of the larger models leave most of them out."""

SEEING = (r"(?:model\.)?vision_tower\..+", r"(?:model\.)?multi_modal_projector\..+")
SEEING_KEYS = frozenset(
    (
        "boi_token_id",
        "boi_token_index",
        "eoi_token_id",
        "eoi_token_index",
        "image_token_id",
        "image_token_index",
        "mm_tokens_per_image",
        "vision_config",
    )
)


def from_huggingface(source: Source) -> Description:
    """Read a Hugging Face folder, of text alone or with an eye.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    outer = ConfigReader(source.config)
    if outer.raw("model_type") != "gemma3":
        config = _text(source.config, source.names)
        return names.huggingface(config, source.names)
    text = outer.raw("text_config")
    if not isinstance(text, dict):
        raise outer.refusal("text_config", "an object: it describes the part that reads text")
    outer.fixed("tie_word_embeddings", True)
    outer.finish(INERT | SEEING_KEYS)
    return names.huggingface(_text(text, source.names, "text_config."), source.names, SEEING)


def from_gguf(source: Source) -> Description:
    """Read a GGUF file.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = gguf.reader(source, "gemma3")
    keys.raw("mm.tokens_per_image")
    count = gguf.n_layers(keys)
    window = keys.integer("attention.sliding_window", high=MAX_POSITIONS)
    windows = tuple(window if has else None for has in _gguf_windowed(keys, count))
    full = gguf.rope(keys, FULL_THETA, layout="half")
    windowed = RopeConfig(theta=keys.number("rope.freq_base_swa", WINDOWED_THETA, above=MIN_THETA))
    dim, heads = keys.integer("embedding_length"), gguf.n_heads(keys, "attention.head_count")
    # The file lacks the scale of the scores; of the released sizes only 27B differs from head_dim ** -0.5.
    scale = (dim / heads) ** -0.5 if count == LAYERS_OF_27B else None
    own = _architecture(dim) | {"layers": layers_of(windows, full, windowed), "attention_scale": scale}
    if not source.names:
        own["tied_embeddings"] = True
    config = gguf.decoder(keys, source, **own)
    keys.finish()
    return names.gguf(config, source.names)


def _text(values: object, tensors: frozenset[str], path: str = "") -> ModelConfig:
    given = ConfigReader(values, path=path).given()
    keys = ConfigReader(DEFAULTS | given, path=path)
    keys.fixed("model_type", "gemma3_text")
    for name in ("hidden_activation", "hidden_act"):
        keys.fixed(name, "gelu_pytorch_tanh")
    for name in ("final_logit_softcapping", "attn_logit_softcapping"):
        keys.fixed(name)
    keys.fixed("use_bidirectional_attention", False)
    count, context = n_layers(keys), context_length(keys)
    window = keys.integer("sliding_window", high=MAX_POSITIONS)
    period = keys.integer("sliding_window_pattern", keys.integer("_sliding_window_pattern", PERIOD), high=MAX_LAYERS)
    windowed = windowed_layers(keys, count) or _windowed(count, period)
    ropes = layered_rope(keys, FULL_THETA, WINDOWED_THETA, context)
    layers = layers_of(tuple(window if has else None for has in windowed), *ropes)
    scale = keys.number("query_pre_attn_scalar", high=1e6) ** -0.5
    own = _architecture(keys.integer("hidden_size")) | {"norm_offset": 1.0, "attention_scale": scale}
    config = decoder(keys, tensors, layers=layers, context=context, **own)
    keys.finish(INERT)
    return config


def _architecture(dim: int) -> dict[str, Any]:
    """What is the same in every file."""
    return {
        "architecture": "gemma3",
        "activation": "gelu_tanh",
        "embedding_scale": math.sqrt(dim),
        "qk_norm": True,
        "post_norms": True,
    }


def _windowed(count: int, period: int) -> tuple[bool, ...]:
    """Which layers have the window: all but every `period`-th.

    >>> "".join("W" if has else "F" for has in _windowed(18, 6))
    'WWWWWFWWWWWFWWWWWF'
    """
    return tuple((index + 1) % period != 0 for index in range(count))


def _gguf_windowed(keys: ConfigReader, count: int) -> tuple[bool, ...]:
    """The pattern as a period, or layer by layer; files of 2025 leave it out."""
    key = "attention.sliding_window_pattern"
    value = keys.raw(key)
    if isinstance(value, list | tuple):
        if len(value) != count or not all(isinstance(has, bool) for has in value):
            raise keys.refusal(key, f"a period, or true and false for each of {count} layers")
        return tuple(bool(has) for has in value)
    return _windowed(count, keys.integer(key, PERIOD, high=MAX_LAYERS))
