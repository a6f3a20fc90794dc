"""The log behind a ring: every token's keys and values, pins among them, in blocks that are only ever appended to.

A ring forgets what slides out of the window; the log does not. It lies on the host, wherever the ring is. Attention
does not read it: whoever wants to go back to an earlier position does, or to bring back what is out of sight. Slots of
the log are positions: block by block, `held` says where they lie and `slots` gives them.

A room (`LogRoom`) says how much the logs of a cache may hold together: if they grow beyond it, whole blocks go from
the front of the longest. Nothing else changes for the rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from weakref import WeakSet

import torch

from sash.errors import UsageError
from sash.network.blocks import Block, BlockRows
from sash.network.sizing import next_log_block
from sash.network.slots import HeldRun, Layout, Vectors


class LogRoom:
    """How many bytes the logs of caches may hold together; a block that several rows share counts once."""

    def __init__(self, limit: int | None = None) -> None:
        """`limit` in bytes; None for no bound.

        Raises:
            UsageError: a negative limit.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"a log has a budget of 0 bytes or more; got {limit}")
        self.limit = limit
        self._logs: WeakSet[Log] = WeakSet()

    def add(self, log: Log) -> None:
        """Have a log count, for as long as somebody holds it."""
        self._logs.add(log)

    def storages(self) -> dict[Hashable, int]:
        """Address and bytes of each piece of memory that the logs hold, as `RowState.storages` gives them."""
        tensors = (tensor for log in self._logs for block in log.held_blocks() for tensor in block.slots.tensors())
        return {(at := tensor.untyped_storage()).data_ptr(): at.nbytes() for tensor in tensors}

    @property
    def nbytes(self) -> int:
        """Bytes that the logs hold."""
        return sum(self.storages().values())

    def settle(self) -> None:
        """Called when a log has grown: let blocks go if there are too many."""
        while self.limit is not None and self.nbytes > self.limit:
            if not self.shorten():
                return

    def shorten(self) -> bool:
        """Let the first block of the longest row go that can spare one; whether there was any."""
        rows = [(log.end(row) - log.first(row), log, row) for log in self._logs for row in range(log.layout.n_rows)]
        ordered = sorted(rows, key=lambda one: one[0], reverse=True)
        return any(log.drop_front(row) for _, log, row in ordered)


class Log:
    """The logs of the rows of one store.

    Attributes:
        layout: what slots are made of; they are on the host.
        rows: the blocks of each row.
    """

    def __init__(self, layout: Layout, room: LogRoom) -> None:
        self.layout = replace(layout, device=torch.device("cpu"))
        self.rows = BlockRows(self.layout, next_log_block)
        self._room = room
        self._ends = [0] * layout.n_rows
        self._counts = [0] * layout.n_rows
        room.add(self)

    def first(self, row: int) -> int:
        """The first position of a row that is still there; `end` where there is none."""
        blocks, starts = self.rows.blocks[row], self.rows.starts[row]
        return next((starts[i] for i, block in enumerate(blocks) if block is not None), self._ends[row])

    def end(self, row: int) -> int:
        """The position after the last one of a row."""
        return self._ends[row]

    def held(self, row: int, first: int, end: int) -> list[HeldRun]:
        """Where a row's positions [first, end) lie, as far as they are there: one run a block, ascending.

        `run.start` is the slot of `run.first_position` in the slots that `slots(row, run)` gives.
        """
        return self.rows.among(row, first, min(end, self._ends[row]))

    def slots(self, row: int, run: HeldRun) -> Vectors:
        """All slots of the block that a run lies in, [2 (keys, values), layers, G, S] vectors, in place."""
        return self.rows.block(row, run.block).slots

    def place(self, row: int, position: int, count: int) -> list[HeldRun]:
        """Slots for the next tokens of a row.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        if not self.rows.blocks[row]:
            self.rows.starts[row] = [position]
        return self.rows.place(row, position, count)

    def mark(self, row: int, end: int) -> None:
        """Note that a row's positions before `end` are written, and keep to the room."""
        self._ends[row] = end
        if self._counts[row] != len(self.rows.blocks[row]):
            self._settle(row)

    def cut(self, row: int, end: int) -> None:
        """Forget what a step that failed was to write after `end`."""
        self._ends[row] = min(end, self._ends[row])

    def _settle(self, row: int) -> None:
        self._counts[row] = len(self.rows.blocks[row])
        self._room.settle()

    def held_blocks(self) -> Iterator[Block]:
        """Blocks of all rows; one that several share comes several times."""
        return (block for blocks in self.rows.blocks for block in blocks if block is not None)

    def drop_front(self, row: int) -> int:
        """Let go of a row's first block; bytes of it. The last one stays, and what is being written."""
        blocks, starts = self.rows.blocks[row], self.rows.starts[row]
        index = next((i for i, block in enumerate(blocks) if block is not None), 0)
        written = index + 1 < len(starts) and starts[index + 1] <= self._ends[row]
        return self.rows.drop_front(row) if written else 0

    def wipe(self, row: int) -> None:
        """Leave nothing of a row."""
        self.rows.wipe(row)
        self._ends[row] = self._counts[row] = 0

    def copy_row(self, row: int, other: Log, other_row: int) -> None:
        """Take over a row of another log; blocks are shared until one of the two goes on."""
        self.rows.copy_row(row, other.rows, other_row)
        self._ends[row] = other._ends[other_row]
        self._settle(row)

    def capture(self, row: int, length: int) -> tuple[tuple[int, ...], tuple[Block, ...]]:
        """Starts and blocks of all that is there of a row before `length`."""
        return self.rows.capture(row, self.first(row), length)

    def restore(self, row: int, starts: tuple[int, ...], blocks: tuple[Block, ...], length: int) -> None:
        """Make a row of the blocks that hold its positions before `length`, shared until somebody goes on."""
        self.rows.restore(row, starts, blocks, length)
        self._ends[row] = length
        self._settle(row)
