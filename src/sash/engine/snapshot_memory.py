"""Pieces of snapshots in memory: which of them goes first, and what they hold counted once."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping

from sash.engine.snapshot_index import Piece
from sash.network.log import LogRoom
from sash.network.store_state import StoreState


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
    """Parts of pieces that are in memory: what single stores hold of them."""

    def __init__(self) -> None:
        self._bytes = SharedBytes()
        self._fronts: OrderedDict[tuple[str, int], Piece] = OrderedDict()  # before everybody's windows
        self._order: OrderedDict[tuple[str, int], Piece] = OrderedDict()  # gone on from at some time

    @property
    def nbytes(self) -> int:
        """Bytes that they keep from being freed; what they share counts once."""
        return self._bytes.bytes

    @property
    def parts(self) -> list[tuple[Piece, int]]:
        """(piece, store) of all, in the order in which they go: those before everybody's windows before all others."""
        return [(piece, store) for (_, store), piece in (*self._fronts.items(), *self._order.items())]

    @property
    def pieces(self) -> list[Piece]:
        """Those of which there is any part."""
        return list({piece.name: piece for piece, _ in self.parts}.values())

    def missing(self, storages: Mapping[Hashable, int]) -> int:
        """Bytes of pieces of memory that none of them holds."""
        return self._bytes.missing(storages)

    def idle(self, live: Mapping[Hashable, int]) -> Iterator[tuple[Piece, int]]:
        """Those that hold more than what rows that run hold anyway, in the order in which they go."""
        for piece, store in self.parts:
            if not all(storage in live or storage == piece.name for storage in piece.storages[store]):
                yield piece, store

    def take_in(self, piece: Piece, parts: Mapping[int, StoreState]) -> None:
        """Hold parts of a piece.

        Of those that are there already it now has what a row holds there: the same numbers, in blocks that others may
        hold as well.
        """
        for store, part in parts.items():
            before = piece.storages.get(store)
            piece.parts[store] = part
            piece.storages[store] = {**part.storages(), piece.name: len(piece.label.ids)}
            self._bytes.hold(piece.storages[store])
            if before is None:
                self._fronts[piece.name, store] = piece
            else:
                self._bytes.free(before)

    def touch(self, path: Mapping[int, Piece], needed: list[tuple[int, int]]) -> None:
        """Note that a row goes on from these, (start of a piece, store); the first of them stay longest."""
        for start, store in reversed(needed):
            piece = path.get(start)
            if piece is not None and store in piece.parts:
                self._fronts.pop((piece.name, store), None)
                self._order[piece.name, store] = piece
                self._order.move_to_end((piece.name, store))

    def free(self, piece: Piece, store: int) -> None:
        """Hold a part no longer."""
        self._bytes.free(piece.storages.pop(store))
        del piece.parts[store]
        self._fronts.pop((piece.name, store), None)
        self._order.pop((piece.name, store), None)


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
