"""What the decoders of Hugging Face folders have in common."""

from __future__ import annotations

from typing import Any

from sash.attention.pattern import AttentionPattern
from sash.families.description import logger
from sash.families.reading import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, ConfigReader
from sash.network.config import LayerConfig, ModelConfig, RopeConfig

INERT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path architectures attention_dropout attn_implementation
    bad_words_ids begin_suppress_tokens bos_token bos_token_id cache_implementation chunk_size_feed_forward
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size
    eos_token eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder is_llama_config label2id length_penalty
    license max_length min_length model_name model_type no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_attentions output_hidden_states output_router_logits output_scores pad_token
    pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()  # noqa: SIM905 (a table of 90 words is easier to read than a list of them)
)
"""Keys that do not change what a decoder computes when it reads: training, storage, generation defaults, labels."""

LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}


def n_layers(keys: ConfigReader, default: int | None = None) -> int:
    """How many layers there are."""
    if default is None:
        return keys.integer("num_hidden_layers", high=MAX_LAYERS)
    return keys.integer("num_hidden_layers", default, high=MAX_LAYERS)


def context_length(keys: ConfigReader, default: int = 0) -> int:
    """Positions the model was trained on; 0 where the configuration does not say."""
    return keys.integer("max_position_embeddings", default, high=MAX_POSITIONS)


def windowed_layers(keys: ConfigReader, count: int) -> tuple[bool, ...] | None:
    """Which layers have the window, by `layer_types`; None where that is not written."""
    types = keys.sequence("layer_types", count)
    if types is None:
        return None
    if not all(isinstance(kind, str) and kind in LAYER_TYPES for kind in types):
        raise keys.refusal("layer_types", "a list of full_attention and sliding_attention")
    return tuple(LAYER_TYPES[str(kind)] for kind in types)


def layers_of(windows: tuple[int | None, ...], rope: RopeConfig, windowed_rope: RopeConfig) -> tuple[LayerConfig, ...]:
    """Layers that differ in their windows, and in the rotary embedding if windowed ones have their own."""
    kinds = {
        window: LayerConfig(pattern=AttentionPattern(window=window), rope=windowed_rope if window else rope)
        for window in set(windows)
    }
    return tuple(kinds[window] for window in windows)


def check_common(keys: ConfigReader) -> None:
    """Refuse values of keys that all families share and that could change the result."""
    keys.fixed("attention_bias", False)
    keys.fixed("mlp_bias", False)
    keys.fixed("is_encoder_decoder", False)
    keys.fixed("add_cross_attention", False)
    keys.fixed("tie_encoder_decoder", False)
    keys.fixed("rope_interleaved", False)


def decoder(keys: ConfigReader, names: frozenset[str], **own: Any) -> ModelConfig:
    """A decoder whose sizes are read from `keys`; `own` is what the family decided, and wins.

    A head that is tied by the configuration but stored in the checkpoint is taken from the checkpoint, which is exact
    whether the two are equal or not.

    Raises:
        ConfigError: a value out of range.
    """
    check_common(keys)
    dim, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads", high=MAX_HEADS)
    tied = keys.flag("tie_word_embeddings", False)
    sizes: dict[str, Any] = {
        "vocab_size": keys.integer("vocab_size", high=MAX_VOCABULARY),
        "dim": dim,
        "n_heads": heads,
        "n_kv_heads": keys.integer("num_key_value_heads", heads, high=MAX_HEADS),
        "head_dim": keys.integer("head_dim", max(1, dim // heads)),
        "hidden_dim": keys.integer("intermediate_size"),
        "norm_eps": keys.number("rms_norm_eps", 1e-6, high=1.0),
        "tied_embeddings": tied,
    }
    sizes |= own
    if sizes["tied_embeddings"] and any(name.endswith("lm_head.weight") for name in names):
        logger.info("the configuration ties the output head, but the checkpoint stores one: using the stored one")
        sizes["tied_embeddings"] = False
    return ModelConfig(**sizes)
