"""Mistral's own layout (params.json, consolidated safetensors) against transformers holding the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sash.lm import LM

TOLERANCE = 1e-4

NATIVE = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "norm": "norm",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.gate": "feed_forward.gate",
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
NATIVE_YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "alpha": 1, "beta": 32, "apply_scale": True}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int | None, ...]]] = {
    # name: (family, what is special to transformers, and in params.json, window of each layer)
    "mistral-v0.1": ("Mistral", {"sliding_window": 7}, {"sliding_window": 7}, (7,) * 3),
    "mistral-v0.3": ("Mistral", {"sliding_window": None, "rope_theta": 1e6}, {"rope_theta": 1e6}, (None,) * 3),
    "mistral-nemo": (
        "Mistral",
        {"sliding_window": None, "head_dim": 10, "rope_theta": 1e6, "num_key_value_heads": 3},
        {"rope_theta": 1e6, "max_seq_len": 256},
        (None,) * 3,
    ),
    "mistral-yarn": ("Mistral", {"sliding_window": None, "rope_parameters": YARN}, {"yarn": NATIVE_YARN}, (None,) * 3),
    "mistral-tied": (
        "Mistral",
        {"sliding_window": 6, "tie_word_embeddings": True},
        {"sliding_window": 6, "tied_embeddings": True},
        (6,) * 3,
    ),
    "ministral": (
        "Ministral",
        {
            "sliding_window": 7,
            "head_dim": 10,
            "rope_theta": 1e8,
            "num_hidden_layers": 4,
            "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
        },
        {"_sliding_window": [None, 7, 7, 7], "rope_theta": 1e8},
        (None, 7, 7, 7),
    ),
    "mixtral": (
        "Mixtral",
        {"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
        {"moe": {"num_experts": 8, "num_experts_per_tok": 2}, "rope_theta": 1e6},
        (None,) * 3,
    ),
}


def turned(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of a query or key projection so that rotation turns neighbours rather than the two halves of a head."""
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def native(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a Mistral or Mixtral of transformers as Mistral's own files name and order them."""
    config, out = model.config, {}
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = theirs.removeprefix("model.")
        layer = ""
        if name.startswith("layers."):
            layer, name = ".".join(name.split(".")[:2]) + ".", name.split(".", 2)[2]
        if name.startswith("mlp.experts."):
            for expert, part in enumerate(tensor):
                within = f"{layer}feed_forward.experts.{expert}."
                if name.endswith("down_proj"):
                    out[f"{within}w2.weight"] = part.contiguous()
                else:
                    gate, up = part.chunk(2)
                    out |= {f"{within}w1.weight": gate.contiguous(), f"{within}w3.weight": up.contiguous()}
            continue
        stem = name.removesuffix(".weight")
        if stem == "self_attn.q_proj":
            tensor = turned(tensor, config.num_attention_heads)
        elif stem == "self_attn.k_proj":
            tensor = turned(tensor, config.num_key_value_heads)
        out[f"{layer}{NATIVE[stem]}.weight"] = tensor.contiguous()
    return out


def params(model: nn.Module, own: Mapping[str, Any]) -> dict[str, Any]:
    config = model.config
    return {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        **own,
    }


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(
    name: str,
    n_files: int,
    tmp_path: Path,
    oracle: Callable[..., nn.Module],
    read_back: Callable[[Path], LM],
    logits_of: Callable[..., Tensor],
    ids: Callable[..., list[int]],
) -> None:
    family, theirs, own, windows = CASES[name]
    model = oracle(family, **theirs)
    weights = native(model)
    (tmp_path / "params.json").write_text(json.dumps(params(model, own)))
    files = (
        ["consolidated.safetensors"]
        if n_files == 1
        else [f"consolidated-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    )
    for index, file in enumerate(files):
        part = {key: tensor for at, (key, tensor) in enumerate(sorted(weights.items())) if at % n_files == index}
        safetensors.torch.save_file(part, tmp_path / file)
    lm, text = read_back(tmp_path), ids(43)
    assert lm.config.windows == windows
    expected_TV = logits_of(model, text)
    assert expected_TV.std() > 0.5  # or agreement would say little
    for chunk in (None, 5):
        found_TV = lm.logits(text, chunk)
        assert (found_TV - expected_TV).abs().max() <= TOLERANCE
        assert torch.equal(found_TV.argmax(-1), expected_TV.argmax(-1))
