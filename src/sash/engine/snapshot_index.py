"""Which snapshots there are: found by the beginnings of a text, and what they hold counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from sash.engine.snapshot_files import Label, finish_name, place_digest
from sash.network.snapshot import RowState

Pins = tuple[tuple[int, int], ...]
"""[first, end) of each stretch of pinned positions, ascending."""


@dataclass(slots=True, eq=False)
class Kept:
    """A snapshot in memory (with a state), on disk, or both.

    Attributes:
        name: of its label.
        place: its lane and salt.
        length: tokens.
        point: "turn" or "inside".
        label, state, storages: what it is of, what it holds and in which pieces of memory, while it is in memory.
        on_disk: whether there is a file.
        uses: requests that went on from it.
    """

    name: str
    place: tuple[str, str]
    length: int
    point: str
    label: Label | None = None
    state: RowState | None = None
    storages: dict[Hashable, int] = field(default_factory=dict)
    on_disk: bool = False
    uses: int = 0


class SnapshotIndex:
    """Snapshots by name, and the lengths that there are at each place."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._kept: dict[str, Kept] = {}
        self._lengths: dict[tuple[str, str], Counter[int]] = {}

    def get(self, name: str) -> Kept | None:
        """A snapshot by its name."""
        return self._kept.get(name)

    def add(self, kept: Kept) -> None:
        """Have a snapshot found from now on."""
        if kept.name not in self._kept:
            self._kept[kept.name] = kept
            self._lengths.setdefault(kept.place, Counter())[kept.length] += 1

    def forget(self, kept: Kept) -> None:
        """Have it found no longer."""
        if self._kept.pop(kept.name, None) is None:
            return
        lengths = self._lengths[kept.place]
        lengths[kept.length] -= 1
        if not lengths[kept.length]:
            del lengths[kept.length]
        if not lengths:
            del self._lengths[kept.place]

    def shortest(self, place: tuple[str, str]) -> int | None:
        """The least length at a place; None if there is nothing."""
        return min(self._lengths.get(place, ()), default=None)

    def along(self, ids: bytes, place: tuple[str, str], pins: Sequence[range]) -> list[Kept]:
        """Snapshots of the beginnings of a text, by ascending length.

        Those in memory are compared token by token; of those on disk only the digest was, so far.
        """
        found, done = [], 0
        digest = place_digest(self._fingerprint, *place)
        for length in sorted(self._lengths.get(place, ())):
            if 4 * length > len(ids):
                break
            digest.update(ids[done : 4 * length])
            done = 4 * length
            kept = self._kept.get(finish_name(digest, stretches(pins, length)))
            if kept is not None and (kept.label is None or kept.label.ids == ids[:done]):
                found.append(kept)
        return found


class SharedBytes:
    """Bytes of pieces of memory that several hold, each counted once.

    >>> pieces = SharedBytes()
    >>> pieces.hold({"a": 3, "b": 4}); pieces.hold({"b": 4, "c": 5})
    >>> pieces.bytes, pieces.missing({"b": 4, "d": 6})
    (12, 6)
    >>> pieces.free({"a": 3, "b": 4}); pieces.bytes
    9
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._holders: Counter[Hashable] = Counter()

    def missing(self, pieces: Mapping[Hashable, int]) -> int:
        """Bytes of those pieces that nobody holds yet."""
        return sum(nbytes for piece, nbytes in pieces.items() if piece not in self._holders)

    def hold(self, pieces: Mapping[Hashable, int]) -> None:
        """One more holds these."""
        self.bytes += self.missing(pieces)
        self._holders.update(pieces.keys())

    def free(self, pieces: Mapping[Hashable, int]) -> None:
        """One holds these no longer."""
        self._holders.subtract(pieces.keys())
        for piece, nbytes in pieces.items():
            if not self._holders[piece]:
                del self._holders[piece]
                self.bytes -= nbytes


def place_of(lane: Hashable, salt: bytes) -> tuple[str, str]:
    """Where snapshots of a lane and a salt are found; the salt itself is not told."""
    return repr(lane), blake2b(salt, digest_size=16).hexdigest()


def as_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as int32."""
    return np.asarray(ids, dtype="<i4").tobytes()


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
