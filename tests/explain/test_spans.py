from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sash.explain.spans import Spans

positions = st.sets(st.integers(-20, 40), max_size=25)


def members(spans: Spans) -> set[int]:
    return {p for first, end in spans.pairs for p in range(first, end)}


@given(positions)
def test_points_are_kept_sorted_and_apart(some: set[int]):
    spans = Spans.points(some)
    assert members(spans) == some
    assert len(spans) == len(some)
    assert all(a[1] < b[0] for a, b in zip(spans.pairs, spans.pairs[1:], strict=False))
    assert (spans.first, spans.last) == ((min(some), max(some)) if some else (None, None))


@given(positions, positions)
def test_algebra_of_sets(some: set[int], other: set[int]):
    a, b = Spans.points(some), Spans.points(other)
    assert a | b == Spans.points(some | other)
    assert a - b == Spans.points(some - other)
    assert all((p in a) == (p in some) for p in range(-22, 43))


@given(positions, st.integers(-30, 30), st.integers(0, 30))
def test_within_and_shifted(some: set[int], first: int, length: int):
    assert members(Spans.points(some).within(first, first + length)) == {p for p in some if first <= p < first + length}
    assert members(Spans.points(some).shifted(first)) == {p + first for p in some}


@given(positions, st.integers(0, 9), st.sampled_from([-4, -1, 1, 3]))
def test_smeared_reaches_every_step(some: set[int], steps: int, stride: int):
    assert members(Spans.points(some).smeared(steps, stride)) == {
        p + step * stride for p in some for step in range(steps + 1)
    }


def test_spans_read_as_positions_with_ends_included():
    assert str(Spans.of([(0, 4), (1000, 1001)])) == "0-3, 1,000"
    assert str(Spans()) == "none"
