"""What was read before and need not be read again: pieces of rows, found by the tokens that they have read.

A row that was read is kept in pieces (`sash.network.pieces`), as many tokens each as a block of its log has. A request
goes on from wherever its tokens begin to differ from all that is kept: at the end of the last turn of a chat, within an
earlier turn that was edited, at the end of a question that is answered anew, where two branches part, within a document
that several ask about. What it needs there is what its next token sees of each store of the cache: of layers without a
bound all pieces, of windows the last few, and those of pins.

What goes first. Logs of rows that run and pieces in memory share a budget, and what they share counts once. When there
is more, parts of pieces go that no row has lately gone on from: least recently used first, those that lie before
everybody's windows before all others; then the oldest blocks of the longest logs. Pieces on disk
(`sash.engine.snapshot_folder`) have a budget and an order of their own; of those, parts come back to memory when they
are used.

A hit is a hit for equal tokens only: pieces are looked up by a digest of all that was read before them, and then
compared. A digest is salted with whatever separates those who shall not learn from the time of an answer what others
have asked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sash.engine.snapshot_figures import SnapshotFigures
from sash.engine.snapshot_folder import SnapshotFolder
from sash.engine.snapshot_index import Asked, Piece, SnapshotIndex
from sash.engine.snapshot_memory import PieceMemory, SharedRoom
from sash.errors import CheckpointError, UsageError
from sash.network import sizing
from sash.network.pieces import alone, cut, join
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState

DISK = 8 << 30


@dataclass(frozen=True, slots=True)
class Found:
    """What a request can go on from: `KVCache.restore(row, state, length)`; `length` tokens need not be read.

    Attributes:
        state: the row, as of `length` tokens.
        length: tokens that need not be read.
        whole: whether that is the end of what is kept, but for its last token; else the request has left it before.
        names: of the pieces that make it up.
    """

    state: RowState
    length: int
    whole: bool
    names: tuple[str, ...]


class Snapshots:
    """Pieces of the rows of one model. To be used from one thread; it has no clock.

    Attributes:
        memory: budget in bytes, of pieces and of the logs in `room`.
        room: that of the logs of rows that run; None where nothing is kept.
    """

    def __init__(self, memory: int, *, folder: Path | None = None, disk: int = DISK, fingerprint: str = "") -> None:
        """Look through the folder, if there is one.

        Args:
            memory: budget in bytes.
            folder: where pieces outlive the process.
            disk: budget of the folder in bytes.
            fingerprint: of the network (`sash.network.fingerprint`): files with another are not used.

        Raises:
            UsageError: numbers that cannot be.
            InputNotFoundError: the folder cannot be made or read.
        """
        if memory < 0 or disk < 0:
            raise UsageError("snapshots need budgets of 0 bytes or more")
        self.memory, self._held, self._fingerprint = memory, PieceMemory(), fingerprint
        self.room = SharedRoom(memory, self.fit) if memory else None
        self._index = SnapshotIndex()
        self._counts = SnapshotFigures(memory=memory)
        self._folder = None
        if folder is not None and memory:
            self._folder = SnapshotFolder(folder, disk, fingerprint)
            for front in self._folder.found:
                piece = Piece.on_a_disk(front.label, front.described)
                if piece is not None:
                    self._index.add(piece)

    @property
    def nbytes(self) -> int:
        """Bytes that pieces in memory keep from being freed; what they share counts once."""
        return self._held.nbytes

    def keep(
        self,
        ids: Sequence[int],
        lane: Hashable,
        state: RowState,
        salt: bytes = b"",
        pins: Iterable[range] = (),
    ) -> None:
        """Keep what a row has read, as far as the budget allows.

        Args:
            ids: the tokens read, or the first of them.
            lane: the windows and pins that they were read with; its `repr` must say all of it.
            state: the row.
            salt: only requests with the same salt find it.
            pins: positions that are flagged as pins.

        Raises:
            UsageError: more tokens than the state has.
        """
        if len(ids) > state.length:
            raise UsageError(f"a state of {state.length} tokens was named by {len(ids)}")
        if not self.memory or not ids:
            return
        self._listen()
        self._counts.kept += 1
        last: Piece | None = None
        path: dict[int, Piece] = {}
        for label in Asked(self._fingerprint, ids, lane, salt, pins).labels():
            known, parts = self._index.longer(label), cut(state, label.start, label.length)
            if parts and (known is None or known.name == label.name):
                known = known or Piece.of(label, state)
                self._take_in(known, parts, write=True)
            if known is not None:
                path[label.start] = last = known
        if last is not None:
            self._held.touch(path, last.needs(len(ids)))
        self.fit()

    def find(
        self, ids: Sequence[int], lane: Hashable, salt: bytes = b"", pins: Iterable[range] = (), aligned: int = 1
    ) -> Found | None:
        """What a request can go on from, as far as its tokens go with anything kept; one at least stays to be read.

        Args:
            ids: the request's tokens.
            lane, salt: as in `keep`.
            pins: positions of the request that are flagged as pins: as far as it goes, they must be those kept.
            aligned: where numbers depend on chunks, the size of a chunk: then only multiples of it are found.
        """
        self._listen()
        asked = Asked(self._fingerprint, ids, lane, salt, pins)
        if not self._index.knows(asked.place):
            return self._missed("empty")
        path, known = self._index.along(asked.labels())
        length, refused = min(known, len(ids) - 1), False
        while (length := self._covered(path, length, aligned)) > 0:
            needed = path[max(start for start in path if start < length)].needs(length)
            if not self._load(path, needed):
                refused = True
                continue
            try:
                return self._use(path, needed, length)
            except CheckpointError:
                self.drop([path.pop(start).name for start in {start for start, _ in needed}])
                refused = True
        return self._missed("refused" if refused else "differs")

    def _covered(self, path: dict[int, Piece], length: int, aligned: int) -> int:
        """The longest beginning, of `length` tokens at most, of which all pieces that are needed are there."""
        while length > 0:
            length -= length % aligned
            start = max((start for start in path if start < length), default=None)
            if start is None:
                return 0
            end = path[start].label.length
            if end < length:  # the piece that follows is missing, or shorter
                length = end
                continue
            gaps = [at for at, store in path[start].needs(length) if at not in path or not path[at].has(store)]
            if not gaps:
                return length
            length = max(gaps)
        return 0

    def _load(self, path: dict[int, Piece], needed: list[tuple[int, int]]) -> bool:
        """Have all that is needed in memory; False if a piece was refused, of which then no file is known."""
        absent: dict[int, list[int]] = {}
        for start, store in needed:
            if store not in path[start].parts:
                absent.setdefault(start, []).append(store)
        if not absent:
            return True
        wanted = [(path[start].label, stores) for start, stores in absent.items()]
        loaded = self._folder.load(wanted) if self._folder is not None else [None] * len(wanted)
        for start, parts in zip(absent, loaded, strict=True):
            piece = path[start]
            if parts is not None:
                self._take_in(piece, parts, write=False)
                continue
            piece.on_disk = False
            if not piece.there:
                self._index.forget(piece)
                del path[start]
        return None not in loaded

    def _use(self, path: dict[int, Piece], needed: list[tuple[int, int]], length: int) -> Found:
        """The row that parts of pieces make up; whatever lies in memory before them is of use to its log."""
        last = path[needed[-1][0]]
        if any(path[start].kinds != last.kinds for start, _ in needed):
            raise CheckpointError("pieces of a snapshot do not belong together")
        stores = []
        for store in range(len(last.kinds)):
            own = [start for start, of in needed if of == store]
            first = own[-1]
            while (before := path.get(first - sizing.LOG_BLOCK)) is not None and store in before.parts:
                first = before.label.start
            used = sorted({*own, *(start for start in path if first <= start < length)})
            held = ((start, path[start].label.length, path[start].parts.get(store)) for start in used)
            stores.append([(start, end, part) for start, end, part in held if part is not None])
        state = join(last.kinds, stores, length)
        self._held.touch(path, needed)
        self._counts.hits += 1
        self._counts.tokens += length
        whole = last.label.length <= length + 1 and not self._index.followed(last)
        found = Found(state, length, whole, tuple(path[start].name for start in sorted({start for start, _ in needed})))
        self.fit()
        return found

    def skip(self) -> None:
        """Count a request that does not want to go on from anything."""
        self._missed("off")

    def drop(self, names: Iterable[str]) -> None:
        """Let go of pieces, in memory and on disk."""
        for name in names:
            if self._folder is not None:
                self._folder.drop(name)
            piece = self._index.get(name)
            if piece is not None:
                piece.on_disk = False
                for store in list(piece.parts):
                    self._let_go(piece, store)
                self._index.forget(piece)

    def _missed(self, reason: str) -> Found | None:
        self._counts.misses[reason] = self._counts.misses.get(reason, 0) + 1
        return None

    def _take_in(self, piece: Piece, parts: Mapping[int, StoreState], *, write: bool) -> None:
        """Hold parts of a piece in memory; what it begins with need not be held any longer."""
        was_in_memory = piece.in_memory
        self._held.take_in(piece, parts)
        self._index.add(piece)
        if was_in_memory or not piece.in_memory:
            return
        self.drop([shorter.name for shorter in self._index.shorter(piece.label)])
        if write and self._folder is not None and not piece.on_disk:
            states = [piece.parts[store] for store in range(len(piece.kinds))]
            self._folder.keep(piece.label, alone(states, piece.kinds, piece.label.start, piece.label.length))

    def fit(self) -> None:
        """Keep to the budget."""
        live = self.room.storages() if self.room is not None else {}
        while self._held.nbytes + self._held.missing(live) > self.memory:
            if not self._evict(live):
                break
        while self.room is not None and self._held.nbytes + self._held.missing(live) > self.memory:
            if not self.room.shorten():
                break
            live = self.room.storages()

    def _evict(self, live: dict[Hashable, int]) -> bool:
        """Let go of one part of a piece that nobody reads just now; what is being written has to wait.

        What waits to be written goes after all the others: it would never be written.
        """
        self._listen()
        for last in (False, True):
            for piece, store in self._held.idle(live):
                if piece.on_disk or self._folder is None or (last and self._folder.take_back(piece.name)):
                    self._listen()  # it may have been written a moment ago
                    self._counts.evictions += 1
                    self._let_go(piece, store)
                    return True
        return False

    def _let_go(self, piece: Piece, store: int) -> None:
        """Free the memory of a part of a piece; the piece is forgotten if nothing of it is left."""
        self._held.free(piece, store)
        if not piece.there:
            self._index.forget(piece)

    def _listen(self) -> None:
        """Take note of files that have come and gone."""
        for name, there in self._folder.news() if self._folder is not None else ():
            piece = self._index.get(name)
            if piece is not None:
                piece.on_disk = there
                if not piece.there:
                    self._index.forget(piece)

    def flush(self) -> None:
        """Wait until what was kept is on disk."""
        if self._folder is not None:
            self._folder.flush()
            self._listen()

    def settle(self, seconds: float) -> bool:
        """Wait until what was kept before is on disk, as far as its budget allows, or so long. Any thread."""
        return self._folder is None or self._folder.settle(seconds)

    def close(self) -> None:
        """Write what waits; nothing is written afterwards."""
        if self._folder is not None:
            self._folder.close()

    def figures(self) -> SnapshotFigures:
        """What there is, and what became of what was asked."""
        counts, disk = self._counts, None if self._folder is None else replace(self._folder.figures)
        n_pieces = len(self._held.pieces)
        return replace(counts, misses=dict(counts.misses), in_memory=n_pieces, bytes=self.nbytes, disk=disk)
