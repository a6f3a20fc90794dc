from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.network.config import LayerConfig, ModelConfig
from sash.network.sizing import FIRST_BLOCK, LARGEST_BLOCK, block_sizes, kv_bytes, kv_slots


def model(*patterns: AttentionPattern) -> ModelConfig:
    return ModelConfig(
        architecture="test",
        vocab_size=10,
        dim=8,
        n_heads=4,
        n_kv_heads=2,
        head_dim=6,
        hidden_dim=8,
        layers=tuple(LayerConfig(pattern=pattern) for pattern in patterns),
    )


def test_the_total_doubles_up_to_the_largest_block():
    sizes = block_sizes(50_000)
    assert sizes[:6] == (1024, 1024, 2048, 4096, 8192, 8192)
    assert set(sizes[5:]) == {LARGEST_BLOCK}


@given(st.integers(1, 300_000))
def test_blocks_are_the_shortest_list_that_covers_the_context(context: int):
    sizes = block_sizes(context)
    assert sum(sizes) >= context > sum(sizes[:-1])
    assert sizes[0] == FIRST_BLOCK


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_a_longer_context_only_appends_blocks(first: int, second: int):
    shorter, longer = block_sizes(min(first, second)), block_sizes(max(first, second))
    assert longer[: len(shorter)] == shorter


@pytest.mark.parametrize("context", [0, 1, 4096, 4097, 10_000_000])
def test_a_windowed_layer_holds_the_same_slots_for_every_context(context: int):
    assert kv_slots(AttentionPattern(window=4096), context) == 4096
    assert kv_slots(AttentionPattern(window=4096, pins=7), context) == 4103


def test_a_layer_that_sees_all_grows():
    assert kv_slots(AttentionPattern(), 0) == 0
    assert kv_slots(AttentionPattern(), 1) == 1024
    assert kv_slots(AttentionPattern(window=4, global_tokens=True), 4097) == 8192


def test_bytes_add_up_over_interleaved_layers():
    config = model(AttentionPattern(window=16), AttentionPattern(window=16, pins=2), AttentionPattern())
    assert kv_bytes(config, 3000, itemsize=4) == 2 * (16 + 18 + 4096) * 2 * 6 * 4


def test_a_negative_context_is_refused():
    for pattern in (AttentionPattern(), AttentionPattern(window=4)):
        with pytest.raises(UsageError, match="-1"):
            kv_slots(pattern, -1)
