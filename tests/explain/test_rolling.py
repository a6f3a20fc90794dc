from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.errors import UnsupportedError, UsageError
from sash.explain.rolling import EMPTY, MOST_STEPS, draw_rolling_buffer, rolling_buffer


@settings(max_examples=200, deadline=None)
@given(window=st.integers(1, 9), pins=st.integers(0, 9), dilation=st.integers(1, 3), extra=st.integers(1, 30))
def test_every_key_that_a_token_sees_is_held(window: int, pins: int, dilation: int, extra: int):
    pattern = AttentionPattern(window=window, pins=min(pins, window), dilation=dilation)
    buffer = rolling_buffer(pattern, window + extra)
    assert buffer.ring_size + buffer.pins == pattern.capacity()
    for frame in buffer.frames:
        held = {p for p in (*frame.ring, *frame.pins) if p != EMPTY}
        query = TokenMeta(position=frame.position)
        assert {j for j in range(frame.position + 1) if pattern.allows(query, TokenMeta(position=j))} <= held
        assert all(p == EMPTY or p % buffer.ring_size == slot for slot, p in enumerate(frame.ring))
        assert all(p >= pattern.pins for p in frame.ring if p != EMPTY)


def test_the_fifth_token_overwrites_the_first():
    frames = rolling_buffer(AttentionPattern(window=4), 6).frames
    assert [frame.slot for frame in frames] == [0, 1, 2, 3, 0, 1]
    assert [frame.evicted for frame in frames] == [None, None, None, None, 0, 1]
    assert frames[4].ring == (4, 1, 2, 3)


def test_pins_stay_in_slots_of_their_own():
    frames = rolling_buffer(AttentionPattern(window=3, pins=2), 9).frames
    assert [frame.pin_slot for frame in frames[:3]] == [0, 1, None]
    assert all(frame.pins == (0, 1) for frame in frames[1:])
    assert frames[8].ring == (6, 7, 8)


def test_flagged_pins():
    pattern = AttentionPattern(window=2, pins=2, pin_by="flag")
    frames = rolling_buffer(pattern, 8, pinned_positions=[5, 1]).frames
    assert frames[-1].pins == (1, 5)
    assert frames[5].ring == (4, 3)
    with pytest.raises(UsageError, match="3 tokens"):
        rolling_buffer(pattern, 8, pinned_positions=[1, 2, 3])


def test_the_drawing_of_a_sentence():
    drawn = draw_rolling_buffer(rolling_buffer(AttentionPattern(window=2), 4, labels=["This", "is", "an", "example"]))
    assert drawn == (
        "Rolling buffer of 2 slots: position i is kept in slot i mod 2\n"
        "  i  slot 0     slot 1\n"
        "  0  [This]     .\n"
        "  1   This      [is]\n"
        "  2  [an]        is        This slid out\n"
        "  3   an        [example]  is slid out"
    )


def test_a_large_ring_shows_the_slots_that_are_touched():
    buffer = rolling_buffer(AttentionPattern(window=4096), 5)
    assert len(buffer.frames[-1].ring) == 5
    assert draw_rolling_buffer(buffer).endswith("4,091 more slots stay empty")


def test_the_data_is_json():
    data = json.loads(json.dumps(rolling_buffer(AttentionPattern(window=2, pins=1), 3).to_json()))
    assert data["frames"][2] == {
        "position": 2,
        "slot": 0,
        "pin_slot": None,
        "evicted": None,
        "ring": [2, 1],
        "pins": [0],
    }


@pytest.mark.parametrize(("n", "says"), [(0, "1 token or more"), (MOST_STEPS + 1, f"at most {MOST_STEPS}")])
def test_lengths_that_cannot_be_drawn_are_refused(n: int, says: str):
    with pytest.raises(UsageError, match=says):
        rolling_buffer(AttentionPattern(window=3), n)


def test_labels_must_match():
    with pytest.raises(UsageError, match="1 labels for 5"):
        rolling_buffer(AttentionPattern(window=3), 5, labels=["a"])


@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern(),
        AttentionPattern(window=3, causal=False),
        AttentionPattern(window=3, global_tokens=True),
    ],
)
def test_a_layer_without_a_bound_has_no_rolling_buffer(pattern: AttentionPattern):
    with pytest.raises(UnsupportedError, match="--window"):
        rolling_buffer(pattern, 9)
