"""Longformer, an encoder with local and global attention (arXiv 2004.05150), as Hugging Face folders hold it.

`attention_window` counts the keys on both sides without the query's own, so 512 there is a window of 513 here.
`attention_dilation`, the original implementation's key, is read where it is given: one distance a layer. transformers
knows none. The original's other `attention_mode`s count `attention_window` on one side, so they are refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from sash.attention.pattern import AttentionPattern
from sash.families.description import Description, Source, account
from sash.families.huggingface import INERT, n_layers
from sash.families.reading import MAX_HEADS, MAX_POSITIONS, MAX_VOCABULARY, ConfigReader
from sash.network.encoder_config import Activation, EncoderConfig, encoder_shapes

LONGFORMER_INERT = INERT | {
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "gradient_checkpointing",
    "ignore_attention_mask",  # of padding, and nothing is padded here
    "onnx_export",
}

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

OUTER = {
    "tok_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "type_embeddings": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}
INNER = {
    "attention.wq": "attention.self.query",
    "attention.wk": "attention.self.key",
    "attention.wv": "attention.self.value",
    "attention.wq_global": "attention.self.query_global",
    "attention.wk_global": "attention.self.key_global",
    "attention.wv_global": "attention.self.value_global",
    "attention.wo": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.w1": "intermediate.dense",
    "feed_forward.w2": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
HEAD = {"head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm", "output": "lm_head.decoder"}

DECODER_WEIGHT, DECODER_BIAS = "lm_head.decoder.weight", "lm_head.decoder.bias"
UNNEEDED = (r"(longformer\.)?embeddings\.position_ids", r"(longformer\.)?pooler\.dense\.(weight|bias)")


def from_huggingface(source: Source) -> Description:
    """Read a folder of LongformerForMaskedLM, or of LongformerModel, which has no masked-LM head.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = ConfigReader(source.config)
    for key, value in (("position_embedding_type", "absolute"), ("attention_mode", "longformer")):
        keys.fixed(key, value)
    for key in ("autoregressive", "is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"):
        keys.fixed(key, False)
    config = _config(keys, source.names)
    keys.finish(LONGFORMER_INERT)
    weights = dict(_weights(config, source.names))
    spare_bias = () if weights.get("head.bias") == "lm_head.bias" else (r"lm_head\.bias",)
    return Description(config, weights, account(weights, source.names, (*UNNEEDED, *spare_bias)))


def _config(keys: ConfigReader, names: frozenset[str]) -> EncoderConfig:
    dim, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads", high=MAX_HEADS)
    if dim % heads:
        raise keys.refusal("hidden_size", f"a multiple of num_attention_heads = {heads}")
    end = keys.integer("sep_token_id", None, low=0, high=MAX_VOCABULARY)
    tied = keys.flag("tie_word_embeddings", True)
    return EncoderConfig(
        vocab_size=keys.integer("vocab_size", high=MAX_VOCABULARY),
        dim=dim,
        n_heads=heads,
        head_dim=dim // heads,
        hidden_dim=keys.integer("intermediate_size"),
        patterns=_patterns(keys, n_layers(keys)),
        norm_eps=keys.number("layer_norm_eps", 1e-12, high=1.0),
        max_positions=keys.integer("max_position_embeddings", high=MAX_POSITIONS),
        n_types=keys.integer("type_vocab_size", 2),
        pad_id=keys.integer("pad_token_id", 1, low=0, high=MAX_VOCABULARY),
        end_id=end if end is not None else _single_end(keys),
        activation=ACTIVATIONS[keys.text("hidden_act", ACTIVATIONS, "gelu")],
        has_head=not names or any(name.startswith("lm_head.") for name in names),
        # A tied head that the checkpoint stores is taken from it, which is exact whether the two are equal or not.
        tied_embeddings=tied and DECODER_WEIGHT not in names,
    )


def _single_end(keys: ConfigReader) -> int | None:
    """`eos_token_id`, which may also be a list, whose first entry ends a text."""
    value = keys.raw("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) and not isinstance(first, bool) and first >= 0 else None


def _patterns(keys: ConfigReader, count: int) -> tuple[AttentionPattern, ...]:
    """A symmetric window a layer; equal layers share a pattern."""
    windows = _per_layer(keys, "attention_window", count, default=512)
    if not all(window % 2 == 0 for window in windows):
        raise keys.refusal("attention_window", "even, half of it on either side, one number or one a layer")
    raw = keys.raw("attention_dilation")
    if isinstance(raw, list) and any(isinstance(entry, list) for entry in raw):
        raise keys.refusal("attention_dilation", "one distance a layer, for dilation by head is not supported")
    dilations = _per_layer(keys, "attention_dilation", count, default=1)
    kinds = {
        (window, dilation): AttentionPattern(causal=False, window=window + 1, dilation=dilation, global_tokens=True)
        for window, dilation in zip(windows, dilations, strict=True)
    }
    return tuple(kinds[pair] for pair in zip(windows, dilations, strict=True))


def _per_layer(keys: ConfigReader, key: str, count: int, default: int) -> tuple[int, ...]:
    """A whole number above 0 for each layer, from one number or a list of them."""
    value = keys.raw(key)
    values = value if isinstance(value, list | tuple) else (default if value is None else value,) * count
    whole = [entry for entry in values if isinstance(entry, int) and not isinstance(entry, bool)]
    if len(values) != count or len(whole) != count or not all(1 <= entry <= MAX_POSITIONS for entry in whole):
        raise keys.refusal(key, f"a whole number above 0, or a list of {count} of them, one a layer")
    return tuple(whole)


def _weights(config: EncoderConfig, names: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(our name, theirs) of every parameter; LongformerModel saves its own without a prefix."""
    within = config.has_head if not names else f"longformer.{OUTER['tok_embeddings']}.weight" in names
    prefix = "longformer." if within else ""
    # Where the head is not tied, only the decoder's own bias is computed with; where it is, both are one.
    own_bias = DECODER_BIAS in names or (not names and not config.tied_embeddings)
    for ours in encoder_shapes(config):
        stem, kind = ours.rsplit(".", 1)
        if ours == "head.bias":
            yield ours, DECODER_BIAS if own_bias else "lm_head.bias"
        elif stem in HEAD:
            yield ours, f"{HEAD[stem]}.{kind}"
        elif stem in OUTER:
            yield ours, f"{prefix}{OUTER[stem]}.{kind}"
        else:
            _, index, part = stem.split(".", 2)
            yield ours, f"{prefix}encoder.layer.{index}.{INNER[part]}.{kind}"
