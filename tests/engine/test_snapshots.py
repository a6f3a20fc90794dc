"""Snapshots of rows are found for equal tokens only, and keep to a budget."""

from __future__ import annotations

from collections.abc import Sequence
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
from tests.conftest import small_config, small_decoder
from tests.engine.made_up_rows import block, held, make, state

__all__ = ["make"]

# What is found.

texts = st.lists(st.integers(0, 1), min_size=1, max_size=7)
places = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([b"", b"key"]))
pins = st.sampled_from([(), (range(2),), (range(1, 3), range(5, 6))])


def flagged(ranges: Sequence[range], length: int) -> frozenset[int]:
    return frozenset(position for run in ranges for position in run if position < length)


@settings(max_examples=200, deadline=None)
@given(
    kept=st.lists(st.tuples(texts, places, pins)),
    asked=texts,
    place=places,
    pinned=pins,
    aligned=st.sampled_from([1, 2]),
)
def test_the_longest_snapshot_of_the_same_tokens_is_found_and_no_other(kept, asked, place, pinned, aligned) -> None:  # type: ignore[no-untyped-def]
    snapshots = Snapshots(1 << 20, aligned=aligned)
    for ids, (lane, salt), ranges in kept:
        snapshots.keep(ids, lane, state(len(ids)), salt, pins=ranges)
    candidates = [
        len(ids)
        for ids, where, ranges in kept
        if where == place and asked[: len(ids)] == ids and len(ids) % aligned == 0
        and flagged(ranges, len(ids)) == flagged(pinned, len(ids)) and (len(ids) < len(asked) or aligned == 1)
    ]  # fmt: skip
    expected = min(max(candidates, default=0), len(asked) - 1)
    found = snapshots.find(asked, *place, pins=pinned)
    assert (found.length if found else 0) == expected
    if found:
        assert found.state.length == max(candidates)
        assert snapshots.figures().hits == 1
        assert snapshots.figures().tokens == expected
    else:
        assert sum(snapshots.figures().misses.values()) == 1


def test_tokens_are_compared_and_not_only_their_digests(monkeypatch: pytest.MonkeyPatch, make) -> None:  # type: ignore[no-untyped-def]
    """With digests that are all the same, nobody gets what another's tokens have made."""
    for module in (snapshot_files, snapshot_index):
        monkeypatch.setattr(module, "finish_name", lambda digest, pins: "0" * 40)
    snapshots = make()
    snapshots.keep([1, 2, 3], None, state(3))
    snapshots.flush()
    assert snapshots.find([1, 2, 4, 5], None) is None
    assert snapshots.find([1, 2, 3, 5], None).length == 3
    again = make()
    assert again.find([1, 2, 4, 5], None) is None
    assert again.figures().misses == {"refused": 1}


def test_misses_have_reasons() -> None:
    snapshots = Snapshots(1 << 20)
    assert snapshots.find([1, 2], None) is None
    snapshots.keep([1, 2, 3], None, state(3))
    for ids in ([1, 2], [1]):
        assert snapshots.find(ids, None) is None
    assert snapshots.find([1, 2, 4], None) is None
    assert snapshots.find([1, 2, 3, 4], "narrow") is None
    assert snapshots.find([1, 2, 3, 4], None, b"key") is None
    snapshots.skip()
    assert snapshots.figures().misses == {"empty": 3, "too short": 2, "differs": 1, "off": 1}
    assert snapshots.figures().hits == 0


def test_a_lane_whose_numbers_depend_on_chunks_gets_only_what_ends_with_one() -> None:
    snapshots = Snapshots(1 << 20, every=4)
    for length in (3, 4, 6, 7):
        snapshots.keep([1] * length, None, state(length))
    assert [snapshots.find([1] * n, None, aligned=2).length for n in (8, 7, 6, 5)] == [6, 6, 4, 4]
    assert snapshots.find([1] * 4, None, aligned=2) is None
    assert [position for position in range(1, 8) if snapshots.wanted(position, 7, aligned=2)] == [4, 6]
    assert [position for position in range(1, 8) if snapshots.wanted(position, 7)] == [4, 7]


def test_without_memory_nothing_is_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(0, folder=tmp_path / "kept")
    assert not snapshots.wanted(4096, 4096)
    snapshots.keep([1, 2, 3], None, state(3))
    assert snapshots.find([1, 2, 3, 4], None) is None
    assert not (tmp_path / "kept").exists()


def test_numbers_that_cannot_be_are_refused() -> None:
    for wrong in ({"every": 0}, {"disk": -1}, {"aligned": 0}, {"every": 100, "aligned": 512}):
        with pytest.raises(UsageError):
            Snapshots(1, **wrong)
    with pytest.raises(UsageError, match="a state of 3 tokens was named by 2"):
        Snapshots(1).keep([1, 2], None, state(3))


# The budget.


@settings(max_examples=150, deadline=None)
@given(
    memory=st.integers(0, 900),
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 9), st.booleans(), st.sampled_from(["turn", "inside"])), max_size=40
    ),
)
def test_the_budget_is_never_exceeded_and_shared_blocks_count_once(memory, steps) -> None:  # type: ignore[no-untyped-def]
    """Chats that grow and share blocks, in any order; what is counted is what a count from scratch finds."""
    snapshots = Snapshots(memory, every=2)
    blocks = {chat: [block(8 * (chat + 1)) for _ in range(9)] for chat in range(6)}
    for chat, length, asks, point in steps:
        ids = [chat] * length
        if asks:
            found = snapshots.find([*ids, 7], None)
            assert found is None or (found.length <= length and found.state.length == found.length)
        else:
            snapshots.keep(ids, None, state(length, *blocks[chat][:length]), point=point)
        assert snapshots.nbytes == held(snapshots) <= memory
        assert snapshots.figures().bytes == snapshots.nbytes
    for kept in list(snapshots._order):
        snapshots.drop(kept)
    assert snapshots.nbytes == 0
    assert snapshots.find([0, 0, 0], None) is None
    assert snapshots._index._kept == snapshots._index._lengths == {}


def test_the_least_recently_used_goes_first() -> None:
    snapshots = Snapshots(3 * (64 + 4))
    for token in (1, 2, 3):
        snapshots.keep([token], None, state(1))
    assert snapshots.find([1, 9], None) is not None
    snapshots.keep([4], None, state(1))
    assert [snapshots.find([token, 9], None) is not None for token in (1, 2, 3, 4)] == [True, False, True, True]
    assert snapshots.figures().evictions == 1
    snapshots.keep([5], None, state(1, block(1024)))
    assert snapshots.figures().too_large == 1
    assert snapshots.figures().in_memory == 3


def test_turns_far_behind_go_before_another_chat_does() -> None:
    """Six turns of one chat after one of another: what goes is the beginning of the long one."""
    snapshots = Snapshots(6 * 64 + 4 * (1 + 2 + 3 + 4 + 5 + 6))
    snapshots.keep([9], None, state(1))
    for turn in range(1, 7):
        if turn > 1:
            assert snapshots.find([1] * turn, None).length == turn - 1
        snapshots.keep([1] * turn, None, state(turn))
    assert snapshots.find([9, 1], None) is not None
    lengths = sorted(kept.length for kept in snapshots._order.values())
    assert lengths == [1, 2, 3, 4, 5, 6]
    assert snapshots.find([1, 2], None) is None


def test_of_points_inside_of_a_text_few_stay() -> None:
    snapshots = Snapshots(1 << 20, every=10)
    for length in range(10, 201, 10):
        snapshots.keep([5] * length, None, state(length), point="inside")
    assert [kept.length for kept in snapshots._order.values()] == [10, 20, 40, 80, 160, 200]
    snapshots.find([5] * 205, None)
    snapshots.keep([5] * 210, None, state(210), point="inside")
    assert 200 in [kept.length for kept in snapshots._order.values()]


def test_a_chat_goes_on_after_a_restart_as_if_there_had_been_none(make) -> None:  # type: ignore[no-untyped-def]
    """Everything together: a real network, int8, windows and full layers."""
    config = small_config([AttentionPattern(window=6), AttentionPattern()])
    decoder, ids = small_decoder(config), torch.randint(0, 61, (60,)).tolist()

    @torch.inference_mode()
    def go_on(cache: KVCache, row: int) -> torch.Tensor:
        return decoder(Batch.pack([ids[40:]], [40], [row]), cache)

    cache = KVCache(config, kv="int8")
    row = cache.allocate()
    with torch.inference_mode():
        decoder(Batch.pack([ids[:40]], [0], [row]), cache)
    snapshots = make()
    snapshots.keep(ids[:40], None, cache.capture(row))
    expected = go_on(cache, row)
    snapshots.flush()
    found = make().find(ids, None)
    fresh = KVCache(config, kv="int8")
    assert found.length == 40
    fresh.restore(fresh.allocate(), found.state, found.length)
    assert torch.equal(go_on(fresh, 0), expected)
