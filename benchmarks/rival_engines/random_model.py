"""The model that all engines run: Mistral-shaped, 1.0B parameters, random weights, as a Hugging Face folder.

Needs what Sash is developed with: torch, safetensors, tokenizers.
"""

from __future__ import annotations

import json
import shutil
from itertools import islice, product
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32_768,
    "hidden_size": 2048,
    "intermediate_size": 7168,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
SPECIAL = ("<unk>", "<s>", "</s>")
SPREAD = 0.02


def make(folder: Path) -> Path:
    """The model's folder, written if it is not there."""
    if (folder / "config.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_weights(folder / "model.safetensors")
    write_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    # Last: it tells that all the rest is there.
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    return folder


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    dim, hidden, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    heads, kv_heads = CONFIG["num_attention_heads"] * CONFIG["head_dim"], 4 * CONFIG["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, dim)}
    for layer in range(CONFIG["num_hidden_layers"]):
        parts = {
            "input_layernorm": (dim,),
            "self_attn.q_proj": (heads, dim),
            "self_attn.k_proj": (kv_heads, dim),
            "self_attn.v_proj": (kv_heads, dim),
            "self_attn.o_proj": (dim, heads),
            "post_attention_layernorm": (dim,),
            "mlp.gate_proj": (hidden, dim),
            "mlp.up_proj": (hidden, dim),
            "mlp.down_proj": (dim, hidden),
        }
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return found | {"model.norm.weight": (dim,), "lm_head.weight": (vocabulary, dim)}


def _write_weights(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes().items():
        drawn = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * SPREAD
        tensors[name] = drawn.bfloat16()
    save_file(tensors, path, metadata={"format": "pt"})


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of as many tokens as the model has: bytes, and pairs of bytes.

    Prompts are ids, so nobody needs it; but engines look for one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(islice(product(alphabet, alphabet), CONFIG["vocab_size"] - len(SPECIAL) - len(alphabet)))
    words = [*SPECIAL, *alphabet, *(a + b for a, b in pairs)]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
