"""What is not understood and could change the result is refused by name; junk gives clean errors."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sash.errors import CheckpointError, ConfigError, UnsupportedError
from sash.families import Description, describe
from sash.families.reading import ConfigReader

Configs = dict[str, dict[str, Any]]

ALL = {
    "huggingface": (
        "Mistral-7B-v0.1",
        "Mixtral-8x7B-v0.1",
        "Llama-3.1-8B",
        "gemma-3-270m",
        "gemma-3-4b-it",
        "Qwen2.5-1.5B",
    ),
    "mistral": ("Mistral-7B-v0.1", "Ministral-8B-Instruct-2410", "Mixtral-8x7B-v0.1"),
    "gguf": ("mixtral-8x7b-v0.1", "gemma-3-270m", "qwen2.5-1.5b"),
}


@pytest.fixture
def configs(real_configs: Configs, real_params: Configs, real_metadata: Configs) -> dict[str, Configs]:
    return {"huggingface": real_configs, "mistral": real_params, "gguf": real_metadata}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ALL.items() for name in names])
def test_an_unknown_key_is_refused(kind: Any, name: str, configs: dict[str, Configs]) -> None:
    config = configs[kind][name]
    prefix = f"{config['general.architecture']}." if kind == "gguf" else ""
    for value in (True, False, 3, 0.5, "yes", [1], {"a": 1}):
        with pytest.raises(ConfigError, match=f"{prefix}brand_new_trick = .* could change the result"):
            describe(kind, config | {f"{prefix}brand_new_trick": value})


REQUIRED = [
    *(
        ("huggingface", "Llama-3.1-8B", key)
        for key in (
            "model_type",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
    ),
    *(
        ("mistral", "Mistral-7B-v0.1", key)
        for key in ("dim", "n_layers", "hidden_dim", "n_heads", "norm_eps", "vocab_size")
    ),
    *(
        ("gguf", "mixtral-8x7b-v0.1", f"llama.{key}")
        for key in (
            "block_count",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.layer_norm_rms_epsilon",
            "vocab_size",
            "expert_used_count",
        )
    ),
    ("gguf", "gemma-3-270m", "gemma3.attention.sliding_window"),
    ("gguf", "gemma-3-270m", "general.architecture"),
]


@pytest.mark.parametrize(("kind", "name", "key"), REQUIRED)
def test_a_size_that_is_missing(kind: Any, name: str, key: str, configs: dict[str, Configs]) -> None:
    less = {other: value for other, value in configs[kind][name].items() if other != key}
    with pytest.raises(ConfigError, match=f"{key} is missing"):
        describe(kind, less)


ONE_KEY = [
    ("huggingface", "Llama-3.1-8B", "attention_bias", True),
    ("huggingface", "Llama-3.1-8B", "mlp_bias", True),
    ("huggingface", "Llama-3.1-8B", "hidden_act", "gelu"),
    ("huggingface", "Llama-3.1-8B", "partial_rotary_factor", 0.5),
    ("huggingface", "Llama-3.1-8B", "rope_interleaved", True),
    ("huggingface", "Llama-3.1-8B", "quantization_config", {"quant_method": "gptq"}),
    ("huggingface", "Llama-3.1-8B", "auto_map", {"AutoModel": "modeling.Model"}),
    ("huggingface", "Llama-3.1-8B", "sliding_window", 4096),
    ("huggingface", "Llama-3.1-8B", "vocab_size", True),
    ("huggingface", "Llama-3.1-8B", "vocab_size", 32.0),
    ("huggingface", "Llama-3.1-8B", "vocab_size", 10**12),
    ("huggingface", "Llama-3.1-8B", "hidden_size", 0),
    ("huggingface", "Llama-3.1-8B", "hidden_size", 10**7),
    ("huggingface", "Llama-3.1-8B", "num_hidden_layers", 10**9),
    ("huggingface", "Llama-3.1-8B", "num_attention_heads", "32"),
    ("huggingface", "Llama-3.1-8B", "rope_theta", float("nan")),
    ("huggingface", "Llama-3.1-8B", "rope_theta", 0.0),
    ("huggingface", "Llama-3.1-8B", "rms_norm_eps", -1e-5),
    ("huggingface", "Llama-3.1-8B", "tie_word_embeddings", 1),
    ("huggingface", "Mistral-7B-v0.1", "sliding_window", 0),
    ("huggingface", "Mistral-7B-v0.1", "sliding_window", [4096, None, 7]),
    ("huggingface", "Mistral-7B-v0.1", "sliding_window", []),
    ("huggingface", "Mistral-7B-v0.1", "layer_types", ["sliding_attention"]),
    ("huggingface", "Mistral-7B-v0.1", "layer_types", ["chunked_attention"] * 32),
    ("huggingface", "Mixtral-8x7B-v0.1", "num_experts_per_tok", 9),
    ("huggingface", "gemma-3-270m", "final_logit_softcapping", 30.0),
    ("huggingface", "gemma-3-270m", "attn_logit_softcapping", 50.0),
    ("huggingface", "gemma-3-270m", "use_bidirectional_attention", True),
    ("huggingface", "gemma-3-270m", "hidden_activation", "gelu"),
    ("huggingface", "gemma-3-4b-it", "text_config", None),
    ("huggingface", "Qwen2.5-1.5B", "use_mrope", True),
    ("mistral", "Mistral-7B-v0.1", "lora", {"rank": 64}),
    ("mistral", "Mistral-7B-v0.1", "vision_encoder", {"hidden_size": 1024}),
    ("mistral", "Mistral-7B-v0.1", "llama_4_scaling", {"beta": 0.1}),
    ("mistral", "Mistral-7B-v0.1", "use_biases", True),
    ("mistral", "Mistral-7B-v0.1", "causal", False),
    ("mistral", "Mistral-7B-v0.1", "_sliding_window", 4096),
    ("mistral", "Mistral-7B-v0.1", "model_type", "mamba"),
    ("gguf", "mistral-7b-v0.1", "llama.attention.causal", False),
    ("gguf", "mistral-7b-v0.1", "llama.attention.clamp_kqv", 8.0),
    ("gguf", "mistral-7b-v0.1", "llama.attention.value_length", 64),
    ("gguf", "mistral-7b-v0.1", "llama.attention.temperature_scale", 0.1),
    ("gguf", "mistral-7b-v0.1", "llama.rope.dimension_count", 64),
    ("gguf", "mistral-7b-v0.1", "llama.rope.scaling.type", "longrope"),
    ("gguf", "mistral-7b-v0.1", "llama.rope.scaling.attn_factor", 1.5),
    ("gguf", "mistral-7b-v0.1", "llama.rope.scaling.yarn_log_multiplier", 0.1),
    ("gguf", "mistral-7b-v0.1", "llama.rope.scaling.new_trick", 0.1),
    ("gguf", "mistral-7b-v0.1", "llama.logit_scale", 0.1),
    ("gguf", "mistral-7b-v0.1", "llama.final_logit_softcapping", 30.0),
    ("gguf", "mistral-7b-v0.1", "llama.attention.head_count_kv", [8] * 31 + [4]),
    ("gguf", "mistral-7b-v0.1", "general.type", "adapter"),
    ("gguf", "mistral-7b-v0.1", "split.count", 3),
    ("gguf", "mistral-7b-v0.1", "general.architecture", "falcon"),
    ("gguf", "mixtral-8x7b-v0.1", "llama.expert_feed_forward_length", 100),
    ("gguf", "mixtral-8x7b-v0.1", "llama.expert_gating_func", 2),
    ("gguf", "gemma-3-270m", "gemma3.attention.sliding_window", 0),
    ("gguf", "gemma-3-270m", "gemma3.attention.sliding_window_pattern", [True] * 3),
    ("gguf", "gemma-3-270m", "gemma3.attn_logit_softcapping", 50.0),
    ("gguf", "qwen2.5-1.5b", "qwen2.attention.sliding_window", 4096),
]


@pytest.mark.parametrize(("kind", "name", "key", "value"), ONE_KEY)
def test_a_value_that_is_refused(kind: Any, name: str, key: str, value: object, configs: dict[str, Configs]) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(kind, configs[kind][name] | {key: value})
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


ROPE = [
    ({"type": "dynamic", "factor": 2.0}, "type"),
    ({"rope_type": "longrope", "factor": 2.0}, "rope_type"),
    ({"rope_type": "linear"}, "factor"),
    ({"rope_type": "linear", "factor": -1}, "factor"),
    ({"rope_type": "linear", "factor": 2.0, "new_trick": 1}, "new_trick"),
    ({"rope_type": "default", "factor": 2.0}, "factor"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "high_freq_factor"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}, "low_freq_factor"),
    ({"rope_type": "yarn", "factor": 4.0, "truncate": False}, "truncate"),
    ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 0}, "beta_fast"),
    ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ([1], "rope_scaling"),
]


@pytest.mark.parametrize(("scaling", "key"), ROPE)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_a_rope_that_is_refused(scaling: object, key: str, spelling: str, real_configs: Configs) -> None:
    config = {k: v for k, v in real_configs["Llama-3.1-8B"].items() if k != "rope_scaling"}
    with pytest.raises(ConfigError, match="rope_" if key == "rope_scaling" else key):
        describe("huggingface", config | {spelling: scaling})


def test_windowed_layers_need_a_width(real_configs: Configs) -> None:
    config = real_configs["Qwen2.5-1.5B"] | {"layer_types": ["sliding_attention"] * 28}
    with pytest.raises(ConfigError, match="sliding_window"):
        describe("huggingface", config)
    config = real_configs["Mistral-7B-v0.3"] | {"layer_types": ["sliding_attention"] * 32}
    with pytest.raises(ConfigError, match="sliding_window"):
        describe("huggingface", config)


def test_a_mixture_too_large_to_list(real_configs: Configs) -> None:
    config = real_configs["Mixtral-8x7B-v0.1"] | {"num_hidden_layers": 10_000, "num_local_experts": 60_000}
    with pytest.raises(ConfigError, match="600000000 experts"):
        describe("huggingface", config)


def test_an_encoder_is_no_decoder() -> None:
    config = {
        "model_type": "longformer",
        "attention_window": [4, 6],
        "vocab_size": 60,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 40,
    }
    description = describe("huggingface", config)
    with pytest.raises(UnsupportedError, match="longformer is an encoder"):
        _ = description.decoder


@pytest.mark.parametrize("junk", [None, [], "config", 3, {1: 2}])
def test_a_config_that_is_no_object(junk: Any) -> None:
    for kind in ALL:
        with pytest.raises(ConfigError):
            describe(kind, junk)  # type: ignore[arg-type]


def test_messages_stay_short() -> None:
    reader = ConfigReader({"key": "x" * 10**6, "y" * 10**6: 1})
    with pytest.raises(ConfigError) as caught:
        reader.integer("key")
    assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError) as caught:
        reader.finish()
    assert len(str(caught.value)) < 400


def test_reader_bounds() -> None:
    reader = ConfigReader({"n": 5, "x": 0.5, "huge": 10**400, "flag": True, "word": "a", "list": [1], "none": None})
    assert (reader.integer("n", low=5, high=5), reader.number("x"), reader.flag("flag")) == (5, 0.5, True)
    assert (reader.integer("none", 7), reader.number("gone", None), reader.text("word", ("a", "b"))) == (7, None, "a")
    for read in (
        lambda: reader.integer("n", low=6),
        lambda: reader.integer("n", high=4),
        lambda: reader.integer("x"),
        lambda: reader.integer("flag"),
        lambda: reader.number("flag"),
        lambda: reader.number("huge"),
        lambda: reader.number("x", above=0.5),
        lambda: reader.text("word", ("b",)),
        lambda: reader.text("list", ("b",)),
        lambda: reader.sequence("list", 2),
        lambda: reader.sequence("word"),
        lambda: reader.integer("none"),
        lambda: reader.fixed("n", True),
        lambda: reader.fixed("flag", 1),
        lambda: reader.fixed("n"),
    ):
        with pytest.raises(ConfigError, match=r"config\.json"):
            read()
    reader.fixed("n", 5.0)
    reader.fixed("none", False)
    reader.finish()


def attempt(kind: Any, config: dict[str, Any]) -> Description | str:
    try:
        return describe(kind, config)
    except (ConfigError, CheckpointError) as error:
        return str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=120, **SETTINGS)
@given(data=st.data())
def test_junk_values_give_clean_errors(data: st.DataObject, configs: dict[str, Configs]) -> None:
    kind = data.draw(st.sampled_from(sorted(ALL)))
    config = copy.deepcopy(configs[kind][data.draw(st.sampled_from(ALL[kind]))])
    target = config
    for key in ("text_config", "rope_scaling", "moe"):
        if isinstance(config.get(key), dict) and data.draw(st.booleans()):
            target = config[key]
    edges = st.sampled_from([0, 1, -1, 2, 10_000, 10**6, 10**18, 1e-300, 1e308, float("inf"), float("nan"), "", [], {}])
    for key in data.draw(st.lists(st.sampled_from(sorted(target)), min_size=1, max_size=3)):
        target[key] = data.draw(JSON | edges)
    outcome = attempt(kind, config)
    assert isinstance(outcome, str) or outcome.decoder.n_layers <= 10_000


@settings(max_examples=40, **SETTINGS)
@given(config=st.dictionaries(st.text(max_size=8), JSON, max_size=6), kind=st.sampled_from(sorted(ALL)))
def test_wholly_junk_configs_give_clean_errors(config: dict[str, Any], kind: Any) -> None:
    with pytest.raises(ConfigError):
        describe(kind, config)
