"""GGUF files, written by the format's own library as converters do, against transformers holding the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sash.lm import LM

TOLERANCE = 1e-4
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "head_dim": 12}
"""Rows of whole blocks of 32 values, as quantised types need."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA = {"num_hidden_layers": 7, "sliding_window": 7, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}
SCALING = "rope.scaling."

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], tuple[int | None, ...]]] = {
    # name: (architecture, family of transformers, what is special there, and in the metadata, window of each layer)
    "llama": ("llama", "Llama", {}, {}, (None,) * 3),
    "llama-tied": ("llama", "Llama", {"tie_word_embeddings": True, "rope_theta": 1e5}, {}, (None,) * 3),
    "llama-3.1": ("llama", "Llama", {"rope_parameters": LLAMA3}, {}, (None,) * 3),
    "llama-yarn": (
        "llama",
        "Llama",
        {"rope_parameters": YARN},
        {f"{SCALING}type": "yarn", f"{SCALING}factor": 4.0, f"{SCALING}original_context_length": 64},
        (None,) * 3,
    ),
    "llama-linear": (
        "llama",
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {f"{SCALING}type": "linear", f"{SCALING}factor": 4.0},
        (None,) * 3,
    ),
    "mistral": ("llama", "Mistral", {"sliding_window": 7}, {"attention.sliding_window": 7}, (7,) * 3),
    "mixtral": (
        "llama",
        "Mixtral",
        {"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
        {"expert_count": 8, "expert_used_count": 2},
        (None,) * 3,
    ),
    "qwen2": ("qwen2", "Qwen2", {"rope_theta": 1e6}, {}, (None,) * 3),
    "gemma3": ("gemma3", "Gemma3", GEMMA, {"attention.sliding_window": 7}, (7,) * 5 + (None, 7)),
    "gemma3-scaled": (
        "gemma3",
        "Gemma3",
        GEMMA | {"rope_parameters": GEMMA_ROPE},
        {"attention.sliding_window": 7, f"{SCALING}type": "linear", f"{SCALING}factor": 8.0},
        (7,) * 5 + (None, 7),
    ),
}
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
}
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
QUANTISED = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def turned(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of a query or key projection so that rotation turns neighbours rather than the two halves of a head."""
    return weight.reshape(n_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(model: nn.Module, architecture: str) -> dict[str, tuple[str, np.ndarray]]:
    """Name in transformers -> name in the file and values, ordered and shifted as llama.cpp's converter does."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
    out: dict[str, tuple[str, np.ndarray]] = {}
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        spelt = theirs.replace(".mlp.gate.", ".block_sparse_moe.gate.")
        if ".mlp.experts." in theirs:  # one tensor for all experts of a layer; gate and up are two of these
            layer = f"blk.{theirs.split('.')[2]}."
            if theirs.endswith("gate_up_proj"):
                for name, part in zip(EXPERTS, np.split(values, 2, axis=1), strict=False):
                    out[f"{theirs}:{name}"] = (f"{layer}{name}.weight", part)
            else:
                out[theirs] = (f"{layer}{EXPERTS[2]}.weight", values)
            continue
        if architecture == "llama" and theirs.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in theirs else config.num_key_value_heads
            values = turned(values, heads)
        if architecture == "gemma3" and theirs.endswith("norm.weight"):
            values = values + 1
        name = names.get_name(spelt, try_suffixes=(".weight", ".bias"))
        assert name is not None, theirs
        out[theirs] = (name, values)
    return out


def write(path: Path, model: nn.Module, architecture: str, own: dict[str, Any], kind: str = "F32") -> None:
    config, file = model.config, gguf.GGUFWriter(path, architecture)
    rope = config.rope_parameters
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_key_length(config.head_dim)
    file.add_value_length(config.head_dim)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    file.add_vocab_size(config.vocab_size)
    for key, value in own.items():
        kinds = {str: file.add_string, float: file.add_float32, int: file.add_uint32}
        kinds[type(value)](f"{architecture}.{key}", value)
    if rope.get("rope_type") == "llama3":
        plain = rope["rope_theta"] ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
        divisors = plain / model.model.rotary_emb.inv_freq.numpy()
        file.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    of_matrices = gguf.GGMLQuantizationType[kind]
    for name, values in tensors(model, architecture).values():
        if values.ndim == 1:
            file.add_tensor(name, values.astype(np.float32))
        else:
            file.add_tensor(name, gguf.quantize(values, of_matrices), raw_dtype=of_matrices)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def round_matrices(model: nn.Module, kind: str) -> None:
    """Make every matrix what the file keeps of it; rows are rounded one by one, so their order does not matter."""
    stored = gguf.GGMLQuantizationType[kind]
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.from_numpy(gguf.dequantize(gguf.quantize(parameter.numpy(), stored), stored))


def assert_equal(lm: LM, text: list[int], expected_TV: Tensor) -> None:
    assert expected_TV.std() > 0.5  # or agreement would say little
    for chunk in (None, 5):
        found_TV = lm.logits(text, chunk)
        assert (found_TV - expected_TV).abs().max() <= TOLERANCE
        assert torch.equal(found_TV.argmax(-1), expected_TV.argmax(-1))


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(
    name: str,
    tmp_path: Path,
    oracle: Callable[..., nn.Module],
    read_back: Callable[[Path], LM],
    logits_of: Callable[..., Tensor],
    ids: Callable[..., list[int]],
) -> None:
    architecture, family, theirs, own, windows = CASES[name]
    model, text = oracle(family, **SIZES, **theirs), ids(43)
    write(tmp_path / "model.gguf", model, architecture, own)
    lm = read_back(tmp_path)
    assert lm.config.windows == windows
    assert_equal(lm, text, logits_of(model, text))


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_rounded_weights(
    name: str,
    kind: str,
    tmp_path: Path,
    oracle: Callable[..., nn.Module],
    read_back: Callable[[Path], LM],
    logits_of: Callable[..., Tensor],
    ids: Callable[..., list[int]],
) -> None:
    architecture, family, theirs, own, _ = CASES[name]
    model, text = oracle(family, **SIZES, **theirs), ids(31)
    write(tmp_path / "model.gguf", model, architecture, own, kind)
    round_matrices(model, kind)
    assert_equal(read_back(tmp_path), text, logits_of(model, text))
