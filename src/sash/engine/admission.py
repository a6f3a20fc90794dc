"""Who may start: rows and memory, counted before anything is computed. No torch, no clock.

Every request reserves the bytes that its keys and values take at the very most, so that none that has started can run
out of memory because of the others. A row of windowed layers takes the same however long the sequence becomes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from sash.engine.request import Sequence
from sash.errors import DoesNotFitError, UsageError

Cost = Callable[[Hashable, int], int]
"""Bytes of the keys and values of one sequence of so many tokens in a lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What all sequences have to share.

    Attributes:
        memory: bytes for keys and values; None for no bound.
        max_lanes: lanes beside the engine's own (None) that may run at once; None for no bound.
    """

    memory: int | None = None
    max_lanes: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 0:
            raise UsageError(f"memory counts bytes, so it is 0 or more; got {self.memory}")
        if self.max_lanes is not None and self.max_lanes < 0:
            raise UsageError(f"lanes are counted from 0; got {self.max_lanes}")


class Admission:
    """Free rows and the bytes that are reserved.

    Attributes:
        reserved: bytes that running sequences may need at the very most.
    """

    def __init__(self, rows: Iterable[int], room: Room, cost: Cost | None) -> None:
        self._free = deque(rows)
        self._room = room
        self._cost = cost
        self._lanes: Counter[Hashable] = Counter()
        self._reserved: dict[Sequence, int] = {}
        self._given_back: list[int] = []
        self.n_rows = len(self._free)
        self.reserved = 0

    @property
    def n_free(self) -> int:
        """Rows that nobody has."""
        return len(self._free)

    def check(self, lane: Hashable, length: int) -> int:
        """The bytes that a sequence of at most `length` tokens takes.

        Raises:
            DoesNotFitError: more than there would be if it ran alone.
        """
        cost = 0 if self._cost is None else self._cost(lane, length)
        memory = self._room.memory
        if memory is not None and cost > memory:
            raise DoesNotFitError(
                f"the prompt and max_tokens come to {length} tokens, whose keys and values take {_gib(cost)}, and there"
                f" are {_gib(memory)} for all: ask for fewer tokens, or start with more memory for keys and values"
            )
        return cost

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence its row and its memory, if there are both now."""
        request, lane = sequence.request, sequence.lane
        if request.row is None and not self._free:
            return False
        if lane is not None and lane not in self._lanes and self._room.max_lanes is not None:
            others = len(self._lanes) - (None in self._lanes)
            if others >= self._room.max_lanes:
                return False
        cost = self.check(lane, request.longest) if sequence.needs is None else sequence.needs
        if self._room.memory is not None and self.reserved + cost > self._room.memory:
            return False
        sequence.row = self._free.popleft() if request.row is None else request.row
        self._lanes[lane] += 1
        self._reserved[sequence] = cost
        self.reserved += cost
        return True

    def release(self, sequence: Sequence) -> None:
        """Take back what a sequence had; its row is given out again once `released` has told of it."""
        cost = self._reserved.pop(sequence, None)
        if cost is None:
            return
        self.reserved -= cost
        self._lanes[sequence.lane] -= 1
        if not self._lanes[sequence.lane]:
            del self._lanes[sequence.lane]
        if sequence.row is not None and not sequence.request.keep_row:
            self._given_back.append(sequence.row)

    def released(self) -> list[int]:
        """Rows that came back since the last call; from now on they are free."""
        rows, self._given_back = self._given_back, []
        self._free.extend(rows)
        return rows

    @property
    def lanes(self) -> frozenset[Hashable]:
        """Lanes that have running sequences."""
        return frozenset(self._lanes)


def _gib(size: int) -> str:
    """Bytes for people.

    >>> _gib(3 * 2**30), _gib(300_000)
    ('3.00 GiB', '0.29 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
