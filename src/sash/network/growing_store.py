"""Where keys and values of layers without a bound lie: blocks that are only ever appended to.

Slot i holds position i, and a slot once written never changes. So blocks can be shared: between a row, its forks, and
snapshots of what it had read. Who stands at the end of what a block holds may go on in it; who stands before it, since
another has gone on there, copies what is his of that block first.

Shape suffixes: T tokens, G key/value heads, S slots, K head dimension.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import KeyRun
from sash.errors import DoesNotFitError
from sash.network.batch import Batch, Span
from sash.network.sizing import block_sizes
from sash.network.slots import HeldRun, Layout, Placement, Put, Vectors

_claiming = threading.Lock()


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


@dataclass(frozen=True, slots=True)
class GrowingState:
    """What one row of a growing store holds: its blocks, shared with the row and with others.

    Attributes:
        blocks: as many as its tokens need.
    """

    blocks: tuple[Block, ...]

    def tensors(self) -> list[Tensor]:
        """Every tensor of it."""
        flags = [block.flags for block in self.blocks if block.flags is not None]
        return [tensor for block in self.blocks for tensor in block.slots.tensors()] + flags


class GrowingStore:
    """Blocks of the layers that share a pattern without a bound: slot i holds position i.

    Attributes:
        pattern: the layers' own.
        layout: what the slots are made of.
        blocks: of each row.
    """

    def __init__(self, pattern: AttentionPattern, layout: Layout) -> None:
        self.pattern, self.layout = pattern, layout
        self.blocks: list[list[Block]] = [[] for _ in range(layout.n_rows)]
        self._starts: list[list[int]] = [[0] for _ in range(layout.n_rows)]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values; those of a block that rows share count once."""
        return sum(block.slots.nbytes for block in {id(block): block for row in self.blocks for block in row}.values())

    def last_pin(self, row: int) -> int:
        """Nothing slides out of this store, so nothing is pinned: -1."""
        return -1

    def reserve(self, row: int, length: int) -> None:
        """Hold at least `length` slots. What is there stays where it is.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        starts = self._starts[row]
        if length <= starts[-1]:
            return
        for size in block_sizes(length)[len(self.blocks[row]) :]:
            self.blocks[row].append(self._new_block(size, length))
            starts.append(starts[-1] + size)

    def _new_block(self, size: int, length: int) -> Block:
        layout = self.layout
        try:
            slots = layout.zeros(2, layout.n_layers, layout.n_heads, size)
        except RuntimeError as error:
            raise DoesNotFitError(f"no memory for the keys and values of {length} tokens: use --window N") from error
        flags = torch.zeros(size, dtype=torch.bool, device=layout.device) if self.pattern.global_tokens else None
        return Block(slots, flags)

    def _claim(self, row: int, run: HeldRun, length: int) -> None:
        """Make the slots of a run the row's own to write: where another row has gone on in its block, by a copy."""
        block = self.blocks[row][run.block]
        if block.claim(run.start, run.start + run.size):
            return
        starts = self._starts[row]
        own = self._new_block(starts[run.block + 1] - starts[run.block], length)
        own.take_over(block, run.start)
        own.used = run.start + run.size
        self.blocks[row][run.block] = own

    def _among(self, row: int, first: int, end: int) -> list[HeldRun]:
        """The slots of positions first..end-1: one run a block."""
        starts = self._starts[row]
        runs = []
        for block in range(bisect_right(starts, first) - 1, min(bisect_left(starts, end), len(starts) - 1)):
            a, b = max(first, starts[block]), min(end, starts[block + 1])
            if a < b:
                runs.append(HeldRun(a, b - a, "block", a - starts[block], block))
        return runs

    def held(self, row: int, length: int, oldest: int) -> list[HeldRun]:
        """What a row holds of positions 0..length-1, one run a block; `oldest` is for windows, which lie elsewhere."""
        return self._among(row, 0, length)

    def whole(self, row: int, length: int, oldest: int) -> tuple[KeyRun, ...]:
        """What `held` tells, for a query that sees all of it."""
        return tuple(KeyRun("block", 0, run.size, block=run.block) for run in self.held(row, length, oldest))

    def runs(self, row: int, length: int, oldest: int) -> Iterator[tuple[KeyRun, TokenMeta]]:
        """What `held` tells, each run with the metadata of its tokens."""
        for run in self.held(row, length, oldest):
            end = run.first_position + run.size
            positions = torch.arange(run.first_position, end, device=self.layout.device)
            stored = self.blocks[row][run.block].flags
            flags = False if stored is None else stored[: run.size]
            yield KeyRun("block", 0, run.size, block=run.block), TokenMeta(position=positions, is_global=flags)

    def place(self, batch: Batch, span: Span) -> Placement:
        """Where a span's tokens go: slot = position, in blocks that this makes or copies if need be.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        end = span.position + len(span)
        self.reserve(span.row, end)
        runs = self._among(span.row, span.position, end)
        for run in runs:
            self._claim(span.row, run, end)
        puts = tuple(Put(span.start + run.first_position - span.position, run) for run in runs)
        for token, run in puts:
            stored = self.blocks[span.row][run.block].flags
            if stored is not None:
                flags = False if batch.global_T is None else batch.global_T[token : token + run.size]
                stored[run.start : run.start + run.size] = flags
        return puts

    def write(self, layer: int, row: int, placement: Placement, keys_GT: Vectors, values_GT: Vectors) -> None:
        """Commit a step's keys and values of one layer to a row, as `layout.kept` gives them."""
        for token, run in placement:
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                place = self.blocks[row][run.block].slots[kind, layer, :, run.start : run.start + run.size]
                place.copy_(new_GT[:, token : token + run.size])

    def mark(self, row: int, placement: Placement) -> None:
        """Nothing to note: slot i holds position i."""

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run to compute with, [G, S, K] each: in place if they are kept as they are computed."""
        slots = self.blocks[row][run.block].slots[:, layer, :, run.start : run.stop]
        return slots[0].to(self.layout.dtype), slots[1].to(self.layout.dtype)

    def wipe(self, row: int) -> None:
        """Give a row's blocks back; those that others share stay theirs."""
        self.blocks[row] = []
        self._starts[row] = [0]

    def copy_row(self, row: int, other: GrowingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape: its blocks are shared until one of the two goes on."""
        self.blocks[row] = list(other.blocks[other_row])
        self._starts[row] = list(other._starts[other_row])

    def capture(self, row: int, length: int) -> GrowingState:
        """What a row of `length` tokens holds: its blocks, but for a last one that is used for less than a half.

        Of that one a copy is taken that has no idle slots: a short chat shall not hold 1,024 of them.
        """
        starts = self._starts[row]
        blocks = self.blocks[row][: bisect_left(starts, length)]
        if blocks:
            count = length - starts[len(blocks) - 1]
            if 2 * count < blocks[-1].size:
                blocks[-1] = blocks[-1].shortened(count)
        return GrowingState(tuple(blocks))

    def fits(self, state: GrowingState, length: int) -> bool:
        """Whether `restore` can take `state` over as that of a row of `length` tokens."""
        left = length
        sizes = block_sizes(length)
        if len(sizes) != len(state.blocks):
            return False
        for size, block in zip(sizes, state.blocks, strict=True):
            wanted = (2, self.layout.n_layers, self.layout.n_heads, block.size)
            flags = block.flags is not None and block.flags.dtype == torch.bool and len(block.flags) == block.size
            if not min(left, size) <= block.used <= block.size <= size or not self.layout.holds(block.slots, *wanted):
                return False
            if flags is not self.pattern.global_tokens:
                return False
            left -= size
        return True

    def restore(self, row: int, state: GrowingState, length: int) -> None:
        """Take `state` over into an empty row, as of `length` tokens: blocks are shared until somebody goes on."""
        sizes = block_sizes(length)
        self.blocks[row] = [block.on(self.layout.device) for block in state.blocks[: len(sizes)]]
        self._starts[row] = [0, *accumulate(sizes)]
