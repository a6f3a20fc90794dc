"""The figures of Mistral 7B at full size are computed, not measured: its shape is public."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.explain.budget import binary, budget, decimal, draw_budget, linear_flops
from sash.explain.presets import PRESETS
from sash.network.config import LayerConfig
from sash.network.shapes import n_active_parameters, n_parameters
from sash.network.sizing import kv_bytes

MISTRAL = PRESETS["mistral-7b"]


def test_presets_have_the_published_sizes():
    assert n_parameters(MISTRAL) == 7_241_732_096
    assert n_parameters(PRESETS["mixtral-8x7b"]) == 46_702_792_704
    assert round(n_active_parameters(PRESETS["mixtral-8x7b"]) / 1e9, 1) == 12.9
    assert MISTRAL.reach == 131_040
    assert PRESETS["mixtral-8x7b"].window is None


@pytest.mark.parametrize(
    ("n", "kv", "pairs", "model"),
    [(16_384, 4.0, 2.29, 1.15), (32_768, 8.0, 4.27, 1.41), (131_072, 32.0, 16.25, 3.01)],
)
def test_factors_of_mistral_7b(n: int, kv: float, pairs: float, model: float):
    factors = budget(MISTRAL, n).factors()
    assert {name: round(value, 2) for name, value in factors.items()} == {"kv": kv, "pairs": pairs, "model": model}


def test_the_rolling_buffer_of_mistral_7b_is_512_mib_at_any_length():
    for n in (10, 4096, 32_768, 10_000_000):
        assert budget(MISTRAL, n).windowed.kv_bytes == 512 * 2**20 == kv_bytes(MISTRAL, n, itemsize=2)
    assert budget(MISTRAL, 32_768).full.kv_bytes == 4 * 2**30
    assert budget(MISTRAL, 32_768, itemsize=4).full.kv_bytes == 8 * 2**30


def test_operations_a_token_and_layer_of_mistral_7b():
    assert linear_flops(MISTRAL) == 32 * 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336)
    cost = budget(MISTRAL, 16_384)
    assert round(cost.full.attention_flops / 16_384 / 32 / 1e6) == 134
    assert round(cost.windowed.attention_flops / 16_384 / 32 / 1e6, 1) == 58.7


def test_a_mixture_computes_its_router_and_two_experts():
    expert = 3 * 4096 * 14_336
    attention = 2 * 4096 * 4096 + 2 * 4096 * 1024
    assert linear_flops(PRESETS["mixtral-8x7b"]) == 32 * 2 * (attention + 8 * 4096 + 2 * expert)


def test_interleaving_and_pins_are_counted_layer_by_layer():
    local, full = LayerConfig(pattern=AttentionPattern(window=1024, pins=4)), LayerConfig()
    gemma_like = replace(MISTRAL, layers=(*(local,) * 5, full))
    n = 32_768
    result = budget(gemma_like, n)
    assert result.windowed.kv_bytes == 2 * (5 * 1028 + n) * 8 * 128 * 2
    assert result.windowed.pairs == 5 * local.pattern.visible_pairs(n) + full.pattern.visible_pairs(n)
    assert result.full.pairs == 6 * full.pattern.visible_pairs(n)


def test_a_model_without_a_window_gains_nothing():
    assert budget(PRESETS["mixtral-8x7b"], 9000).factors() == {"kv": 1.0, "pairs": 1.0, "model": 1.0}


def test_the_table_and_the_data_agree():
    result = budget(MISTRAL, 32_768)
    text = draw_budget(result, "mistral-7b")
    assert text.splitlines()[0] == "mistral-7b: 32,768 tokens, W=4,096 in 32 of 32 layers"
    rows = {line.split("  ")[0]: line for line in text.splitlines()[2:]}
    assert rows["KV cache"].split()[2:] == ["4.0", "GiB", "512.0", "MiB", "8.00x"]
    assert rows["whole model's FLOPs"].endswith("1.41x")
    data = json.loads(json.dumps(result.to_json()))
    assert data["factors"]["kv"] == 8.0
    assert data["full"]["flops"] == data["full"]["attention_flops"] + data["full"]["linear_flops"]
    assert data["windows"] == [4096] * 32


@pytest.mark.parametrize(("n", "itemsize"), [(0, 2), (-5, 2), (10, 0)])
def test_nonsense_is_refused(n: int, itemsize: int):
    with pytest.raises(UsageError):
        budget(MISTRAL, n, itemsize)


def test_units():
    assert [binary(size) for size in (0, 1023, 1024, 5 * 2**40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 TiB"]
    assert [decimal(count) for count in (999, 1000, 2_500_000)] == ["999", "1.00 K", "2.50 M"]
