"""Random models of transformers, the oracle, and how Sash reads a file of one: as `sash.load` does, less the tokenizer.

transformers takes seconds to import, so nothing here does before a test asks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sash.checkpoint import open_checkpoint
from sash.checkpoint.description import read_description
from sash.checkpoint.load import load_weights
from sash.lm import LM
from sash.network.decoder import Decoder
from tests.conftest import ByteTokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 53,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
    "experts_implementation": "eager",
}

LARGE = 1.6
"""Spread of the weights, times sqrt(dim): components of queries and keys are about as large, so attention is sharp."""


@pytest.fixture(scope="session")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is the oracle of these tests")


@pytest.fixture(scope="session")
def oracle(transformers: Any) -> Callable[..., nn.Module]:
    """A random model of a family of transformers, by the name of its class without "ForCausalLM"."""

    def build(family: str, seed: int = 0, **own: Any) -> nn.Module:
        config_class = getattr(transformers, f"{'Gemma3Text' if family == 'Gemma3' else family}Config")
        model = getattr(transformers, f"{family}ForCausalLM")(config_class(**{**SIZES, **own})).eval()
        generator = torch.Generator().manual_seed(seed)
        spread = LARGE / model.config.hidden_size**0.5
        for name, parameter in model.named_parameters():
            one = name.endswith("norm.weight") and family != "Gemma3"  # Gemma 3 stores what it adds to 1
            nn.init.normal_(parameter, mean=float(one), std=spread, generator=generator)
            parameter.requires_grad_(False)
        return model

    return build


@pytest.fixture(scope="session")
def read_back() -> Callable[..., LM]:
    """The model that a folder or file holds, computing in float32."""

    def load(path: Path) -> LM:
        with open_checkpoint(path) as checkpoint:
            description = read_description(checkpoint)
            cpu = torch.device("cpu")
            decoder = load_weights(lambda: Decoder(description.decoder), description, checkpoint, torch.float32, cpu)
        assert isinstance(decoder, Decoder)
        return LM(decoder, ByteTokenizer())

    return load


@pytest.fixture(scope="session")
def logits_of() -> Callable[[nn.Module, list[int]], Tensor]:
    """What the oracle computes for all positions, [T, V]."""

    def compute(model: nn.Module, ids: list[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
        return logits

    return compute


@pytest.fixture(scope="session")
def ids() -> Callable[..., list[int]]:
    def draw(n_tokens: int, seed: int = 1) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, SIZES["vocab_size"], (n_tokens,), generator=generator).tolist()

    return draw
