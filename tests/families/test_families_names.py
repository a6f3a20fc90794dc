"""Every tensor of a checkpoint is mapped or known to be unneeded, in every layout."""

from typing import Any

import pytest

from sash.errors import CheckpointError, ConfigError, UsageError
from sash.families import TensorSlice, describe, parse_slice
from sash.families.description import account
from sash.network.config import RopeScaling
from sash.network.shapes import parameter_shapes

Configs = dict[str, dict[str, Any]]

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SMALL_GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 16,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 50,
}


def tensors(kind: Any, config: dict[str, Any]) -> frozenset[str]:
    """The usual tensors of such a checkpoint."""
    return frozenset(parse_slice(weight).name for weight in describe(kind, config).weights.values())


@pytest.mark.parametrize("prefix", ["model.", "language_model.model.", "model.language_model.", ""])
def test_a_decoder_may_stand_anywhere(prefix: str) -> None:
    config = SMALL | {"model_type": "llama"}
    names = frozenset(name.replace("model.", prefix) for name in tensors("huggingface", config))
    description = describe("huggingface", config, names)
    assert description.weights["layers.1.attention.wq.weight"] == f"{prefix}layers.1.self_attn.q_proj.weight"
    assert set(description.weights.values()) == names
    assert list(description.weights) == list(parameter_shapes(description.decoder))


def test_a_missing_tensor() -> None:
    config = SMALL | {"model_type": "llama"}
    names = tensors("huggingface", config) - {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        describe("huggingface", config, names)
    with pytest.raises(CheckpointError, match=r"and \d+ more is missing"):
        describe("huggingface", config | {"num_hidden_layers": 3}, names)


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_proj.weight_scale_inv",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.sinks",
        "vision_tower.weight",
    ],
)
def test_a_tensor_too_many(extra: str) -> None:
    config = SMALL | {"model_type": "llama"}
    with pytest.raises(ConfigError, match="not understood and could change the result") as caught:
        describe("huggingface", config, tensors("huggingface", config) | {extra})
    assert extra in str(caught.value)


def test_tables_of_angles_are_unneeded() -> None:
    config = SMALL | {"model_type": "llama"}
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    description = describe("huggingface", config, tensors("huggingface", config) | {table})
    assert description.ignored == {table}


def test_a_head_that_is_tied_yet_stored_is_taken_from_the_checkpoint() -> None:
    config = SMALL | {"model_type": "llama", "tie_word_embeddings": True}
    names = tensors("huggingface", config)
    assert "lm_head.weight" not in names
    assert describe("huggingface", config, names).decoder.tied_embeddings
    stored = describe("huggingface", config, names | {"lm_head.weight"})
    assert not stored.decoder.tied_embeddings
    assert stored.weights["output.weight"] == "lm_head.weight"


def test_gemma_that_sees_reads_as_text() -> None:
    config = {"model_type": "gemma3", "text_config": SMALL | {"head_dim": 4}, "vision_config": {"hidden_size": 8}}
    text = frozenset(
        f"language_model.{name}"
        for name in tensors("huggingface", config["text_config"] | {"model_type": "gemma3_text"})
    )
    eye = frozenset({"vision_tower.encoder.weight", "multi_modal_projector.mm_soft_emb_norm.weight"})
    description = describe("huggingface", config, text | eye)
    assert description.ignored == eye
    assert description.weights["layers.0.ffn_norm.weight"].endswith("layers.0.pre_feedforward_layernorm.weight")
    assert description.weights["layers.0.attention_post_norm.weight"].endswith("post_attention_layernorm.weight")


MIXTRAL = SMALL | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


def test_fused_experts_are_slices() -> None:
    plain = tensors("huggingface", MIXTRAL)
    assert "model.layers.1.block_sparse_moe.experts.2.w3.weight" in plain
    fused = frozenset(name for name in plain if "block_sparse_moe" not in name) | {
        f"model.layers.{layer}.mlp.{part}"
        for layer in range(2)
        for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    }
    weights = describe("huggingface", MIXTRAL, fused).weights
    stem = "model.layers.1.mlp.experts"
    expert = "layers.1.feed_forward.experts.2"
    assert parse_slice(weights[f"{expert}.w1.weight"]) == TensorSlice(f"{stem}.gate_up_proj", (2, slice(0, 24)))
    assert parse_slice(weights[f"{expert}.w3.weight"]) == TensorSlice(f"{stem}.gate_up_proj", (2, slice(24, 48)))
    assert parse_slice(weights[f"{expert}.w2.weight"]) == TensorSlice(f"{stem}.down_proj", (2,))
    assert weights["layers.1.feed_forward.gate.weight"] == "model.layers.1.mlp.gate.weight"


def test_experts_of_gguf_files_old_and_new() -> None:
    config = SMALL_GGUF | {"llama.expert_count": 3, "llama.expert_used_count": 2}
    names = tensors("gguf", config)
    ours = "layers.1.feed_forward.experts.2.w2.weight"
    assert parse_slice(describe("gguf", config, names).weights[ours]) == TensorSlice("blk.1.ffn_down_exps.weight", (2,))
    old = frozenset(name for name in names if "_exps" not in name) | {
        f"blk.{layer}.ffn_{part}.{expert}.weight"
        for layer in range(2)
        for part in ("gate", "down", "up")
        for expert in range(3)
    }
    assert describe("gguf", config, old).weights[ours] == "blk.1.ffn_down.2.weight"


@pytest.mark.parametrize(
    "weight", ["norm.weight", "a[b]", "a[-1]", "a[1", "a[1, 2]", "a[1,2:3]", "a[99999999]", "[1]", "a[1][2]", ""]
)
def test_what_is_no_slice_is_a_name(weight: str) -> None:
    assert parse_slice(weight) == TensorSlice(weight)


def test_without_names_nothing_is_checked() -> None:
    assert account({"norm.weight": "gone"}, frozenset()) == frozenset()
    with pytest.raises(CheckpointError, match="gone"):
        account({"norm.weight": "gone"}, frozenset({"other"}))


def test_the_vocabulary_is_what_the_tokenizer_has() -> None:
    config = {key: value for key, value in SMALL_GGUF.items() if key != "llama.vocab_size"}
    tokens = [f"<{index}>" for index in range(71)]
    assert describe("gguf", config | {"tokenizer.ggml.tokens": tokens}).decoder.vocab_size == 71
    with pytest.raises(ConfigError, match="vocab_size is missing"):
        describe("gguf", config | {"tokenizer.ggml.tokens": 71})


def test_a_gguf_without_a_head_is_tied() -> None:
    names = tensors("gguf", SMALL_GGUF)
    assert "output.weight" in names
    assert not describe("gguf", SMALL_GGUF, names).decoder.tied_embeddings
    assert describe("gguf", SMALL_GGUF, names - {"output.weight"}).decoder.tied_embeddings


def test_frequency_divisors_are_read() -> None:
    names = tensors("gguf", SMALL_GGUF) | {"rope_freqs.weight"}
    description = describe("gguf", SMALL_GGUF, names, lambda name: [1.0, 8.0] if name == "rope_freqs.weight" else [])
    scaling = RopeScaling(kind="factors", factors=(1.0, 8.0))
    assert {layer.rope.scaling for layer in description.decoder.layers} == {scaling}
    assert description.ignored == {"rope_freqs.weight"}
    with pytest.raises(UsageError, match="read_vector"):
        describe("gguf", SMALL_GGUF, names)
    for vector in ([1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, -8.0], [1.0, 2.0, 3.0], []):
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight must hold 2 numbers"):
            describe("gguf", SMALL_GGUF, names, lambda name, vector=vector: vector)
    with pytest.raises(ConfigError, match="exclude each other"):
        describe("gguf", SMALL_GGUF | {"llama.rope.scaling.factor": 2.0}, names, lambda name: [1.0, 8.0])


GGUF_ROPE = [
    ({}, None),
    ({"type": "none", "factor": 4.0}, None),
    ({"factor": 0.0}, None),
    ({"factor": 1.0, "finetuned": True}, None),
    ({"factor": 4.0}, RopeScaling(kind="linear", factor=4.0)),
    ({"type": "linear", "factor": 4.0}, RopeScaling(kind="linear", factor=4.0)),
    (
        {"type": "yarn", "factor": 4.0, "original_context_length": 16},
        RopeScaling(kind="yarn", factor=4.0, original_context=16, attention_factor=pytest.approx(1.138629436)),  # type: ignore[arg-type]
    ),
]


@pytest.mark.parametrize(("values", "scaling"), GGUF_ROPE)
def test_rope_scaling_of_gguf_files(values: dict[str, Any], scaling: RopeScaling | None) -> None:
    config = SMALL_GGUF | {f"llama.rope.scaling.{key}": value for key, value in values.items()}
    found = describe("gguf", config).decoder.layers[0].rope.scaling
    if scaling is None or found is None:
        assert found is scaling
    else:
        assert (found.kind, found.factor, found.original_context) == (
            scaling.kind,
            scaling.factor,
            scaling.original_context,
        )
        assert scaling.attention_factor == found.attention_factor


def test_a_window_in_a_gguf_of_llama_kind_is_respected() -> None:
    assert describe("gguf", SMALL_GGUF | {"llama.attention.sliding_window": 7}).decoder.windows == (7, 7)
    assert describe("gguf", SMALL_GGUF | {"llama.attention.sliding_window": 0}).decoder.windows == (None, None)


def test_the_pattern_and_scaling_of_gemma_3_in_gguf(real_metadata: Configs) -> None:
    more = {
        "gemma3.attention.sliding_window_pattern": 3,
        "gemma3.rope.freq_base_swa": 5000.0,
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
    }
    config = describe("gguf", real_metadata["gemma-3-270m"] | more).decoder
    assert config.windows == (512, 512, None) * 6
    for layer in config.layers:
        full = layer.pattern.window is None
        assert layer.rope.theta == (1_000_000.0 if full else 5000.0)
        assert layer.rope.scaling == (RopeScaling(kind="linear", factor=8.0) if full else None)
    listed = {"gemma3.attention.sliding_window_pattern": [True, False] * 9}
    assert describe("gguf", real_metadata["gemma-3-270m"] | listed).decoder.windows == (512, None) * 9


def test_gemma_3_27b_scales_scores_by_dim_over_heads(real_metadata: Configs) -> None:
    large = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.head_count_kv": 16}
    large |= {"attention.key_length": 128, "attention.value_length": 128}
    config = real_metadata["gemma-3-270m"] | {f"gemma3.{key}": value for key, value in large.items()}
    assert describe("gguf", config).decoder.attention_scale == pytest.approx(168**-0.5)
    assert describe("gguf", real_metadata["gemma-3-270m"]).decoder.attention_scale is None
