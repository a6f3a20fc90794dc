"""Which positions a row of a rolling buffer holds, and in which slots: plain integers.

Position p lies in slot p mod W of the ring, and a pin in a slot of its own beside it, in the order in which pins came.
"""

from __future__ import annotations

from collections.abc import Iterable

from sash.network.slots import HeldRun, Put


class RingRow:
    """What one row's ring and pins hold.

    Attributes:
        n_slots: slots of the ring.
        positions: the position in each of them, -1 for an empty one.
        pinned: slots of pins, by ascending position; pins side by side are one run.
        n_pinned: how many pins that is.
        begin: the first position that was ever read; None before there is one.
        oldest: none before it is in the ring.
    """

    def __init__(self, n_slots: int) -> None:
        """An empty row."""
        self.n_slots = n_slots
        self.positions = [-1] * n_slots
        self.pinned: list[HeldRun] = []
        self.n_pinned = self.oldest = 0
        self.begin: int | None = None

    @property
    def last_pin(self) -> int:
        """Position of the last pin; -1 without one.

        >>> RingRow(4).last_pin
        -1
        """
        if not self.pinned:
            return -1
        last = self.pinned[-1]
        return last.first_position + last.size - 1

    def held(self, length: int, oldest: int) -> list[HeldRun]:
        """What is held of the positions oldest..length-1, and the pins, by ascending position.

        >>> row = RingRow(4)
        >>> row.mark(put.run for put in row.place(0, 6, pinned=[]))
        >>> [(run.first_position, run.size, run.start) for run in row.held(length=6, oldest=3)]
        [(3, 1, 3), (4, 2, 0)]
        """
        runs: list[HeldRun] = []
        if self.begin is not None:
            runs = self.unpinned(max(oldest, length - self.n_slots, self.begin), length)
        return sorted([*self.pinned, *runs]) if self.pinned else runs

    def unpinned(self, first: int, end: int) -> list[HeldRun]:
        """The slots of positions [first, end), at most `n_slots`, but for pins, which are not in the ring."""
        runs: list[HeldRun] = []
        for run in self.pinned:
            if run.first_position + run.size > first:
                runs += self._around(first, min(run.first_position, end) - first)
                first = max(first, run.first_position + run.size)
        return runs + self._around(first, end - first)

    def _around(self, position: int, count: int) -> list[HeldRun]:
        """The slots of `count` positions, at most `n_slots`: two runs if the ring ends among them."""
        if count <= 0:
            return []
        start = position % self.n_slots
        before = min(count, self.n_slots - start)
        run = HeldRun(position, before, "ring", start)
        return [run] if before == count else [run, HeldRun(position + before, count - before, "ring", 0)]

    def place(self, position: int, n_tokens: int, pinned: Iterable[tuple[int, int]]) -> list[Put]:
        """Where tokens go, counted from 0: the newest that the ring can hold into it, pins into slots of their own.

        Args:
            position: that of the first of them.
            n_tokens: how many follow each other.
            pinned: (first, count) of each stretch of them that are pins.
        """
        if self.begin is None:
            self.begin = self.oldest = position
        puts: list[Put] = []
        first, taken = max(0, n_tokens - self.n_slots), self.n_pinned

        def roll(end: int) -> list[Put]:
            runs = self._around(position + first, end - first)
            return [Put(run.first_position - position, run) for run in runs]

        for index, count in pinned:
            puts.append(Put(index, HeldRun(position + index, count, "pins", taken)))
            taken += count
            puts += roll(index)
            first = max(first, index + count)
        return puts + roll(n_tokens)

    def mark(self, runs: Iterable[HeldRun]) -> None:
        """Note what slots of ring and pins now hold; other runs are somebody else's."""
        for run in runs:
            end = run.first_position + run.size
            if run.source == "ring":
                self.positions[run.start : run.start + run.size] = range(run.first_position, end)
            elif run.source == "pins":
                self.n_pinned += run.size
                if self.last_pin == run.first_position - 1 and self.pinned:
                    self.pinned[-1] = self.pinned[-1]._replace(size=self.pinned[-1].size + run.size)
                else:
                    self.pinned.append(run)

    def unpin(self, position: int) -> None:
        """Forget the pins at a position and after it."""
        kept = [run._replace(size=min(run.size, position - run.first_position)) for run in self.pinned]
        self.pinned = [run for run in kept if run.size > 0]
        self.n_pinned = sum(run.size for run in self.pinned)

    def undo(self, position: int, n_tokens: int) -> None:
        """Forget a step of `n_tokens` tokens from `position` on, and what may have lain where they were written."""
        self.unpin(position)
        if self.begin is not None:
            self.positions = [held if held < position else -1 for held in self.positions]
            self.oldest = max(self.oldest, position + n_tokens - self.n_slots)

    def copy(self) -> RingRow:
        """The same, to go on by itself."""
        twin = RingRow(self.n_slots)
        twin.positions, twin.pinned, twin.n_pinned = list(self.positions), list(self.pinned), self.n_pinned
        twin.begin, twin.oldest = self.begin, self.oldest
        return twin
