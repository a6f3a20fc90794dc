"""The rolling buffer: exact size, exact slots, no traces, any schedule."""

from __future__ import annotations

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import DoesNotFitError, PinsError, UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.ring_store import RingStore
from sash.network.sizing import kv_bytes
from tests.conftest import small_config, small_decoder

WINDOW = 6


def read(decoder, cache, row, ids, start, **flags):  # type: ignore[no-untyped-def]
    with torch.no_grad():
        batch = Batch.pack([ids], [start], [row], **flags)
        return decoder.logits(decoder(batch, cache))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
def test_nbytes_is_the_formula_to_the_byte(dtype: torch.dtype, rows: int) -> None:
    config = small_config([AttentionPattern(window=WINDOW)] * 5)
    cache = KVCache(config, rows, dtype)
    assert cache.nbytes == rows * 2 * 5 * WINDOW * 2 * 8 * dtype.itemsize
    assert cache.nbytes == rows * kv_bytes(config, 10**7, dtype.itemsize)


def test_nbytes_never_changes_for_windows_and_follows_the_plan_for_full_layers() -> None:
    config = small_config([AttentionPattern(window=WINDOW, pins=2), AttentionPattern()])
    decoder, cache = small_decoder(config), KVCache(config)
    row = cache.allocate()
    ids = torch.randint(0, 61, (2500,)).tolist()
    for start in range(0, 2500, 500):
        read(decoder, cache, row, ids[start : start + 500], start)
        assert cache.nbytes == kv_bytes(config, start + 500, 4)


def test_position_i_lives_in_slot_i_mod_w() -> None:
    config = small_config([AttentionPattern(window=4)])
    decoder, cache = small_decoder(config), KVCache(config)
    row = cache.allocate()
    (store,) = cache.stores.values()
    assert isinstance(store, RingStore)
    assert store.positions == [[-1, -1, -1, -1]]
    for position in range(11):
        read(decoder, cache, row, [position], position)
        for slot, held in enumerate(store.positions[row]):
            assert held == -1 or (held % 4 == slot and position - 4 < held <= position)
    assert store.positions[row] == [8, 9, 10, 7]


def test_a_released_row_keeps_nothing() -> None:
    config = small_config([AttentionPattern(window=WINDOW, pins=1), AttentionPattern()])
    decoder, cache = small_decoder(config), KVCache(config, 2)
    row = cache.allocate()
    read(decoder, cache, row, list(range(20)), 0)
    for store in cache.stores.values():
        if isinstance(store, RingStore):
            store.ring.numbers[:, :, row] = torch.nan  # whatever was there must not even matter
    cache.release(row)
    fresh = KVCache(config, 2)
    assert cache.lengths == [0, 0]
    again = cache.allocate()
    while again != row:
        again = cache.allocate()
    other = fresh.allocate()
    after = read(decoder, cache, row, [5, 6, 7, 8, 9, 10, 11, 12], 0)
    assert torch.equal(after, read(decoder, fresh, other, [5, 6, 7, 8, 9, 10, 11, 12], 0))


def test_rows_are_given_out_once() -> None:
    cache = KVCache(small_config([AttentionPattern(window=WINDOW)]), 2)
    rows = [cache.allocate(), cache.allocate()]
    assert sorted(rows) == [0, 1]
    with pytest.raises(DoesNotFitError, match="all 2 rows"):
        cache.allocate()
    cache.release(rows[0])
    with pytest.raises(UsageError, match="not taken"):
        cache.release(rows[0])


def test_a_step_must_go_on_where_the_row_stopped() -> None:
    config = small_config([AttentionPattern(window=WINDOW)])
    decoder, cache = small_decoder(config), KVCache(config)
    row = cache.allocate()
    read(decoder, cache, row, [1, 2, 3], 0)
    with pytest.raises(UsageError, match="row 0 has read 3 tokens: 7 is not its next position"):
        read(decoder, cache, row, [4], 7)


def test_a_forked_row_goes_its_own_way() -> None:
    config = small_config([AttentionPattern(window=WINDOW, pins=2), AttentionPattern()])
    decoder, one, two = small_decoder(config), KVCache(config), KVCache(config)
    row, twin = one.allocate(), two.allocate()
    read(decoder, one, row, list(range(15)), 0)
    two.copy_row(twin, one, row)
    read(decoder, two, twin, [50, 51, 52, 53, 54, 55, 56], 15)
    expected = KVCache(config)
    read(decoder, expected, expected.allocate(), list(range(15)), 0)
    assert torch.equal(read(decoder, one, row, [3, 4], 15), read(decoder, expected, 0, [3, 4], 15))


def test_flagged_pins_stay_and_more_than_fit_are_refused() -> None:
    pattern = AttentionPattern(window=WINDOW, pins=2, pin_by="flag")
    config = small_config([pattern])
    decoder = small_decoder(config)
    ids = torch.randint(0, 61, (30,)).tolist()
    flags = [index in (4, 9) for index in range(30)]
    with torch.no_grad():
        whole = decoder.logits(decoder(Batch.pack([ids], pinned=[flags])))
    cache = KVCache(config)
    row = cache.allocate()
    parts = [read(decoder, cache, row, ids[s : s + 7], s, pinned=[flags[s : s + 7]]) for s in range(0, 30, 7)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-4
    with pytest.raises(PinsError, match="3 tokens are pinned, and there is room for 2"):
        read(decoder, cache, row, [1], 30, pinned=[[True]])


def test_a_causal_layer_with_global_tokens_keeps_everything_and_equals_one_forward() -> None:
    config = small_config([AttentionPattern(window=3, global_tokens=True)] * 2)
    decoder = small_decoder(config)
    ids = torch.randint(0, 61, (40,)).tolist()
    flags = [index in (2, 25) for index in range(40)]
    with torch.no_grad():
        whole = decoder.logits(decoder(Batch.pack([ids], is_global=[flags])))
    cache = KVCache(config)
    row = cache.allocate()
    parts = [read(decoder, cache, row, ids[s : s + 9], s, is_global=[flags[s : s + 9]]) for s in range(0, 40, 9)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-4
