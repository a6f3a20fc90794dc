"""Blocks of slots that are only ever appended to, and rows that are made of them.

The slots of a row hold consecutive positions, and a slot once written never changes. So blocks can be shared: between
a row, its forks, and states of what it had read. Who stands at the end of what a block holds may go on in it; who
stands before it, since another has gone on there, copies what is his of that block first.

Shape suffixes: G key/value heads, S slots.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sash.errors import DoesNotFitError
from sash.network.slots import HeldRun, Layout, Vectors

_claiming = threading.Lock()

NextSize = Callable[[int], int]
"""Slots of the block whose first slot holds a position."""


@dataclass(slots=True, eq=False)
class Block:
    """Slots side by side of all layers of a store.

    Attributes:
        slots: [2 (keys, values), layers, G, S] vectors.
        flags: which tokens are global, [S]; None for patterns without.
        used: slots written so far, by anybody.
    """

    slots: Vectors
    flags: Tensor | None
    used: int = 0

    @property
    def size(self) -> int:
        """Slots that there are."""
        return int(self.slots.numbers.shape[-2])

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self.slots.nbytes + (0 if self.flags is None else self.flags.nbytes)

    def claim(self, start: int, stop: int) -> bool:
        """Whether slots [start, stop) are the next ones and free: then they belong to the caller from now on."""
        with _claiming:
            free = start == self.used and stop <= self.size
            if free:
                self.used = stop
            return free

    def take_over(self, other: Block, count: int) -> None:
        """Begin with the first `count` slots of another block."""
        self.slots[:, :, :, :count].copy_(other.slots[:, :, :, :count])
        if self.flags is not None and other.flags is not None:
            self.flags[:count] = other.flags[:count]
        self.used = count

    def on(self, device: torch.device) -> Block:
        """This block, or a copy of it on another device."""
        if self.slots.numbers.device == device:
            return self
        scales, flags = self.slots.scales, self.flags
        moved = Vectors(self.slots.numbers.to(device), None if scales is None else scales.to(device))
        return Block(moved, None if flags is None else flags.to(device), self.used)

    def shortened(self, count: int) -> Block:
        """A copy of the first `count` slots that has no others."""
        return Block(
            self.slots[:, :, :, :count].clone(), None if self.flags is None else self.flags[:count].clone(), count
        )


class BlockRows:
    """Rows made of blocks.

    Attributes:
        layout: what slots are made of.
        blocks: of each row; None for one that was dropped from the front.
        starts: of each row, the position in the first slot of each block, and the one after the last block.
    """

    def __init__(self, layout: Layout, next_size: NextSize, *, flags: bool = False) -> None:
        """`next_size` says how large blocks are; `flags` gives each slot room for one."""
        self.layout, self._next_size, self._flags = layout, next_size, flags
        self.blocks: list[list[Block | None]] = [[] for _ in range(layout.n_rows)]
        self.starts: list[list[int]] = [[0] for _ in range(layout.n_rows)]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values; those of a block that rows share count once."""
        return sum(block.slots.nbytes for block in {id(b): b for row in self.blocks for b in row if b}.values())

    def block(self, row: int, index: int) -> Block:
        """A block that is there."""
        found = self.blocks[row][index]
        if found is None:
            raise IndexError(f"block {index} of row {row} was dropped")
        return found

    def reserve(self, row: int, end: int) -> None:
        """Have slots for all positions before `end`. What is there stays where it is.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        starts = self.starts[row]
        while starts[-1] < end:
            size = self._next_size(starts[-1])
            self.blocks[row].append(self._new_block(size, end))
            starts.append(starts[-1] + size)

    def place(self, row: int, position: int, count: int) -> list[HeldRun]:
        """Slots for positions [position, position + count), which are the row's own to write from now on.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        self.reserve(row, position + count)
        runs = self.among(row, position, position + count)
        for run in runs:
            self._claim(row, run, position + count)
        return runs

    def _new_block(self, size: int, length: int) -> Block:
        layout = self.layout
        try:
            slots = layout.zeros(2, layout.n_layers, layout.n_heads, size)
        except RuntimeError as error:
            raise DoesNotFitError(f"no memory for the keys and values of {length} tokens: use --window N") from error
        return Block(slots, torch.zeros(size, dtype=torch.bool, device=layout.device) if self._flags else None)

    def _claim(self, row: int, run: HeldRun, length: int) -> None:
        """Make the slots of a run the row's own to write: where another row has gone on in its block, by a copy."""
        block = self.block(row, run.block)
        if block.claim(run.start, run.start + run.size):
            return
        starts = self.starts[row]
        own = self._new_block(starts[run.block + 1] - starts[run.block], length)
        own.take_over(block, run.start)
        own.used = run.start + run.size
        self.blocks[row][run.block] = own

    def among(self, row: int, first: int, end: int) -> list[HeldRun]:
        """The slots of positions first..end-1: one run a block, none for what was dropped."""
        starts, blocks = self.starts[row], self.blocks[row]
        runs = []
        for index in range(max(0, bisect_right(starts, first) - 1), min(bisect_left(starts, end), len(blocks))):
            a, b = max(first, starts[index]), min(end, starts[index + 1])
            if a < b and blocks[index] is not None:
                runs.append(HeldRun(a, b - a, "block", a - starts[index], index))
        return runs

    def wipe(self, row: int) -> None:
        """Give a row's blocks back; those that others share stay theirs."""
        self.blocks[row] = []
        self.starts[row] = [0]

    def copy_row(self, row: int, other: BlockRows, other_row: int) -> None:
        """Take over a row of others of the same shape: its blocks are shared until one of the two goes on."""
        self.blocks[row] = list(other.blocks[other_row])
        self.starts[row] = list(other.starts[other_row])

    def capture(self, row: int, first: int, length: int) -> tuple[tuple[int, ...], tuple[Block, ...]]:
        """Starts and blocks that hold positions [first, length) of a row, of which all are there.

        Of a last block that is used for less than a half a copy is taken that has no idle slots: a short chat shall
        not hold 1,024 of them.
        """
        runs = self.among(row, first, length)
        blocks = [self.block(row, run.block) for run in runs]
        if runs:
            count = runs[-1].start + runs[-1].size
            if 2 * count < blocks[-1].size:
                blocks[-1] = blocks[-1].shortened(count)
        return tuple(self.starts[row][run.block] for run in runs), tuple(blocks)

    def restore(self, row: int, starts: Sequence[int], blocks: Sequence[Block], length: int) -> None:
        """Make a row of the blocks that hold its positions before `length`; they are shared until somebody goes on."""
        count = bisect_left(starts, length)
        self.blocks[row] = [block.on(self.layout.device) for block in blocks[:count]]
        self.starts[row] = list(starts[:count]) or [length]
        if count:
            last = starts[count - 1]
            self.starts[row].append(last + max(blocks[count - 1].size, self._next_size(last)))

    def drop_front(self, row: int) -> int:
        """Let go of a row's first block that is there; bytes of it. The last one stays: 0 where there is no other."""
        blocks = self.blocks[row]
        index = next((i for i, block in enumerate(blocks[:-1]) if block is not None), None)
        if index is None:
            return 0
        nbytes = self.block(row, index).nbytes
        blocks[index] = None
        return nbytes
