"""The predicate that everything else derives from, and what is counted with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern, TokenMeta, reach
from sash.errors import ConfigError, PinsError, UsageError, WindowError


def seen_by(pattern: AttentionPattern, query: int, n: int) -> list[int]:
    return [j for j in range(n) if pattern.allows(TokenMeta(position=query), TokenMeta(position=j))]


def tokens(n: int, pinned: Sequence[int] = (), flagged_global: Sequence[int] = ()) -> TokenMeta:
    where = np.arange(n)
    return TokenMeta(position=where, pinned=np.isin(where, pinned), is_global=np.isin(where, flagged_global))


def grid(pattern: AttentionPattern, all_tokens: TokenMeta) -> np.ndarray:
    return np.broadcast_to(
        pattern.allows(all_tokens.reshape(-1, 1), all_tokens.reshape(1, -1)), (len(all_tokens.position),) * 2
    )


# The window


@given(window=st.integers(1, 40), query=st.integers(0, 120))
def test_a_query_sees_exactly_window_keys_its_own_included(window: int, query: int):
    seen = seen_by(AttentionPattern(window=window), query, n=130)
    assert len(seen) == min(window, query + 1)
    assert seen == list(range(query - len(seen) + 1, query + 1))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 4096])
def test_distance_w_minus_1_is_seen_and_w_is_not(window: int):
    pattern = AttentionPattern(window=window)
    query = TokenMeta(position=100_000)
    assert pattern.allows(query, TokenMeta(position=100_000 - (window - 1)))
    assert not pattern.allows(query, TokenMeta(position=100_000 - window))


def test_a_causal_query_never_sees_what_comes_after():
    for pattern in (
        AttentionPattern(),
        AttentionPattern(window=4),
        AttentionPattern(window=4, pins=2),
        AttentionPattern(window=3, dilation=2),
        AttentionPattern(window=4, global_tokens=True),
    ):
        everything = tokens(20, flagged_global=[3, 19])
        assert not np.triu(grid(pattern, everything), k=1).any()


def test_without_a_window_a_query_sees_all_before_it():
    assert seen_by(AttentionPattern(), 9, n=20) == list(range(10))


def test_a_symmetric_window_counts_both_sides_and_the_token():
    assert seen_by(AttentionPattern(window=5, causal=False), 10, n=20) == [8, 9, 10, 11, 12]
    assert seen_by(AttentionPattern(causal=False), 10, n=12) == list(range(12))


def test_dilation_spreads_the_same_number_of_keys():
    assert seen_by(AttentionPattern(window=4, dilation=3), 15, n=30) == [6, 9, 12, 15]
    assert seen_by(AttentionPattern(window=5, dilation=2, causal=False), 10, n=30) == [6, 8, 10, 12, 14]


# Pins, globals, sequences, empty slots


def test_the_first_positions_stay_visible():
    assert seen_by(AttentionPattern(window=3, pins=2), 50, n=60) == [0, 1, 48, 49, 50]


def test_a_pin_is_not_seen_before_it_has_been_read():
    assert seen_by(AttentionPattern(window=2, pins=2), 0, n=10) == [0]


def test_flagged_pins_stay_wherever_they_stand():
    pattern = AttentionPattern(window=3, pins=2, pin_by="flag")
    seen = grid(pattern, tokens(20, pinned=[4, 9]))
    assert np.flatnonzero(seen[15]).tolist() == [4, 9, 13, 14, 15]
    assert np.flatnonzero(seen[6]).tolist() == [4, 5, 6]


def test_flags_are_only_read_by_patterns_that_ask_for_them():
    flagged = tokens(20, pinned=[4, 9], flagged_global=[5])
    plain = AttentionPattern(window=3)
    assert (grid(plain, flagged) == grid(plain, tokens(20))).all()


def test_a_global_token_sees_all_and_is_seen_by_all():
    seen = grid(AttentionPattern(window=3, causal=False, global_tokens=True), tokens(12, flagged_global=[6]))
    assert seen[6].all()
    assert seen[:, 6].all()
    assert np.flatnonzero(seen[1]).tolist() == [0, 1, 2, 6]


@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern(),
        AttentionPattern(window=4),
        AttentionPattern(window=4, pins=2),
        AttentionPattern(window=4, pins=2, pin_by="flag"),
        AttentionPattern(window=4, global_tokens=True),
        AttentionPattern(window=5, causal=False, global_tokens=True),
        AttentionPattern(causal=False),
    ],
)
def test_empty_slots_and_other_sequences_are_never_seen(pattern: AttentionPattern):
    query = TokenMeta(position=9, sequence=1, pinned=True, is_global=True)
    for key_position in range(10):
        assert not pattern.allows(query, TokenMeta(position=key_position, sequence=2, pinned=True, is_global=True))
    assert not pattern.allows(query, TokenMeta(position=-1, sequence=1, pinned=True, is_global=True))
    empty = TokenMeta(position=-1, sequence=1, pinned=True, is_global=True)
    assert not pattern.allows(empty, TokenMeta(position=0, sequence=1))
    assert not pattern.allows(empty, empty)


def test_packed_sequences_see_only_themselves():
    packed = TokenMeta(position=np.array([0, 1, 2, 3, 0, 1, 2]), sequence=np.array([0, 0, 0, 0, 1, 1, 1]))
    seen = grid(AttentionPattern(window=2, pins=1), packed)
    assert seen.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1, 1],
    ]


# Kinds of arrays


@st.composite
def patterns(draw: st.DrawFn, max_window: int = 9) -> AttentionPattern:
    causal = draw(st.booleans())
    window = draw(st.integers(1, max_window) if causal else st.sampled_from(range(1, max_window + 1, 2)))
    pins, pin_by = draw(st.integers(0, window)) if causal else 0, draw(st.sampled_from(["first", "flag"]))
    global_tokens, dilation = draw(st.booleans()), draw(st.sampled_from([1, 1, 2, 3, 5]))
    far_pins = pins and draw(st.booleans())
    bounded = causal and global_tokens and not (pins and pin_by == "first") and draw(st.booleans())
    return AttentionPattern(
        window=window,
        causal=causal,
        pins=pins,
        pin_by=pin_by,
        global_tokens=global_tokens,
        dilation=dilation,
        global_reach=(window - 1) * dilation + draw(st.integers(1, 30)) if bounded else None,
        pin_reach=(window - 1) * dilation + draw(st.integers(1, 30)) if far_pins else None,
    )


@settings(max_examples=150, deadline=None)
@given(pattern=patterns(), data=st.data())
def test_integers_numpy_and_torch_agree(pattern: AttentionPattern, data: st.DataObject):
    n = 24
    position = data.draw(st.lists(st.integers(-1, 40), min_size=n, max_size=n))
    sequence = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    pinned = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    flagged = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    columns = {"position": position, "sequence": sequence, "pinned": pinned, "is_global": flagged}

    one_by_one = [
        TokenMeta(**{name: values[i] for name, values in columns.items()})  # type: ignore[arg-type]
        for i in range(n)
    ]
    plain = np.array([[bool(pattern.allows(query, key)) for key in one_by_one] for query in one_by_one])
    with_numpy = grid(pattern, TokenMeta(**{name: np.array(values) for name, values in columns.items()}))
    in_torch = TokenMeta(**{name: torch.tensor(values) for name, values in columns.items()})
    with_torch = pattern.allows(in_torch.reshape(-1, 1), in_torch.reshape(1, -1))

    assert (plain == with_numpy).all()
    assert with_torch.dtype == torch.bool
    assert (plain == with_torch.numpy()).all()


def test_take_and_reshape_leave_scalars_alone():
    some = TokenMeta(position=np.arange(6), sequence=3, pinned=np.arange(6) > 3)
    picked = some.take(slice(2, 5)).reshape(-1, 1)
    assert picked.position.tolist() == [[2], [3], [4]]
    assert picked.pinned.tolist() == [[False], [False], [True]]
    assert (picked.sequence, picked.is_global) == (3, False)


# Counting


@settings(max_examples=500, deadline=None)
@given(pattern=patterns(), extra=st.integers(1, 52), data=st.data())
def test_visible_pairs_counts_what_allows_allows(pattern: AttentionPattern, extra: int, data: st.DataObject):
    assert pattern.window is not None
    n = pattern.window + extra
    places = st.integers(0, n + 3)
    pinned = data.draw(st.lists(places, max_size=pattern.pins))
    flagged = data.draw(st.lists(places, max_size=6))
    brute = int(grid(pattern, tokens(n, pinned=pinned, flagged_global=flagged)).sum())
    assert pattern.visible_pairs(n, flagged, pinned) == brute


@pytest.mark.parametrize("pattern", [AttentionPattern(), AttentionPattern(causal=False), AttentionPattern(window=6)])
@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 40])
def test_visible_pairs_at_the_edges(pattern: AttentionPattern, n: int):
    assert pattern.visible_pairs(n) == int(grid(pattern, tokens(n)).sum())


def test_visible_pairs_of_the_full_and_the_windowed_mistral_7b():
    full, windowed = AttentionPattern().visible_pairs(16_384), AttentionPattern(window=4096).visible_pairs(16_384)
    assert round(full / windowed, 2) == 2.29


def test_counting_works_at_lengths_that_no_loop_over_tokens_could_reach():
    pattern = AttentionPattern(window=4097, causal=False, dilation=7, global_tokens=True)
    n = 10**15
    spread = range(0, n, n // 500)
    pairs = pattern.visible_pairs(n, list(spread))
    assert 2 * len(spread) * n * 0.99 < pairs - 4097 * n < 2 * len(spread) * n


def test_repeated_positions_count_once():
    pattern = AttentionPattern(window=3, pins=2, pin_by="flag", global_tokens=True)
    assert pattern.visible_pairs(30, [5, 5], [2, 2]) == pattern.visible_pairs(30, [5], [2])


def test_flops_are_four_a_pair_head_and_component():
    pattern = AttentionPattern(window=4, global_tokens=True)
    assert pattern.flops(30, n_heads=3, head_dim=16, global_positions=[7]) == 4 * 3 * 16 * pattern.visible_pairs(
        30, [7]
    )


# Capacity and reach


def test_capacity_is_the_window_and_the_pins():
    assert AttentionPattern(window=4096).capacity() == 4096
    assert AttentionPattern(window=4096, pins=4).capacity() == 4100
    assert AttentionPattern(window=4, dilation=3).capacity() == 10


def test_global_tokens_take_the_slots_of_pins():
    pattern = AttentionPattern(window=4, pins=2, pin_by="flag", global_tokens=True)
    assert pattern.holds_global
    assert pattern.capacity() == 6
    flagged = tokens(8, flagged_global=[1], pinned=[0])
    assert pattern.is_pin(flagged).tolist() == [True, True] + [False] * 6
    for other in ({"pins": 0}, {"pin_by": "first"}, {"global_tokens": False}):
        kept = AttentionPattern(**{"window": 4, "pins": 2, "pin_by": "flag", "global_tokens": True, **other})
        assert not kept.holds_global
        assert (kept.capacity() is None) is kept.global_tokens


def test_a_global_query_sees_as_far_as_it_may():
    pattern = AttentionPattern(window=3, pins=2, pin_by="flag", global_tokens=True, global_reach=6)
    seen = grid(pattern, tokens(16, flagged_global=[0, 14]))
    assert np.flatnonzero(seen[14]).tolist() == [0, 9, 10, 11, 12, 13, 14]
    assert np.flatnonzero(seen[13]).tolist() == [0, 11, 12, 13]
    assert np.flatnonzero(seen[15]).tolist() == [0, 13, 14, 15]


@pytest.mark.parametrize(
    "fields",
    [
        {"window": 4, "global_reach": 9},
        {"window": 4, "global_tokens": True, "global_reach": 3},
        {"window": 4, "dilation": 2, "global_tokens": True, "global_reach": 6},
        {"window": 4, "pins": 1, "global_tokens": True, "global_reach": 9},
        {"global_tokens": True, "global_reach": 9},
        {"window": 5, "causal": False, "global_tokens": True, "global_reach": 9},
    ],
)
def test_a_reach_of_global_queries_that_cannot_be_is_refused(fields: dict[str, Any]):
    with pytest.raises(ConfigError, match="global_reach"):
        AttentionPattern(**fields)


@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern(),
        AttentionPattern(window=5, causal=False),
        AttentionPattern(window=5, global_tokens=True),
    ],
)
def test_patterns_that_must_keep_everything_have_no_capacity(pattern: AttentionPattern):
    assert pattern.capacity() is None


@given(window=st.integers(1, 12), dilation=st.integers(1, 4), pins=st.integers(0, 12))
def test_a_ring_of_that_capacity_never_loses_a_key_that_a_later_query_sees(window: int, dilation: int, pins: int):
    pattern = AttentionPattern(window=window, dilation=dilation, pins=min(pins, window))
    ring = pattern.capacity() - pattern.pins  # type: ignore[operator]
    query = 100
    beyond_pins = [j for j in seen_by(pattern, query, n=101) if j >= pattern.pins]
    assert min(beyond_pins) > query - ring


def test_reach_is_layers_times_window_minus_one():
    assert reach((AttentionPattern(window=4096),) * 32) == 131_040
    assert reach((AttentionPattern(window=4), AttentionPattern(window=3, dilation=5))) == 3 + 10
    assert reach((AttentionPattern(window=4), AttentionPattern())) is None
    assert AttentionPattern(window=5, causal=False, dilation=2).reach_back == 4


# What cannot be


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"window": 0}, WindowError, "window of 0"),
        ({"window": -3}, WindowError, "window of -3"),
        ({"window": 4, "causal": False}, WindowError, "odd; got 4"),
        ({"window": 4, "dilation": 0}, ConfigError, "dilation"),
        ({"dilation": 2}, ConfigError, "dilation"),
        ({"window": 4, "pin_by": "last"}, ConfigError, "'last'"),
        ({"window": 4, "pins": -1}, PinsError, "-1"),
        ({"pins": 2}, PinsError, "full pattern"),
        ({"window": 5, "pins": 1, "causal": False}, PinsError, "causal"),
        ({"window": 4, "pins": 5}, PinsError, "at most 4"),
        ({"window": 4, "pins": 1, "pin_reach": 3}, PinsError, "reach of 3"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(fields: dict[str, object], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        AttentionPattern(**fields)  # type: ignore[arg-type]


def test_counting_refuses_what_cannot_be():
    with pytest.raises(UsageError, match="-1"):
        AttentionPattern(window=4).visible_pairs(-1)
    with pytest.raises(PinsError, match="3 tokens"):
        AttentionPattern(window=4, pins=2, pin_by="flag").visible_pairs(20, pinned_positions=[1, 2, 3])


def test_a_pattern_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        AttentionPattern(window=4).window = 5  # type: ignore[misc]
