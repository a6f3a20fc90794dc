"""Pieces of snapshots in memory: which of them goes first, and what they hold counted once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping

from sash.engine.snapshot_index import Piece
from sash.network.log import LogRoom
from sash.network.snapshot import RowState


class SharedRoom(LogRoom):
    """Logs of rows that run, in the budget of what is kept."""

    def __init__(self, memory: int, settle: Callable[[], None]) -> None:
        """`settle` lets pieces go, and then blocks of logs, if there are more than `memory` bytes."""
        super().__init__(memory)
        self._settle = settle

    def settle(self) -> None:
        """Keep to the budget."""
        self._settle()


class PieceMemory:
    """Pieces that are in memory."""

    def __init__(self) -> None:
        self._bytes = SharedBytes()
        self._fronts: OrderedDict[str, Piece] = OrderedDict()  # before everybody's windows
        self._order: OrderedDict[str, Piece] = OrderedDict()  # gone on from at some time

    @property
    def nbytes(self) -> int:
        """Bytes that they keep from being freed; what they share counts once."""
        return self._bytes.bytes

    @property
    def pieces(self) -> list[Piece]:
        """All of them, in the order in which they go: those that lie before everybody's windows before all others."""
        return [*self._fronts.values(), *self._order.values()]

    def missing(self, storages: Mapping[Hashable, int]) -> int:
        """Bytes of pieces of memory that none of them holds."""
        return self._bytes.missing(storages)

    def idle(self, live: Mapping[Hashable, int]) -> Iterator[Piece]:
        """Those that hold more than what rows that run hold anyway, in the order in which they go."""
        for piece in self.pieces:
            if not all(storage in live or storage == piece.name for storage in piece.storages):
                yield piece

    def take_in(self, piece: Piece, state: RowState) -> None:
        """Hold a piece."""
        self._hold(piece, state)
        self._fronts[piece.name] = piece

    def share(self, piece: Piece, state: RowState) -> None:
        """Have a piece hold what a row holds there: the same numbers, in blocks that others may hold as well."""
        before = piece.storages
        self._hold(piece, state)
        self._bytes.free(before)

    def _hold(self, piece: Piece, state: RowState) -> None:
        piece.state = state
        piece.storages = {**state.storages(), piece.name: len(piece.label.ids)}
        self._bytes.hold(piece.storages)

    def touch(self, path: Mapping[int, Piece], starts: list[int]) -> None:
        """Note that a row goes on from these; the first of them stay longest."""
        for start in reversed(starts):
            piece = path.get(start)
            if piece is not None and piece.state is not None:
                self._fronts.pop(piece.name, None)
                self._order[piece.name] = piece
                self._order.move_to_end(piece.name)

    def free(self, piece: Piece) -> None:
        """Hold it no longer, if it is held."""
        if piece.state is not None:
            self._bytes.free(piece.storages)
            piece.state, piece.storages = None, {}
            self._fronts.pop(piece.name, None)
            self._order.pop(piece.name, None)


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
