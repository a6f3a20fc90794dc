"""The log behind the ring: every token, and rows taken back to anywhere, as if they had never gone on."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.log import LogRoom
from sash.network.packed import Network
from sash.network.ring_store import RingStore
from sash.network.slots import HeldRun, Vectors
from sash.network.snapshot import RowState
from sash.network.undo import undo
from tests.network.test_snapshot import CONFIGS, LENGTH, NAMES, Text, W, kvs, network_of
from tests.network.test_stores import layout, positions_of, vectors


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 slots in logs, of 8, 8, 16, 16 ... in layers without a bound."""
    for name, size in (("FIRST_BLOCK", 8), ("LARGEST_BLOCK", 16), ("LOG_BLOCK", 8)):
        monkeypatch.setattr(f"sash.network.sizing.{name}", size)


def cache_of(network: Network, rows: int = 1, kv: str = "auto", log: bool | int = True) -> KVCache:
    return KVCache(network.config, rows, network.dtype, kv=kv, log=log)


def rings(cache: KVCache) -> list[RingStore]:
    return [store for store in cache.stores.values() if isinstance(store, RingStore)]


def read(store: RingStore, row: int, start: int, count: int, pinned: list[bool] | None = None) -> None:
    batch = Batch.pack([[0] * count], [start], [row], pinned=None if pinned is None else [pinned])
    placement = store.place(batch, batch.spans[0])
    keys = Vectors(vectors(range(start, start + count)))
    store.write(0, row, placement, keys, Vectors(-keys.numbers))
    store.mark(row, placement)


@settings(max_examples=50, deadline=None)
@given(
    window=st.integers(1, 9),
    n_pins=st.integers(0, 4),
    chunks=st.lists(st.sampled_from([1, 1, 1, 2, 3, 5, 8, 21]), min_size=1, max_size=12),
    begin=st.sampled_from([0, 0, 3, 10_000_000]),
    limit=st.sampled_from([None, None, 0, 3, 5]),
    flags=st.randoms(use_true_random=False),
)
def test_every_token_is_in_the_log_where_its_position_says(window, n_pins, chunks, begin, limit, flags) -> None:  # type: ignore[no-untyped-def]
    n_pins = min(n_pins, window)
    block = 2 * 2 * 8 * 4 * 4
    room = LogRoom(None if limit is None else limit * block)
    store = RingStore(AttentionPattern(window=window, pins=n_pins, pin_by="flag"), layout(n_rows=2), room=room)
    plain = RingStore(store.pattern, layout(n_rows=2))
    log = store.log
    assert log is not None
    assert log.first(1) == log.end(1) == 0
    end, pins = begin, 0
    for count in chunks:
        flagged = [pins < n_pins and flags.random() < 0.2 and bool(pins := pins + 1) for _ in range(count)]
        read(store, 1, end, count, flagged)
        read(plain, 1, end, count, flagged)
        end += count
    assert store.held(1, end, end - window) == plain.held(1, end, end - window)
    first = log.first(1)
    assert first == begin if limit is None else begin <= first < end
    assert limit is None or room.nbytes <= max(limit * block, block)
    held = log.held(1, begin, end)
    assert positions_of(held) == list(range(first, end))
    for run in held:
        found = log.slots(1, run)[0, 0, 1, run.start : run.start + run.size]
        assert torch.equal(found.numbers, vectors(range(run.first_position, run.first_position + run.size))[1])
    assert log.held(1, end - 1, end)[0].first_position == end - 1
    log.wipe(1)
    assert room.nbytes == 0
    assert log.held(1, begin, end) == []


def test_runs_of_a_log_end_with_its_blocks() -> None:
    store = RingStore(AttentionPattern(window=3), layout(), room=LogRoom())
    assert store.log is not None
    read(store, 0, 0, 13)
    read(store, 0, 13, 1)
    assert store.log.held(0, 6, 99) == [HeldRun(6, 2, "block", 6, 0), HeldRun(8, 6, "block", 0, 1)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 99),
    kv=st.integers(0, 2),
    cuts=st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=12, unique=True),
    schedule=st.randoms(use_true_random=False),
)
def test_rows_go_back_to_anywhere_as_if_they_had_never_gone_on(name, seed, kv, cuts, schedule) -> None:  # type: ignore[no-untyped-def]
    """Rewound, branched, restored from a file, at random: every number is that of a row that only went forward."""
    network = network_of(name)
    kv = kvs(name)[kv % len(kvs(name))]
    text, other = Text(seed, cuts=cuts), Text(seed, cuts=cuts)
    other.ids[30:] = Text(seed + 1).ids[30:]
    wholes = {id(one): one.whole(network, kv) for one in (text, other)}
    cache = cache_of(network, 2, kv)
    rows = {cache.allocate(): text, cache.allocate(): text}
    state: RowState | None = None
    for _ in range(8):
        row = schedule.choice(list(rows))
        at = cache.lengths[row]
        back = schedule.choice([bound for bound in text.bounds if bound <= at])
        if state is not None and schedule.random() < 0.3:
            length = schedule.choice([bound for bound in text.bounds if state.covers(bound)])
            one = state
            if schedule.random() < 0.5:
                one = RowState.rebuild(json.loads(json.dumps(state.describe())), list(state.tensors()))
            cache.restore(row, one, length)
            rows[row] = text
        elif schedule.random() < 0.6:
            cache.rewind(row, back)
            rows[row] = schedule.choice([text, other]) if back <= 30 else rows[row]
        at = cache.lengths[row]
        stop = schedule.choice([bound for bound in text.bounds if bound >= at])
        got = list(rows[row].read(network, cache, row, stop))
        if got:
            assert torch.equal(torch.cat(got), wholes[id(rows[row])][at:stop])
        if rows[row] is text and cache.lengths[row]:
            state = cache.capture(row)
            assert state.positions() == range(cache.lengths[row] + 1)


@pytest.mark.parametrize("name", ["window", "interleaved", *(name for name in NAMES if name.startswith("native"))])
def test_all_but_one_of_the_windows_tokens_are_needed_and_are_enough(name: str) -> None:
    """Of a state whose front is cut off at n, n + W - 1 is the first length; what lies before n matters to nothing."""
    network, text = network_of(name), Text(3)
    cache = cache_of(network, 2)
    row, other = cache.allocate(), cache.allocate()
    list(text.read(network, cache, row, 60))
    whole = text.whole(network, "auto")
    for store in rings(cache):
        log = store.log
        assert log is not None
        for _ in range(3):
            assert log.drop_front(row)
        assert log.first(row) == 24
    state = cache.capture(row)
    assert state.positions() == range(24 + W - 1, 61)
    assert not state.covers(24 + W - 2)
    with pytest.raises(UsageError, match="after 32 to 60 tokens; not after 31"):
        cache.restore(other, state, 24 + W - 2)
    for length in (24 + W - 1, 24 + W, 59, 60):
        cache.restore(other, state, length)
        got = torch.cat(list(text.read(network, cache, other, LENGTH)))
        assert torch.equal(got, whole[length:])


@pytest.mark.parametrize("distance", [W - 1, W])
def test_window_probe_through_a_rewind(distance: int) -> None:
    """After a rewind the key at distance W - 1 matters, the one at W does not."""
    network, last = network_of("window"), 40
    outs = []
    for change in (0, 1):
        text = Text(1, LENGTH)
        cache = cache_of(network)
        row = cache.allocate()
        list(text.read(network, cache, row, 60))
        store = rings(cache)[0]
        assert store.log is not None
        (run,) = store.log.held(row, last - distance, last - distance + 1)
        with torch.inference_mode():
            store.log.slots(row, run).numbers[..., run.start, :] += change
        cache.rewind(row, last)
        outs += list(text.read(network, cache, row, last + 1))
    assert torch.equal(*outs) is (distance == W)


def test_a_budget_lets_go_of_the_oldest_blocks_and_rows_go_on() -> None:
    network, text = network_of("pins"), Text(4)
    block = 2 * 2 * 2 * 8 * 8 * 4
    cache = cache_of(network, 2, log=5 * block)
    whole = text.whole(network, "auto")
    rows = [cache.allocate(), cache.allocate()]
    for row in rows:
        assert torch.equal(torch.cat(list(text.read(network, cache, row, LENGTH))), whole)
    assert cache.log is not None
    assert cache.log.nbytes == 5 * block
    (store,) = rings(cache)
    assert store.log is not None
    assert [store.log.first(row) for row in rows] == [56, 48]
    cache.rewind(rows[1], 56)
    assert torch.equal(torch.cat(list(text.read(network, cache, rows[1], LENGTH))), whole[56:])
    with pytest.raises(UsageError, match="after 56 to 70 tokens"):
        cache.rewind(rows[1], 55)
    none = cache_of(network, log=0)
    list(text.read(network, none, none.allocate(), 60))
    none.rewind(0, 59)  # its ring is copied
    assert torch.equal(torch.cat(list(text.read(network, none, 0, LENGTH))), whole[59:])


def test_without_a_log_there_is_none() -> None:
    network, text = network_of("window"), Text(4)
    cache = cache_of(network, log=False)
    row = cache.allocate()
    list(text.read(network, cache, row, 60))
    assert cache.log is None
    assert all(store.log is None for store in rings(cache))
    assert cache.capture(row).positions() == range(59, 61)
    with pytest.raises(UsageError, match="0 bytes or more"):
        cache_of(network, log=-1)


@torch.inference_mode()
def test_a_chunk_that_failed_half_way_is_taken_back_with_the_log() -> None:
    for name in CONFIGS:
        network, text = network_of(name), Text(4, cuts=[40, 52])
        whole = text.whole(network, "auto")
        for log in (True, False):
            cache = cache_of(network, log=log)
            row = cache.allocate()
            list(text.read(network, cache, row, 40))
            batch = Batch.pack([text.ids[40:52]], [40], [row])
            for store in cache.stores.values():
                placement = store.place(batch, batch.spans[0])
                n_heads, dim = store.layout.n_heads, store.layout.head_dim
                junk = Vectors(torch.full((n_heads, 12, dim), 7.0))
                store.write(0, row, placement, junk, junk)
            intact = undo(cache, row, 40, 12)
            assert intact is (log or not rings(cache))
            if intact:
                assert torch.equal(torch.cat(list(text.read(network, cache, row, LENGTH))), whole[40:])
