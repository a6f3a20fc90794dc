"""Longformer's configuration and tensor names."""

from math import prod

import pytest

from sash.errors import CheckpointError, ConfigError
from sash.families import Description, describe
from sash.network.encoder_config import EncoderConfig, encoder_shapes

BASE_4096 = {
    "attention_mode": "longformer",
    "attention_probs_dropout_prob": 0.1,
    "attention_window": [512] * 12,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "ignore_attention_mask": False,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4098,
    "model_type": "longformer",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
"""What the published base model's config.json holds."""

SMALL = BASE_4096 | {
    "attention_window": 8,
    "hidden_size": 12,
    "intermediate_size": 20,
    "max_position_embeddings": 60,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}


def described(names: frozenset[str] = frozenset(), **changes: object) -> Description:
    return describe("huggingface", {**SMALL, **changes}, names)


def encoder(names: frozenset[str] = frozenset(), **changes: object) -> EncoderConfig:
    config = described(names, **changes).config
    assert isinstance(config, EncoderConfig)
    return config


def test_the_published_base_model() -> None:
    description = describe("huggingface", BASE_4096)
    config = description.config
    assert isinstance(config, EncoderConfig)
    assert (config.architecture, config.windows, config.context) == ("longformer", (513,) * 12, 4096)
    assert (config.dim, config.n_heads, config.head_dim, config.hidden_dim) == (768, 12, 64, 3072)
    assert (config.pad_id, config.end_id, config.n_types, config.norm_eps) == (1, 2, 1, 1e-5)
    assert (config.has_head, config.tied_embeddings, config.activation) == (True, True, "gelu")
    assert set(description.weights) == set(encoder_shapes(config))
    parameters = sum(prod(shape) for shape in encoder_shapes(config).values())
    assert parameters == 148_711_257  # 148,659,456 of LongformerModel without its pooler, and the head's own


def test_windows_and_dilations() -> None:
    assert encoder(attention_window=8).windows == (9, 9)
    config = encoder(attention_window=[8, 20], attention_dilation=[1, 3])
    assert config.windows == (9, 21)
    assert [pattern.dilation for pattern in config.patterns] == [1, 3]
    assert [pattern.reach_back for pattern in config.patterns] == [4, 30]
    assert all(pattern.global_tokens and not pattern.causal for pattern in config.patterns)
    assert [pattern.dilation for pattern in encoder(attention_dilation=2).patterns] == [2, 2]
    assert encoder(attention_window=None).windows == (513, 513)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_window": 7}, "attention_window must be even"),
        ({"attention_window": [8, 9]}, "attention_window must be even"),
        ({"attention_window": [8]}, "a list of 2 of them"),
        ({"attention_window": [8, 8, 8]}, "a list of 2 of them"),
        ({"attention_window": 0}, "whole number above 0"),
        ({"attention_window": [8, -8]}, "whole number above 0"),
        ({"attention_window": "8"}, "whole number above 0"),
        ({"attention_window": [8, True]}, "whole number above 0"),
        ({"attention_dilation": [1]}, "a list of 2 of them"),
        (
            {"attention_dilation": [[1, 1, 2], [1, 1, 2]]},
            "attention_dilation must be .*dilation by head is not supported",
        ),
        ({"attention_dilation": 0}, "attention_dilation must be a whole number above 0"),
        ({"attention_mode": "sliding_chunks"}, "attention_mode = 'sliding_chunks' would change the result"),
        ({"autoregressive": True}, "autoregressive = True would change the result"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "quick_gelu"}, "hidden_act must be one of"),
        ({"hidden_size": 13}, "hidden_size must be a multiple of num_attention_heads = 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"max_position_embeddings": 2}, "leaves no position"),
        ({"pad_token_id": 40}, "pad_id = 40"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"rope_theta": 10000.0}, "rope_theta = 10000.0 is not understood"),
    ],
    ids=str,
)
def test_refused_configurations(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        described(**changes)


def usual_names(**changes: object) -> frozenset[str]:
    return frozenset(described(**changes).weights.values())


def test_a_head_that_is_stored_is_used() -> None:
    stored = usual_names() | {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    weights = described(stored).weights
    assert weights["output.weight"] == "lm_head.decoder.weight"
    assert weights["head.bias"] == "lm_head.decoder.bias"
    assert described(stored).ignored == {"lm_head.bias"}
    untied = described(tie_word_embeddings=False).weights
    assert (untied["output.weight"], untied["head.bias"]) == ("lm_head.decoder.weight", "lm_head.decoder.bias")
    assert described().weights["head.bias"] == "lm_head.bias"


def test_a_model_without_a_head() -> None:
    bare = frozenset(name.removeprefix("longformer.") for name in usual_names() if not name.startswith("lm_head.")) | {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "embeddings.position_ids",
    }
    description = described(bare)
    assert isinstance(description.config, EncoderConfig)
    assert not description.config.has_head
    assert description.ignored == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert set(description.weights) == set(encoder_shapes(description.config))


def test_tensors_are_accounted_for() -> None:
    names = usual_names()
    with pytest.raises(ConfigError, match=r"tensor classifier\.dense\.weight is not understood"):
        described(names | {"classifier.dense.weight"})
    with pytest.raises(
        CheckpointError, match=r"tensor longformer\.encoder\.layer\.1\.attention\.self\.key_global\.bias"
    ):
        described(names - {"longformer.encoder.layer.1.attention.self.key_global.bias"})
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.decoder\.weight"):
        described(names, tie_word_embeddings=False)
