"""Which pieces of snapshots there are, found by the tokens that were read, and what they hold counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from sash.engine.snapshot_files import Label, next_name, root_name
from sash.network import sizing
from sash.network.pieces import piece_starts, pinned_before
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState

Pins = tuple[tuple[int, int], ...]
"""[first, end) of each stretch of pinned positions, ascending."""


class Sight(NamedTuple):
    """What is needed of a store to go on.

    Attributes:
        reach: how many tokens before a next one it sees, pins aside; None for all.
        pinned: (first, size) of each stretch of positions that it pins.
    """

    reach: int | None
    pinned: Pins

    def needs(self, length: int, last: int) -> set[int]:
        """Where the pieces begin that a row of `length` tokens goes on from, the last of them being at `last`."""
        size = sizing.LOG_BLOCK
        if self.reach is None:
            return set(piece_starts(length))
        starts = {*range(max(0, length - self.reach) // size * size, length, size), last}
        for first, count in self.pinned:
            starts.update(range(first // size * size, min(first + count, length), size))
        return starts


@dataclass(slots=True, eq=False)
class Piece:
    """A piece in memory, on disk, or both; in memory it may be there in parts, of some stores only.

    Attributes:
        label, name: what it is of.
        kinds: what slots of each store are made of.
        sights: of each store, what is needed of it to go on after this piece.
        parts, storages: of each store, what it holds and in which pieces of memory, as far as it is in memory.
        on_disk: whether there is a file.
    """

    label: Label
    name: str
    kinds: tuple[str, ...]
    sights: tuple[Sight, ...]
    parts: dict[int, StoreState] = field(default_factory=dict)
    storages: dict[int, dict[Hashable, int]] = field(default_factory=dict)
    on_disk: bool = False

    @staticmethod
    def of(label: Label, state: RowState) -> Piece:
        """The piece of a row, which is not in memory yet."""
        sights = []
        for one in state.states:
            pinned = {(run.first_position, run.size) for run in pinned_before(one, label.length)}
            sights.append(Sight(one.reach, tuple(sorted(pinned))))
        return Piece(label, label.name, state.kinds, tuple(sights))

    @staticmethod
    def on_a_disk(label: Label, described: Mapping[str, Any]) -> Piece | None:
        """The piece that a file says it holds; None if it says nothing that makes sense."""
        try:
            kinds = tuple(str(kind) for kind in described["kinds"])
            sights = []
            for store in described["stores"]:
                pinned = {(first, size) for first, size in store["pinned"]}
                numbers = [n for pair in pinned for n in pair] + [0 if store["reach"] is None else store["reach"]]
                if any(type(number) is not int or number < 0 for number in numbers):
                    return None
                sights.append(Sight(store["reach"], tuple(sorted(pinned))))
        except (KeyError, TypeError, ValueError):
            return None
        return Piece(label, label.name, kinds, tuple(sights), on_disk=True) if len(kinds) == len(sights) else None

    @property
    def there(self) -> bool:
        """Whether any of it can be had."""
        return self.on_disk or bool(self.parts)

    @property
    def in_memory(self) -> bool:
        """Whether all of it is in memory."""
        return len(self.parts) == len(self.sights)

    @property
    def complete(self) -> bool:
        """Whether all of it can be had."""
        return self.on_disk or self.in_memory

    def has(self, store: int) -> bool:
        """Whether what a store holds of it can be had."""
        return store in self.parts or (self.on_disk and store < len(self.sights))

    def needs(self, length: int) -> list[tuple[int, int]]:
        """What a row of `length` tokens, which this one holds the last of, goes on from: (start of a piece, store)."""
        return sorted(
            (start, store)
            for store, sight in enumerate(self.sights)
            for start in sight.needs(length, self.label.start)
        )  # fmt: skip


class Asked:
    """A text that is looked for, cut into pieces.

    Attributes:
        place: its lane and salt.
        ids: its tokens, int32.
        pins: its pinned positions.
    """

    def __init__(
        self, fingerprint: str, ids: Sequence[int], lane: Hashable, salt: bytes, pins: Iterable[range]
    ) -> None:
        self.place = repr(lane), blake2b(salt, digest_size=16).hexdigest()  # the salt itself is not told
        self.ids = np.asarray(ids, dtype="<i4").tobytes()
        self.pins = stretches(pins, len(ids))
        self._fingerprint = fingerprint

    def labels(self) -> list[Label]:
        """Labels of its pieces, in order; the last may be shorter than the others."""
        labels = []
        parent = root_name(self._fingerprint, *self.place)
        for start in piece_starts(len(self.ids) // 4):
            ids = self.ids[4 * start : 4 * (start + sizing.LOG_BLOCK)]
            pins = inside(self.pins, start, start + len(ids) // 4)
            labels.append(
                Label(
                    fingerprint=self._fingerprint, lane=self.place[0], salt=self.place[1],
                    parent=parent, start=start, pins=pins, ids=ids,
                )
            )  # fmt: skip
            parent = next_name(parent, ids, pins)
        return labels


class SnapshotIndex:
    """Pieces by name, and those that follow each."""

    def __init__(self) -> None:
        self._pieces: dict[str, Piece] = {}
        self._next: dict[str, list[Piece]] = {}
        self._places: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._pieces)

    def get(self, name: str) -> Piece | None:
        """A piece by its name."""
        return self._pieces.get(name)

    def add(self, piece: Piece) -> None:
        """Have a piece found from now on."""
        if piece.name not in self._pieces:
            self._pieces[piece.name] = piece
            self._next.setdefault(piece.label.parent, []).append(piece)
            self._places[piece.label.lane, piece.label.salt] += 1

    def forget(self, piece: Piece) -> None:
        """Have it found no longer."""
        if self._pieces.pop(piece.name, None) is None:
            return
        following = self._next[piece.label.parent]
        following.remove(piece)
        if not following:
            del self._next[piece.label.parent]
        place = piece.label.lane, piece.label.salt
        self._places[place] -= 1
        if not self._places[place]:
            del self._places[place]

    def followed(self, piece: Piece) -> bool:
        """Whether a piece is there that goes on from another."""
        return any(one.there for one in self._next.get(piece.name, ()))

    def knows(self, place: tuple[str, str]) -> bool:
        """Whether there is anything at a place."""
        return place in self._places

    def shorter(self, label: Label) -> list[Piece]:
        """Pieces that hold the beginning of another, and no more."""
        return [one for one in self._next.get(label.parent, ()) if one.name != label.name and begins(label, one.label)]

    def longer(self, label: Label) -> Piece | None:
        """A piece that begins with all of another and can be had in whole; or that piece itself."""
        exact = self._pieces.get(label.name)
        if exact is not None and exact.there:
            return exact
        following = self._next.get(label.parent, ())
        return next((piece for piece in following if piece.complete and begins(piece.label, label)), None)

    def along(self, labels: Sequence[Label]) -> tuple[dict[int, Piece], int]:
        """Pieces along a text, by where they begin, and how many of its tokens the last of them goes with.

        All but the last hold what the text holds there, compared token by token; the last holds so much of it and may
        then go its own way.
        """
        found: dict[int, Piece] = {}
        length, parted = 0, -1
        for label in labels:
            best, count = self._alike(label)
            if best is None:
                continue
            found.pop(parted, None)
            found[label.start], length = best, label.start + count
            parted = label.start if count < sizing.LOG_BLOCK else -1
        return found, length

    def _alike(self, label: Label) -> tuple[Piece | None, int]:
        """The piece that has most in common with another, and how many tokens; of equals one that is there in whole."""
        exact = self._pieces.get(label.name)
        if exact is not None and exact.there and exact.label.ids == label.ids:
            return exact, len(label.ids) // 4
        best, count = None, 0
        for piece in self._next.get(label.parent, ()):
            same = agreeing(piece.label, label) if piece.there else 0
            if same > count or (same and same == count and best is not None and not best.complete):
                best, count = piece, same
        return best, count


def agreeing(one: Label, other: Label) -> int:
    """How many tokens two pieces have in common at their beginning, pins considered."""
    a, b = np.frombuffer(one.ids, "<i4"), np.frombuffer(other.ids, "<i4")
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    count = int(differ[0]) if len(differ) else size
    if one.pins != other.pins:
        marks = [{p for first, end in label.pins for p in range(first, end)} for label in (one, other)]
        count = min([count, *(p - one.start for p in marks[0] ^ marks[1])])
    return count


def begins(one: Label, other: Label) -> bool:
    """Whether a piece begins with all of another."""
    return agreeing(one, other) == len(other.ids) // 4


def inside(pins: Pins, start: int, end: int) -> Pins:
    """The stretches of pins that lie in [start, end), cut off there.

    >>> inside(((0, 3), (5, 8)), 2, 6)
    ((2, 3), (5, 6))
    """
    return tuple((max(a, start), min(b, end)) for a, b in pins if a < end and b > start)


def stretches(pins: Iterable[range], length: int) -> Pins:
    """The positions below `length` among some ranges, as ascending [first, end) that do not touch.

    >>> stretches([range(5, 9), range(0, 2), range(2, 3), range(20, 30)], 8)
    ((0, 3), (5, 8))
    """
    found: list[list[int]] = []
    for first, end in sorted((run.start, min(run.stop, length)) for run in pins if run.start < length and len(run)):
        if found and first <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([first, end])
    return tuple((first, end) for first, end in found)
