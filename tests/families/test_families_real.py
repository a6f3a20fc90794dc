"""Released models read as what they are: windows, reach, rotary embedding, size."""

from typing import Any

import pytest

from sash.families import describe
from sash.network.config import ModelConfig, RopeScaling
from sash.network.shapes import n_active_parameters, n_parameters

Configs = dict[str, dict[str, Any]]


def decoder(kind: Any, config: dict[str, Any], **more: Any) -> ModelConfig:
    return describe(kind, config, **more).decoder


def thetas(config: ModelConfig) -> tuple[float, ...]:
    return tuple(layer.rope.theta for layer in config.layers)


FIVE_TO_ONE = "WWWWWF" * 6
HUGGINGFACE = {
    # name: (windows as a pattern of W and F, W, head_dim, base, context, parameters)
    "Mistral-7B-v0.1": ("W" * 32, 4096, 128, 10_000.0, 32_768, 7_241_732_096),
    "Mistral-7B-v0.3": ("F" * 32, None, 128, 1_000_000.0, 32_768, 7_248_023_552),
    "Mistral-Nemo-Base-2407": ("F" * 40, None, 128, 1_000_000.0, 131_072, 12_247_782_400),
    "Ministral-8B-Instruct-2410": ("W" * 36, 32_768, 128, 100_000_000.0, 32_768, 8_019_808_256),
    "Mixtral-8x7B-v0.1": ("F" * 32, None, 128, 1_000_000.0, 32_768, 46_702_792_704),
    "Llama-2-7b-hf": ("F" * 32, None, 128, 10_000.0, 4096, 6_738_415_616),
    "Llama-3.1-8B": ("F" * 32, None, 128, 500_000.0, 131_072, 8_030_261_248),
    "gemma-3-270m": (FIVE_TO_ONE[:18], 512, 256, None, 32_768, 268_098_176),
    "gemma-3-1b-it": (FIVE_TO_ONE[:26], 512, 256, None, 32_768, 999_885_952),
    "gemma-3-4b-it": (FIVE_TO_ONE[:34], 1024, 256, None, 131_072, 3_880_263_168),
    "Qwen2.5-1.5B": ("F" * 28, None, 128, 1_000_000.0, 131_072, 1_543_714_304),
    "SmolLM2-135M": ("F" * 30, None, 64, 100_000.0, 8192, 134_515_008),
}


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_huggingface(name: str, real_configs: Configs) -> None:
    pattern, window, head_dim, theta, context, parameters = HUGGINGFACE[name]
    config = decoder("huggingface", real_configs[name])
    assert "".join("F" if own is None else "W" for own in config.windows) == pattern
    assert config.window == window
    assert {own for own in config.windows if own is not None} <= {window}
    assert config.reach == (None if "F" in pattern else len(pattern) * (window - 1))
    assert config.head_dim == head_dim
    assert config.context == context
    assert n_parameters(config) == parameters
    assert {layer.rope.layout for layer in config.layers} == {"half"}
    if theta is not None:
        assert set(thetas(config)) == {theta}
    assert describe("huggingface", real_configs[name]).weights["norm.weight"].endswith("norm.weight")


def test_every_real_config_is_expected_here(real_configs: Configs) -> None:
    assert set(real_configs) == set(HUGGINGFACE)


def test_mistral_reaches_131_040_positions(real_configs: Configs) -> None:
    assert decoder("huggingface", real_configs["Mistral-7B-v0.1"]).reach == 131_040


def test_mixtral_is_sparse(real_configs: Configs) -> None:
    config = decoder("huggingface", real_configs["Mixtral-8x7B-v0.1"])
    assert [(layer.moe.n_experts, layer.moe.top_k) for layer in config.layers if layer.moe] == [(8, 2)] * 32
    assert n_active_parameters(config) == 12_879_925_248
    assert config.norm_eps == 1e-5


def test_the_mistaken_window_of_mixtral_is_set_aside_aloud(
    real_configs: Configs, caplog: pytest.LogCaptureFixture
) -> None:
    config = decoder("huggingface", real_configs["Mixtral-8x7B-v0.1"] | {"sliding_window": 4096})
    assert config.windows == (None,) * 32
    (record,) = caplog.records
    assert "4096" in record.getMessage()
    assert "--window 4096" in record.getMessage()


def test_llama_3_scales_its_slow_frequencies(real_configs: Configs) -> None:
    scaling = RopeScaling(kind="llama3", factor=8.0, original_context=8192, low_freq_factor=1.0, high_freq_factor=4.0)
    assert {layer.rope.scaling for layer in decoder("huggingface", real_configs["Llama-3.1-8B"]).layers} == {scaling}


def test_gemma_3_is_all_there(real_configs: Configs) -> None:
    config = decoder("huggingface", real_configs["gemma-3-270m"])
    assert thetas(config) == tuple(1_000_000.0 if c == "F" else 10_000.0 for c in FIVE_TO_ONE[:18])
    assert config.embedding_scale**2 == pytest.approx(640)
    assert config.attention_scale == 256**-0.5
    assert (config.norm_offset, config.activation, config.norm_eps) == (1.0, "gelu_tanh", 1e-6)
    assert config.qk_norm
    assert config.post_norms
    assert config.tied_embeddings
    assert not config.qkv_bias


def test_the_scaling_of_larger_gemmas_leaves_windowed_layers_alone(real_configs: Configs) -> None:
    config = decoder("huggingface", real_configs["gemma-3-4b-it"])
    assert (config.n_heads, config.n_kv_heads, config.vocab_size) == (8, 4, 262_208)
    for layer in config.layers:
        full = layer.pattern.window is None
        assert layer.rope.scaling == (RopeScaling(kind="linear", factor=8.0) if full else None)
        assert layer.rope.theta == (1_000_000.0 if full else 10_000.0)


def test_qwen_2_has_biases(real_configs: Configs) -> None:
    config = decoder("huggingface", real_configs["Qwen2.5-1.5B"])
    assert config.qkv_bias
    assert config.tied_embeddings


QWEN_WINDOWS = [
    ({"use_sliding_window": True, "max_window_layers": 21}, [None] * 21 + [131_072] * 7),
    ({"use_sliding_window": True, "max_window_layers": 28}, [None] * 28),
    ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, [None] * 28),
    ({"use_sliding_window": False, "max_window_layers": 0}, [None] * 28),
    (
        {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 14, "sliding_window": 9},
        [9, None] * 14,
    ),
]


@pytest.mark.parametrize(("change", "windows"), QWEN_WINDOWS)
def test_the_window_of_qwen_2(change: dict[str, Any], windows: list[int | None], real_configs: Configs) -> None:
    assert list(decoder("huggingface", real_configs["Qwen2.5-1.5B"] | change).windows) == windows


INTERLEAVED = [
    {"sliding_window": [None, 7, 7, 7]},
    {"sliding_window": 7, "layer_types": ["full_attention", *["sliding_attention"] * 3] * 9},
    {"sliding_window": 7, "layer_types": ["full_attention", *["sliding_attention"] * 3] * 9, "model_type": "ministral"},
]


@pytest.mark.parametrize("change", INTERLEAVED)
def test_interleaved_mistral(change: dict[str, Any], real_configs: Configs) -> None:
    config = decoder("huggingface", real_configs["Ministral-8B-Instruct-2410"] | change)
    assert config.windows == (None, 7, 7, 7) * 9
    assert config.reach is None


NATIVE = {
    "Mistral-7B-v0.1": ((4096,) * 32, 10_000.0, 7_241_732_096),
    "Mistral-7B-v0.3": ((None,) * 32, 1_000_000.0, 7_248_023_552),
    "Mistral-Nemo-Base-2407": ((None,) * 40, 1_000_000.0, 12_247_782_400),
    "Ministral-8B-Instruct-2410": ((None, 32_768, 32_768, 32_768) * 9, 100_000_000.0, 8_019_808_256),
    "Mixtral-8x7B-v0.1": ((None,) * 32, 1_000_000.0, 46_702_792_704),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native(name: str, real_params: Configs) -> None:
    windows, theta, parameters = NATIVE[name]
    description = describe("mistral", real_params[name])
    config = description.decoder
    assert config.windows == windows
    assert set(thetas(config)) == {theta}
    assert {layer.rope.layout for layer in config.layers} == {"interleaved"}
    assert n_parameters(config) == parameters
    assert all(ours == theirs for ours, theirs in description.weights.items())


def test_native_yarn(real_params: Configs) -> None:
    yarn = {"factor": 16.0, "original_max_position_embeddings": 16_384, "beta": 32.0, "alpha": 1.0}
    for apply, factor in ((True, None), (False, 1.0)):
        params = real_params["Mistral-7B-v0.3"] | {"yarn": {**yarn, "apply_scale": apply}}
        assert decoder("mistral", params).layers[0].rope.scaling == RopeScaling(
            kind="yarn", factor=16.0, original_context=16_384, attention_factor=factor
        )


GGUF = {
    "mistral-7b-v0.1": ((None,) * 32, (10_000.0,) * 32, "interleaved", 7_241_732_096),
    "mixtral-8x7b-v0.1": ((None,) * 32, (1_000_000.0,) * 32, "interleaved", 46_702_792_704),
    "llama-3.1-8b": ((None,) * 32, (500_000.0,) * 32, "interleaved", 8_030_261_248),
    "gemma-3-270m": (
        (512, 512, 512, 512, 512, None) * 3,
        (10_000.0, 10_000.0, 10_000.0, 10_000.0, 10_000.0, 1_000_000.0) * 3,
        "half",
        268_098_176,
    ),
    "qwen2.5-1.5b": ((None,) * 28, (1_000_000.0,) * 28, "half", 1_543_714_304 + 151_936 * 1536),
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf(name: str, real_metadata: Configs) -> None:
    windows, bases, layout, parameters = GGUF[name]
    config = decoder("gguf", real_metadata[name])
    assert config.windows == windows
    assert thetas(config) == bases
    assert {layer.rope.layout for layer in config.layers} == {layout}
    assert n_parameters(config) == parameters
    assert config.norm_offset == 0.0
