"""Sets of positions as spans, so that a window over ten million tokens costs as little as one over ten."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spans:
    """A set of positions: sorted, half-open pairs (first, end) that neither overlap nor touch.

    >>> Spans.of([(4, 7), (0, 2), (6, 9)])
    Spans(pairs=((0, 2), (4, 9)))
    """

    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, int]]) -> Spans:
        """The set of all positions in any of the half-open `pairs`, given in any order; empty ones are dropped."""
        merged: list[tuple[int, int]] = []
        for first, end in sorted(pair for pair in pairs if pair[0] < pair[1]):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        return cls(tuple(merged))

    @classmethod
    def points(cls, positions: Iterable[int]) -> Spans:
        """The set of single positions.

        >>> Spans.points([3, 1, 2, 9])
        Spans(pairs=((1, 4), (9, 10)))
        """
        return cls.of((position, position + 1) for position in positions)

    def __len__(self) -> int:
        return sum(end - first for first, end in self.pairs)

    def __contains__(self, position: int) -> bool:
        index = bisect_right(self.pairs, position, key=lambda pair: pair[0]) - 1
        return index >= 0 and position < self.pairs[index][1]

    def __or__(self, other: Spans) -> Spans:
        if not other.pairs or self == other:
            return self
        if not self.pairs:
            return other
        return self.of((*self.pairs, *other.pairs))

    def __sub__(self, other: Spans) -> Spans:
        if not other.pairs or not self.pairs:
            return self
        left: list[tuple[int, int]] = []
        holes = iter((*other.pairs, (0, 0)))
        hole = next(holes)
        for first, end in self.pairs:
            while hole != (0, 0) and hole[1] <= first:
                hole = next(holes)
            while hole != (0, 0) and hole[0] < end:
                left.append((first, hole[0]))
                first = hole[1]
                if first >= end:
                    break
                hole = next(holes)
            left.append((first, end))
        return self.of(left)

    def shifted(self, by: int) -> Spans:
        """Every position moved by `by`."""
        return Spans(tuple((first + by, end + by) for first, end in self.pairs))

    def within(self, first: int, end: int) -> Spans:
        """The positions p with first <= p < end; in the time that those take."""
        start = max(0, bisect_right(self.pairs, first, key=lambda pair: pair[0]) - 1)
        stop = bisect_left(self.pairs, end, key=lambda pair: pair[0])
        clipped = [(max(a, first), min(b, end)) for a, b in self.pairs[start:stop]]
        return Spans(tuple(pair for pair in clipped if pair[0] < pair[1]))

    def smeared(self, steps: int, stride: int) -> Spans:
        """The positions and all that lie 1 to `steps` strides from them.

        >>> Spans.points([9]).smeared(3, -1), Spans.points([9]).smeared(2, -3)
        (Spans(pairs=((6, 10),)), Spans(pairs=((3, 4), (6, 7), (9, 10))))
        """
        grown, done = self, 0
        while done < steps:
            more = min(done + 1, steps - done)
            grown = grown | grown.shifted(more * stride)
            done += more
        return grown

    @property
    def first(self) -> int | None:
        """The earliest position; None for an empty set."""
        return self.pairs[0][0] if self.pairs else None

    @property
    def last(self) -> int | None:
        """The latest position; None for an empty set."""
        return self.pairs[-1][1] - 1 if self.pairs else None

    def to_json(self) -> list[list[int]]:
        """Pairs [first, end], the end not included."""
        return [list(pair) for pair in self.pairs]

    def __str__(self) -> str:
        """Positions for people, ends included: "0-3, 96-103"."""
        return ", ".join(f"{a:,}" if b - a == 1 else f"{a:,}-{b - 1:,}" for a, b in self.pairs) or "none"
