"""What transformers writes is read: configurations of both its generations, and tensors of every model class."""

import json
from pathlib import Path
from typing import Any

import pytest

from sash.families import describe, parse_slice
from sash.network.config import RopeScaling
from sash.network.shapes import parameter_shapes

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SEVEN = ["full_attention", "sliding_attention"] * 3 + ["full_attention"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "ministral": ("Ministral", {"sliding_window": 7, "layer_types": SEVEN}),
    "mixtral": ("Mixtral", {"num_local_experts": 3}),
    "llama": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3}),
    "gemma3": ("Gemma3", {"sliding_window": 5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
}
WINDOWS = {
    "mistral": (7,) * 7,
    "ministral": (None, 7) * 3 + (None,),
    "qwen2": (None,) * 3 + (5,) * 4,
    "gemma3": (5,) * 5 + (None, 5),
}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the oracle of these tests is not installed")


def build(transformers: Any, name: str) -> Any:
    family, own = MODELS[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    sizes = {key: value for key, value in SMALL.items() if key != "head_dim" or family not in ("Mixtral", "Qwen2")}
    return getattr(transformers, f"{family}ForCausalLM")(config_class(**sizes, **own))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model(name: str, transformers: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors", reason="reads back what the oracle wrote")
    model = build(transformers, name)
    model.save_pretrained(tmp_path)
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    config = json.loads((tmp_path / "config.json").read_text())
    description = describe("huggingface", config, frozenset(shapes))
    assert description.ignored == frozenset()
    assert {ours: shapes[theirs] for ours, theirs in description.weights.items()} == parameter_shapes(
        description.decoder
    )
    assert description.decoder.windows == WINDOWS.get(name, (None,) * 7)

    everything = json.loads(json.dumps(model.config.to_dict()))
    assert describe("huggingface", everything, frozenset(shapes)) == description


def test_a_rotary_embedding_in_both_spellings(transformers: Any) -> None:
    new = transformers.LlamaConfig(**SMALL, rope_scaling=dict(LLAMA3), rope_theta=5e5).to_dict()
    assert "rope_parameters" in new
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_theta": 5e5, "rope_scaling": LLAMA3}
    found = describe("huggingface", new).decoder
    assert found == describe("huggingface", old).decoder
    assert found.layers[0].rope.theta == 5e5
    assert found.layers[0].rope.scaling == RopeScaling(kind="llama3", factor=8.0, original_context=32)


def test_two_rotary_embeddings_in_both_spellings(transformers: Any) -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    config = transformers.Gemma3TextConfig(**SMALL, rope_scaling=scaling, rope_theta=3e5, rope_local_base_freq=7e3)
    new = config.to_dict()
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "layer_types")}
    old |= {"rope_theta": 3e5, "rope_local_base_freq": 7e3, "rope_scaling": scaling, "sliding_window_pattern": 6}
    found = describe("huggingface", new).decoder
    assert found == describe("huggingface", old).decoder
    assert [layer.rope.theta for layer in found.layers] == [7e3] * 5 + [3e5, 7e3]
    assert [layer.rope.scaling is not None for layer in found.layers] == [False] * 5 + [True, False]


def test_fused_experts_in_memory(transformers: Any) -> None:
    model = build(transformers, "mixtral")
    state = model.state_dict()
    description = describe("huggingface", json.loads(json.dumps(model.config.to_dict())), frozenset(state))
    parts = {ours: parse_slice(theirs) for ours, theirs in description.weights.items()}
    found = {ours: tuple(state[part.name][part.index].shape) for ours, part in parts.items()}
    assert found == parameter_shapes(description.decoder)


def test_yarn_scales_attention_as_transformers_does(transformers: Any) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for own in ({}, {"attention_factor": 0.8}, {"mscale": 1.0, "mscale_all_dim": 0.5}, {"mscale": 0.7}):
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **own}
        config = transformers.LlamaConfig(**SMALL, rope_scaling=dict(yarn))
        expected = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")[1]
        scaling = describe("huggingface", config.to_dict()).decoder.layers[0].rope.scaling
        assert scaling is not None
        found = 1.1386294361119891 if scaling.attention_factor is None else scaling.attention_factor
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_windows_without_layer_types(name: str, transformers: Any) -> None:
    family, own = MODELS[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    written = config_class(**SMALL, **own).to_dict()
    old = {key: value for key, value in written.items() if key != "layer_types"}
    assert describe("huggingface", old).decoder.windows == describe("huggingface", written).decoder.windows
