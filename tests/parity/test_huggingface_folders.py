"""Every decoder family against transformers: small random models, saved by it and read by Sash, float32 on both sides.

All positions of texts of at least four windows, in one forward without a cache and through the rolling buffer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sash.attention.dispatch import BACKENDS
from sash.attention.plan import QUERY_BLOCK
from sash.errors import ConfigError
from sash.lm import LM
from sash.network.decoder import Decoder

TOLERANCE = 1e-4
SHOWS = 0.1
"""Logits differ by more than this where a window is wrong."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
LINEAR_BUT_LOCAL = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

WINDOW = 9
FULL = ("mixtral", "llama")
ONE_LAYER: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "ministral": ("Ministral", {"sliding_window": WINDOW, "layer_types": ["sliding_attention"], "head_dim": 6}),
    "qwen2": ("Qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 0}),
    "gemma3": ("Gemma3", {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"sliding_window": None, "num_local_experts": 2, "num_experts_per_tok": 2}),
    "llama": ("Llama", {}),
}
"""Models of one layer. Those of `FULL` have no window, and one is forced on them.

Every expert of the mixture is chosen: a changed token that went to another expert would change the size of the matrix
products that its neighbours are in, and so their last bits.
"""

Oracle = Callable[..., nn.Module]
Reader = Callable[[Path], LM]
Logits = Callable[[nn.Module, list[int]], Tensor]
Ids = Callable[..., list[int]]
Case = tuple[str, dict[str, Any], tuple[int | None, ...]]
CASES: dict[str, Case] = {
    # name: (family, what is special, window of each layer)
    "mistral-v0.1": ("Mistral", {"sliding_window": 7}, (7,) * 3),
    "mistral-even-window": (
        "Mistral",
        {"sliding_window": 8, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 14},
        (8,) * 3,
    ),
    "mistral-window-of-1": ("Mistral", {"sliding_window": 1}, (1,) * 3),
    "mistral-v0.2": ("Mistral", {"sliding_window": None, "rope_theta": 1e6}, (None,) * 3),
    "mistral-nemo": ("Mistral", {"sliding_window": None, "head_dim": 10, "rope_theta": 1e6}, (None,) * 3),
    "mistral-tied": ("Mistral", {"sliding_window": 6, "tie_word_embeddings": True}, (6,) * 3),
    "ministral": (
        "Ministral",
        {"sliding_window": 7, "head_dim": 10, "layer_types": MIXED, "num_hidden_layers": 4},
        (None, 7, 7, None),
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None}, (None,) * 3),
    "mixtral-top-1-of-3": (
        "Mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": None, "num_attention_heads": 4}
        | {"num_key_value_heads": 4, "head_dim": 14},
        (None,) * 3,
    ),
    "llama-2": ("Llama", {"num_attention_heads": 6, "num_key_value_heads": 6}, (None,) * 3),
    "llama-3": ("Llama", {"rope_theta": 5e5, "head_dim": 8}, (None,) * 3),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}, (None,) * 3),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        (None,) * 3,
    ),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}, (None,) * 3),
    "llama-yarn-own-factor": (
        "Llama",
        {"rope_parameters": YARN | {"attention_factor": 0.8, "beta_fast": 16}},
        (None,) * 3,
    ),
    "qwen2": ("Qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True}, (None,) * 3),
    "qwen2-windowed": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        (None, 7, 7),
    ),
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 8, "sliding_window": 7, "head_dim": 10, "query_pre_attn_scalar": 23}
        | {"tie_word_embeddings": True},
        (7, 7, 7, 7, 7, None, 7, 7),
    ),
    "gemma3-scaled": (
        "Gemma3",
        {"num_hidden_layers": 7, "sliding_window": 6, "head_dim": 12, "rope_parameters": LINEAR_BUT_LOCAL}
        | {"tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 1},
        (6, 6, 6, 6, 6, None, 6),
    ),
}


def assert_equal(lm: LM, ids: list[int], expected_TV: Tensor, chunks: tuple[int | None, ...]) -> None:
    assert expected_TV.std() > 0.5  # or agreement would say little
    for chunk in chunks:
        found_TV = lm.logits(ids, chunk)
        assert (found_TV - expected_TV).abs().max() <= TOLERANCE, chunk
        assert torch.equal(found_TV.argmax(-1), expected_TV.argmax(-1)), chunk


def with_window(lm: LM, window: int | Literal["full"]) -> LM:
    """The same weights under another window."""
    decoder = Decoder(lm.config.with_window(window))
    decoder.load_state_dict(lm.decoder.state_dict())
    return LM(decoder, lm.tokenizer)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model(
    name: str, tmp_path: Path, oracle: Oracle, read_back: Reader, logits_of: Logits, ids: Ids
) -> None:
    family, own, windows = CASES[name]
    model = oracle(family, **own)
    model.save_pretrained(tmp_path)
    lm = read_back(tmp_path)
    assert lm.config.windows == windows
    text, window = ids(43), lm.config.window or 5
    assert len(text) >= 4 * window
    assert_equal(lm, text, logits_of(model, text), (None, 1, window, 3 * window - 1))


def test_more_than_a_block_of_queries(
    tmp_path: Path, oracle: Oracle, read_back: Reader, logits_of: Logits, ids: Ids
) -> None:
    model = oracle("Mistral", sliding_window=131, num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    lm, text = read_back(tmp_path), ids(601)
    assert len(text) > 2 * QUERY_BLOCK
    assert len(text) > 4 * 131
    assert_equal(lm, text, logits_of(model, text), (None, 100, 300))


@pytest.mark.parametrize("name", ["mistral-v0.1", "mixtral", "llama-3", "qwen2", "gemma3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_in_shards(
    name: str, dtype: str, tmp_path: Path, oracle: Oracle, read_back: Reader, logits_of: Logits, ids: Ids
) -> None:
    """Stored in 16 bits, in several files; computed in float32."""
    family, own, windows = CASES[name]
    model = oracle(family, **own).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = {"attn_implementation": "eager", "experts_implementation": "eager"}
    theirs = type(model).from_pretrained(tmp_path, dtype=torch.float32, **again)
    lm, text = read_back(tmp_path), ids(41)
    assert lm.config.windows == windows
    assert_equal(lm, text, logits_of(theirs, text), (None, 9))


@pytest.mark.parametrize("name", ONE_LAYER)
def test_window_probe(
    name: str, tmp_path: Path, oracle: Oracle, read_back: Reader, logits_of: Logits, ids: Ids
) -> None:
    """One layer, window W: the token at distance W-1 changes the last logits, the one at distance W does not.

    With every backend; and transformers counts the window's keys as Sash does.
    """
    family, own = ONE_LAYER[name]
    model = oracle(family, num_hidden_layers=1, **own)
    model.save_pretrained(tmp_path)
    lm, text, window = read_back(tmp_path), ids(4 * WINDOW + 1), WINDOW
    forced = lm.config.windows == (None,)
    assert forced == (name in FULL)
    lm = with_window(lm, window) if forced else lm
    assert lm.config.windows == (window,)

    def assert_sees_a_window(compute: Callable[[list[int]], Tensor]) -> None:
        before, changes = compute(text)[-1], []
        for distance in (window - 1, window):
            other = list(text)
            other[-1 - distance] = (other[-1 - distance] + 1) % lm.config.vocab_size
            changes.append(float((compute(other)[-1] - before).abs().max()))
        assert changes[0] > SHOWS
        assert changes[1] == 0.0

    for backend, chunk in itertools.product(BACKENDS, (None, 1, 4, 3 * window)):
        lm.decoder.backend = BACKENDS[backend]
        assert_sees_a_window(functools.partial(lm.logits, chunk=chunk))
    if not forced:
        assert_sees_a_window(functools.partial(logits_of, model))


@pytest.mark.parametrize("family", ["Mistral", "Llama", "Qwen2"])
def test_dynamic_scaling_is_refused(family: str, tmp_path: Path, oracle: Oracle, read_back: Reader) -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    oracle(family, num_hidden_layers=1, rope_parameters=dynamic).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"rope_type.*dynamic"):
        read_back(tmp_path)
