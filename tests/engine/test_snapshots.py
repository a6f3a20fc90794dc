"""Snapshots of rows are found as far as tokens are equal, and keep to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.engine import snapshot_files, snapshot_index
from sash.engine.snapshots import Snapshots
from sash.errors import UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.snapshot import RowState
from tests.conftest import small_config, small_decoder
from tests.engine.made_up_rows import beside, held, make, row_of, tokens_of

__all__ = ["make"]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("FIRST_BLOCK", 8), ("LARGEST_BLOCK", 16), ("LOG_BLOCK", 4)):
        monkeypatch.setattr(f"sash.network.sizing.{name}", size)


# What is found.

texts = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=14)
places = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([b"", b"key"]))
pins = st.sampled_from([(), (range(2),), (range(1, 3), range(5, 6))])


def flagged(ranges: Sequence[range], length: int) -> frozenset[int]:
    return frozenset(position for run in ranges for position in run if position < length)


def alike(one: Sequence[int], other: Sequence[int], pins: Sequence[range], other_pins: Sequence[range]) -> int:
    """How many first tokens two texts share, flags considered."""
    for at in range(min(len(one), len(other))):
        if one[at] != other[at] or flagged(pins, at + 1) != flagged(other_pins, at + 1):
            return at
    return min(len(one), len(other))


@settings(max_examples=120, deadline=None)
@given(
    kept=st.lists(st.tuples(texts, places, pins)),
    asked=texts,
    place=places,
    pinned=pins,
    aligned=st.sampled_from([1, 2, 3]),
    reach=st.sampled_from([None, 0, 3, 6]),
    full=st.booleans(),
)
def test_whatever_shares_most_tokens_is_found_and_no_other(kept, asked, place, pinned, aligned, reach, full) -> None:  # type: ignore[no-untyped-def]
    snapshots = Snapshots(1 << 20)
    for ids, (lane, salt), ranges in kept:
        row = row_of(ids, reach, 0, ranges)
        snapshots.keep(ids, lane, beside(row_of(ids), row) if full else row, salt, pins=ranges)
    shared = [alike(ids, asked, ranges, pinned) for ids, where, ranges in kept if where == place]
    expected = min(max(shared, default=0), len(asked) - 1) // aligned * aligned
    found = snapshots.find(asked, *place, pins=pinned, aligned=aligned)
    assert (found.length if found else 0) == expected
    if found:
        assert found.state.length == expected
        assert len(found.state.states) == 1 + full
        assert tokens_of(found.state, expected, 0) == tokens_of(found.state, expected) == asked[:expected]
        store = found.state.states[-1]
        if reach is not None:
            assert [p for run in store.pinned for p in range(run.first_position, run.first_position + run.size)] == (
                sorted(flagged(pinned, expected))
            )
            assert store.pins is not None
            assert store.pins.numbers[1, 0, 0, :, 0].tolist() == [asked[p] for p in sorted(flagged(pinned, expected))]
        assert (snapshots.figures().hits, snapshots.figures().tokens) == (1, expected)
    else:
        assert sum(snapshots.figures().misses.values()) == 1


def test_tokens_are_compared_and_not_only_their_digests(monkeypatch: pytest.MonkeyPatch, make) -> None:  # type: ignore[no-untyped-def]
    """With digests that are all the same, nobody gets what another's tokens have made."""
    for module in (snapshot_files, snapshot_index):
        monkeypatch.setattr(module, "next_name", lambda parent, ids, pins: "0" * 40)
    snapshots = make()
    snapshots.keep([1, 2, 3], None, row_of([1, 2, 3]))
    snapshots.flush()
    for one in (snapshots, make()):
        assert one.find([4, 2, 3, 5], None) is None
        assert one.find([1, 2, 4, 5], None).length == 2
        assert one.find([1, 2, 3, 5], None).length == 3


def test_misses_have_reasons() -> None:
    snapshots = Snapshots(1 << 20)
    assert snapshots.find([1, 2], None) is None
    snapshots.keep([1, 2, 3], None, row_of([1, 2, 3]))
    assert snapshots.find([2, 2, 4], None) is None
    assert snapshots.find([1], None) is None
    assert snapshots.find([1, 2, 3, 4], "narrow") is None
    assert snapshots.find([1, 2, 3, 4], None, b"key") is None
    snapshots.skip()
    assert snapshots.figures().misses == {"empty": 3, "differs": 2, "off": 1}
    assert snapshots.figures().hits == 0


def test_without_memory_nothing_is_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(0, folder=tmp_path / "kept")
    assert snapshots.room is None
    snapshots.keep([1, 2, 3], None, row_of([1, 2, 3]))
    assert snapshots.find([1, 2, 3, 4], None) is None
    assert not (tmp_path / "kept").exists()


def test_numbers_that_cannot_be_are_refused() -> None:
    for wrong in ({"memory": -1}, {"memory": 1, "disk": -1}):
        with pytest.raises(UsageError):
            Snapshots(**wrong)
    with pytest.raises(UsageError, match="a state of 1 tokens was named by 2"):
        Snapshots(1).keep([1, 2], None, row_of([1]))


@pytest.mark.parametrize("distance", [6, 7])
def test_only_pieces_that_a_next_token_sees_are_needed(distance: int) -> None:
    """With a window of 7, going on after 22 tokens takes those at 16 to 21: the piece before may be missing."""
    snapshots, ids = Snapshots(1 << 20), list(range(30))
    snapshots.keep(ids, None, row_of(ids, reach=6))
    gone = 22 - distance
    pieces = snapshots._held.pieces
    snapshots.drop([piece.name for piece in pieces if piece.label.start <= gone < piece.label.length])
    found = snapshots.find([*ids[:22], 99], None)
    assert found is not None
    assert found.length == (22 if distance == 7 else gone // 4 * 4)
    assert found.state.covers(found.length)
    assert not (distance == 7 and found.state.covers(21))


def test_of_a_long_text_on_disk_only_what_a_next_token_sees_is_read(make) -> None:  # type: ignore[no-untyped-def]
    """All that layers without a bound hold; of those with a window of 4 the last 3 tokens, and others when needed."""
    ids = [7 + n % 5 for n in range(38)]
    first = make()
    first.keep(ids, None, beside(row_of(ids), row_of(ids, reach=3)))
    first.flush()
    again = make()
    found = again.find([*ids, 1], None)
    assert found.length == 38
    assert tokens_of(found.state, 38, 0) == ids
    assert tokens_of(found.state, 38) == [-1] * 32 + ids[32:]
    windows = sorted(piece.label.start for piece, store in again._held.parts if store == 1)
    assert windows == [32, 36]
    assert again.nbytes == held(again)
    found = again.find([*ids[:21], 99], None)
    assert found.length == 21
    assert tokens_of(found.state, 21) == [-1] * 16 + ids[16:21]
    assert again.figures().disk.refused == 0


# The budget.


@settings(max_examples=100, deadline=None)
@given(
    memory=st.integers(0, 900),
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 25), st.booleans(), st.integers(0, 20)), max_size=40),
    reach=st.sampled_from([None, 5]),
    full=st.booleans(),
)
def test_the_budget_is_never_exceeded_and_shared_blocks_count_once(memory, steps, reach, full) -> None:  # type: ignore[no-untyped-def]
    """Chats that grow, branch and are taken back, in any order; what is counted is what a count from scratch finds."""
    snapshots = Snapshots(memory)
    for chat, length, asks, branch in steps:
        ids = [chat] * min(length, branch) + [9] * max(0, length - branch)
        if asks:
            found = snapshots.find([*ids, 7], None)
            for store in range(1 + full if found else 0):
                assert tokens_of(found.state, found.length, store)[-1:] == [ids[found.length - 1]]
        else:
            row = row_of(ids, reach)
            snapshots.keep(ids, None, beside(row_of(ids), row) if full else row)
        assert snapshots.nbytes == held(snapshots) <= memory
        assert snapshots.figures().bytes == snapshots.nbytes
    snapshots.drop([piece.name for piece in snapshots._held.pieces])
    assert snapshots.nbytes == 0
    assert snapshots.find([0, 0, 0], None) is None
    assert len(snapshots._index) == len(snapshots._index._next) == len(snapshots._index._places) == 0


def test_the_least_recently_used_goes_first() -> None:
    snapshots = Snapshots(3 * (32 + 16))
    for token in (1, 2, 3):
        snapshots.keep([token] * 4, None, row_of([token] * 4))
    assert snapshots.find([1] * 5, None) is not None
    snapshots.keep([4] * 4, None, row_of([4] * 4))
    assert [snapshots.find([token] * 5, None) is not None for token in (1, 2, 3, 4)] == [True, False, True, True]
    assert snapshots.figures().evictions == 1
    assert snapshots.figures().in_memory == 3


def test_what_lies_before_all_windows_goes_before_any_of_them() -> None:
    """A long text makes room for itself; the ends of short ones stay, and so does its own."""
    snapshots = Snapshots(10 * (32 + 16))
    for token in (1, 2, 3):
        snapshots.keep([token] * 4, None, row_of([token] * 4, reach=3))
    long = [7 + n % 5 for n in range(64)]
    snapshots.keep(long, None, row_of(long, reach=3))
    assert [snapshots.find([token] * 5, None) is not None for token in (1, 2, 3)] == [True] * 3
    assert snapshots.find([*long, 1], None).length == 64
    assert snapshots.find([*long[:50], 1], None).length == 50
    assert snapshots.find([*long[:20], 1], None) is None


def test_beside_layers_without_a_bound_windows_go_from_the_front_too() -> None:
    """Room for what all 64 tokens left in the one, and for four pieces of the other: the end can be gone on from."""
    snapshots, long = Snapshots(64 * (8 + 4) + 4 * 32), [7 + n % 5 for n in range(64)]
    row = beside(row_of(long), row_of(long, reach=3))
    snapshots.keep(long, None, row)
    assert snapshots.figures().evictions == 12
    assert snapshots.figures().in_memory == 16
    found = snapshots.find([*long, 1], None)
    assert found.length == 64
    assert tokens_of(found.state, 64, 0) == long
    assert snapshots.find([*long[:50], 1], None) is None
    full, windows = row.states
    windows = replace(windows, blocks=windows.blocks[:13], starts=windows.starts[:13])
    snapshots.keep(long[:50], None, RowState(50, row.kinds, (full, windows)))
    assert snapshots.find([*long[:50], 1], None).length == 50
    assert snapshots.nbytes == held(snapshots) <= snapshots.memory


def test_a_text_that_goes_on_takes_the_place_of_its_beginning() -> None:
    snapshots = Snapshots(1 << 20)
    for length in range(1, 15):
        snapshots.keep([5] * length, None, row_of([5] * length, reach=3))
        assert snapshots.figures().in_memory == -(-length // 4)
    snapshots.keep([5] * 6, None, row_of([5] * 6, reach=3))
    assert snapshots.figures().in_memory == 4


@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_a_chat_goes_on_and_back_after_a_restart_as_if_there_had_been_none(make, kv: str) -> None:  # type: ignore[no-untyped-def]
    """Everything together: a real network, windows, flagged pins and full layers, a log, branches, files."""
    config = small_config([AttentionPattern(window=6, pins=3, pin_by="flag"), AttentionPattern()])
    decoder, ids = small_decoder(config), torch.randint(0, 61, (60,)).tolist()
    pinned = [range(2, 4), range(9, 10)]

    @torch.inference_mode()
    def go_on(cache: KVCache, row: int, ids: list[int], start: int) -> torch.Tensor:
        outs = []
        for at in range(start, len(ids)):
            flags = [[any(at in run for run in pinned)]]
            outs.append(decoder(Batch.pack([ids[at : at + 1]], [at], [row], pinned=flags), cache))
        return torch.cat(outs)

    cache = KVCache(config, kv=kv, log=True)
    row = cache.allocate()
    whole = go_on(cache, row, ids, 0)
    snapshots = make()
    cache.rewind(row, 50)
    snapshots.keep(ids[:50], None, cache.capture(row), pins=pinned)
    snapshots.flush()
    for one in (snapshots, make()):
        for length in (1, 11, 37, 50):
            changed = [*ids[:length], (ids[length] + 1) % 61]
            found = one.find(changed, None, pins=pinned)
            assert found.length == length
            fresh = KVCache(config, kv=kv, log=True)
            fresh.restore(fresh.allocate(), found.state, found.length)
            assert torch.equal(go_on(fresh, 0, ids, length), whole[length:])


def test_turns_of_a_chat_do_not_hold_a_copy_each() -> None:
    """A block of a layer without a bound that is copied at each turn is held once, by the pieces of all turns."""
    snapshots = Snapshots(1 << 20)
    for length in (5, 9, 10, 13, 16):
        snapshots.keep([1] * length, None, row_of([1] * length))
        assert snapshots.nbytes == held(snapshots) == 8 * length + 4 * length
