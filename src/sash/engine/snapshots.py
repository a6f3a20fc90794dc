"""What was read before and need not be read again: snapshots of rows, found by the tokens that they have read.

What chats need. The next turn of a chat begins with all that was read and written so far, if the template renders it to
the same tokens; so a row is kept at the end of a prompt and at the end of its answer ("turn" points). The end of the
prompt also serves whoever regenerates the answer: all but its last token is taken from the snapshot of the same tokens.
Long documents that are asked about again and again begin alike and end differently: so rows are kept inside of long
prompts too ("inside" points), at fixed multiples; of those that nobody has used yet only the newest of a text and the
ones at 1, 2, 4, 8 ... multiples stay.

What goes first. The least recently used; but the turns of a chat that lie more than `TURNS_BEHIND` turn points behind
its newest one are of use only to whoever goes back that far, and go before anything else does, unless several chats
have gone on from them. Snapshots on disk (`sash.engine.snapshot_folder`) have a budget and an order of their own, and
come back to memory when they are used.

A hit is a hit for equal tokens only: tokens are looked up by a digest of them and then compared, those of files too. A
digest is salted with whatever separates those who shall not learn from the time of an answer what others have asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sash.engine.snapshot_figures import SnapshotFigures
from sash.engine.snapshot_files import Label
from sash.engine.snapshot_folder import SnapshotFolder
from sash.engine.snapshot_index import Kept, SharedBytes, SnapshotIndex, as_bytes, place_of, stretches
from sash.errors import UsageError
from sash.network.snapshot import RowState

Point = Literal["turn", "inside"]

EVERY = 4096
TURNS_BEHIND = 3
DISK = 8 << 30


@dataclass(frozen=True, slots=True)
class Found:
    """What a request can go on from: `KVCache.restore(row, state, length)`; `length` tokens need not be read."""

    state: RowState
    length: int
    name: str


class Snapshots:
    """Snapshots of the rows of one model. To be used from one thread; it has no clock."""

    def __init__(
        self,
        memory: int,
        *,
        folder: Path | None = None,
        disk: int = DISK,
        fingerprint: str = "",
        every: int = EVERY,
        aligned: int = 1,
    ) -> None:
        """Look through the folder, if there is one.

        Args:
            memory: budget in bytes.
            folder: where snapshots outlive the process.
            disk: budget of the folder in bytes.
            fingerprint: of the network (`sash.network.fingerprint`): files with another are not used.
            every: tokens between points inside of a prompt; a multiple of `aligned`.
            aligned: where numbers depend on chunks, the size of a chunk: rows are kept only where chunks of prompts
                end, so that whoever goes on from there computes the same as whoever reads it all.

        Raises:
            UsageError: numbers that cannot be.
            InputNotFoundError: the folder cannot be made or read.
        """
        if memory < 0 or disk < 0 or aligned < 1 or every < 1 or every % aligned:
            raise UsageError("snapshots need budgets of 0 bytes or more, and points at multiples of chunks")
        self.memory, self._held = memory, SharedBytes()
        self._fingerprint, self._every, self._aligned = fingerprint, every, aligned
        self._index = SnapshotIndex(fingerprint)
        self._order: OrderedDict[str, Kept] = OrderedDict()
        self._counts = SnapshotFigures(memory=memory)
        self._folder = None
        if folder is not None and memory:
            self._folder = SnapshotFolder(folder, disk, fingerprint)
            for label in (front.label for front in self._folder.found):
                place = (label.lane, label.salt)
                self._index.add(Kept(label.name, place, label.length, label.point, on_disk=True))

    @property
    def nbytes(self) -> int:
        """Bytes that snapshots in memory keep from being freed; what they share counts once."""
        return self._held.bytes

    def next_point(self, position: int) -> int:
        """The first position after `position` at which a prompt that is long enough shall be kept.

        >>> Snapshots(1).next_point(0), Snapshots(1).next_point(4096)
        (4096, 8192)
        """
        return (position // self._every + 1) * self._every

    def wanted(self, position: int, n_prompt: int, aligned: int = 1) -> bool:
        """Whether a row that has read `position` tokens of a prompt of `n_prompt` shall be kept now.

        `aligned` is the size of a chunk if this row's numbers depend on chunks.

        >>> [p for p in range(512, 10_001, 512) if Snapshots(1, aligned=512).wanted(p, 10_000)]
        [4096, 8192, 9728]
        >>> Snapshots(1).wanted(10_000, 10_000)
        True
        """
        aligned = max(aligned, self._aligned)
        if not self.memory or not 0 < position <= n_prompt or position % aligned:
            return False
        if aligned > 1:  # what was written, token by token, ends no chunk; nor does it for whoever reads it all
            return position < n_prompt and (position + aligned >= n_prompt or position % self._every == 0)
        return position == n_prompt or position % self._every == 0

    def keep(
        self,
        ids: Sequence[int],
        lane: Hashable,
        state: RowState,
        salt: bytes = b"",
        point: Point = "turn",
        pins: Iterable[range] = (),
    ) -> None:
        """Keep what a row has read, as far as the budget allows; the least recently used ones make room.

        Args:
            ids: the tokens read.
            lane: the windows and pins that they were read with; its `repr` must say all of it.
            state: the row.
            salt: only requests with the same salt find it.
            point: "turn" for the end of a prompt or of an answer, "inside" for what lies inside of a prompt.
            pins: positions that are flagged as pins.

        Raises:
            UsageError: another number of tokens than the state has.
        """
        if len(ids) != state.length:
            raise UsageError(f"a state of {state.length} tokens was named by {len(ids)}")
        if not self.memory or not ids or len(ids) % self._aligned:
            return
        self._listen()
        pins, point = tuple(pins), "turn" if len(ids) % self._every else point
        label = self._label(as_bytes(ids), place_of(lane, salt), pins, point)
        before = self._index.along(label.ids, (label.lane, label.salt), pins)
        self._supersede(point, [kept for kept in before if kept.length < len(ids)])
        kept = self._index.get(label.name) or Kept(label.name, (label.lane, label.salt), len(ids), point)
        if kept.state is not None:
            self._order.move_to_end(kept.name)
        elif self._take_in(kept, label, state):
            self._counts.kept += 1
            if self._folder is not None and not kept.on_disk:
                self._folder.keep(label, state)

    def _label(self, ids: bytes, place: tuple[str, str], pins: Sequence[range], point: str) -> Label:
        lane, salt = place
        stretched = stretches(pins, len(ids) // 4)
        return Label(fingerprint=self._fingerprint, lane=lane, salt=salt, pins=stretched, ids=ids, point=point)

    def _supersede(self, point: Point, before: list[Kept]) -> None:
        """Let go of what is of less use now that there is a longer one; `before` is by ascending length."""
        if point == "inside":
            last = before[-1] if before else None
            multiple = last.length // self._every if last is not None else 0
            if last is not None and last.point == "inside" and not last.uses and multiple & (multiple - 1):
                self.drop(last.name)
            return
        turns = [kept for kept in before if kept.point == "turn"]
        for kept in reversed(turns[:-TURNS_BEHIND]):
            if kept.name in self._order and kept.uses <= 1:
                self._order.move_to_end(kept.name, last=False)

    def find(
        self, ids: Sequence[int], lane: Hashable, salt: bytes = b"", pins: Iterable[range] = (), aligned: int = 1
    ) -> Found | None:
        """The longest snapshot that a request can go on from; at least one of its tokens stays to be read.

        Args:
            ids: the request's tokens.
            lane, salt: as in `keep`.
            pins: positions of the request that are flagged as pins: as far as the snapshot goes, they must be its own.
            aligned: as in `wanted`: then only what ends with a chunk is found.
        """
        self._listen()
        pins, place, data = tuple(pins), place_of(lane, salt), as_bytes(ids)
        shortest = self._index.shortest(place)
        if shortest is None:
            return self._missed("empty")
        aligned = max(aligned, self._aligned)
        longest = len(ids) if aligned == 1 else len(ids) - 1  # of the same tokens all but the last are used
        if shortest > longest or len(ids) < 2:
            return self._missed("too short")
        reason = "differs"
        along = self._index.along(data[: 4 * longest], place, pins)
        for kept in (kept for kept in reversed(along) if kept.length % aligned == 0):
            state = kept.state or self._load(kept, self._label(data[: 4 * kept.length], place, pins, kept.point))
            if state is not None:
                return self._use(kept, state, min(kept.length, len(ids) - 1))
            reason = "refused"
        return self._missed(reason)

    def _use(self, kept: Kept, state: RowState, length: int) -> Found:
        kept.uses += 1
        self._counts.hits += 1
        self._counts.tokens += length
        if kept.name in self._order:
            self._order.move_to_end(kept.name)
        return Found(state, length, kept.name)

    def skip(self) -> None:
        """Count a request that does not want to go on from anything."""
        self._missed("off")

    def drop(self, name: str) -> None:
        """Let go of a snapshot, in memory and on disk."""
        if self._folder is not None:
            self._folder.drop(name)
        kept = self._index.get(name)
        if kept is not None:
            kept.on_disk = False
            self._let_go(kept)

    def _missed(self, reason: str) -> Found | None:
        self._counts.misses[reason] = self._counts.misses.get(reason, 0) + 1
        return None

    def _load(self, kept: Kept, label: Label) -> RowState | None:
        """The state of a snapshot on disk, which comes back to memory if there is room."""
        state = self._folder.load(label) if self._folder is not None else None
        if state is None:
            kept.on_disk = False
            self._let_go(kept)
        else:
            self._take_in(kept, label, state)
        return state

    def _take_in(self, kept: Kept, label: Label, state: RowState) -> bool:
        """Hold a state in memory, if the budget allows it once others have gone."""
        storages = {**state.storages(), label.name: len(label.ids)}
        room = sum(storages.values()) <= self.memory
        while room and self.nbytes + self._held.missing(storages) > self.memory:
            room = self._evict()
        if not room:
            self._counts.too_large += 1
            return False
        kept.label, kept.state, kept.storages = label, state, storages
        self._held.hold(storages)
        self._index.add(kept)
        self._order[kept.name] = kept
        return True

    def _evict(self) -> bool:
        """Free what the least recently used one alone holds; one that is being written now has to wait."""
        for kept in self._order.values():
            if kept.on_disk or self._folder is None or self._folder.take_back(kept.name):
                self._listen()  # it may have been written a moment ago
                self._counts.evictions += 1
                self._let_go(kept)
                return True
        return False

    def _let_go(self, kept: Kept) -> None:
        """Free a snapshot's memory; it is forgotten if it is not on disk either."""
        if kept.state is not None:
            self._held.free(kept.storages)
            kept.state, kept.label, kept.storages = None, None, {}
            del self._order[kept.name]
        if not kept.on_disk:
            self._index.forget(kept)

    def _listen(self) -> None:
        """Take note of files that have come and gone."""
        for name, there in self._folder.news() if self._folder is not None else ():
            kept = self._index.get(name)
            if kept is not None:
                kept.on_disk = there
                if kept.state is None:
                    self._let_go(kept)

    def flush(self) -> None:
        """Wait until what was kept is on disk."""
        if self._folder is not None:
            self._folder.flush()
            self._listen()

    def close(self) -> None:
        """Write what waits; nothing is written afterwards."""
        if self._folder is not None:
            self._folder.close()

    def figures(self) -> SnapshotFigures:
        """What there is, and what became of what was asked."""
        counts, disk = self._counts, None if self._folder is None else replace(self._folder.figures)
        return replace(counts, misses=dict(counts.misses), in_memory=len(self._order), bytes=self.nbytes, disk=disk)
