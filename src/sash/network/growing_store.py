"""Where keys and values of layers without a bound lie: blocks that are only ever appended to (`sash.network.blocks`).

Slot i holds position i, and a slot once written never changes.

Shape suffixes: T tokens, G key/value heads, S slots, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import KeyRun
from sash.network.batch import Batch, Span
from sash.network.blocks import Block, BlockRows
from sash.network.sizing import block_sizes, next_block
from sash.network.slots import HeldRun, Layout, Placement, Put, Vectors
from sash.network.store_state import StoreState


class GrowingStore:
    """Blocks of the layers that share a pattern without a bound: slot i holds position i.

    Attributes:
        pattern: the layers' own.
        layout: what the slots are made of.
        rows: the blocks of each row.
    """

    def __init__(self, pattern: AttentionPattern, layout: Layout) -> None:
        self.pattern, self.layout = pattern, layout
        self.rows = BlockRows(layout, next_block, flags=pattern.global_tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values; those of a block that rows share count once."""
        return self.rows.nbytes

    def last_pin(self, row: int) -> int:
        """Nothing slides out of this store, so nothing is pinned: -1."""
        return -1

    def reserve(self, row: int, length: int) -> None:
        """Hold at least `length` slots. What is there stays where it is.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        self.rows.reserve(row, length)

    def held(self, row: int, length: int, oldest: int) -> list[HeldRun]:
        """What a row holds of positions 0..length-1, one run a block; `oldest` is for windows, which lie elsewhere."""
        return self.rows.among(row, 0, length)

    def whole(self, row: int, length: int, oldest: int) -> tuple[KeyRun, ...]:
        """What `held` tells, for a query that sees all of it."""
        return tuple(KeyRun("block", 0, run.size, block=run.block) for run in self.held(row, length, oldest))

    def runs(self, row: int, length: int, oldest: int) -> Iterator[tuple[KeyRun, TokenMeta]]:
        """What `held` tells, each run with the metadata of its tokens."""
        for run in self.held(row, length, oldest):
            end = run.first_position + run.size
            positions = torch.arange(run.first_position, end, device=self.layout.device)
            stored = self.rows.block(row, run.block).flags
            flags = False if stored is None else stored[: run.size]
            yield KeyRun("block", 0, run.size, block=run.block), TokenMeta(position=positions, is_global=flags)

    def place(self, batch: Batch, span: Span) -> Placement:
        """Where a span's tokens go: slot = position, in blocks that this makes or copies if need be.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        runs = self.rows.place(span.row, span.position, len(span))
        puts = tuple(Put(span.start + run.first_position - span.position, run) for run in runs)
        for token, run in puts:
            stored = self.rows.block(span.row, run.block).flags
            if stored is not None:
                flags = False if batch.global_T is None else batch.global_T[token : token + run.size]
                stored[run.start : run.start + run.size] = flags
        return puts

    def slots_of(self, row: int, run: HeldRun) -> Vectors:
        """The slots that a run's `start` counts in, [2 (keys, values), layers, G, S] vectors."""
        return self.rows.block(row, run.block).slots

    def write(self, layer: int, row: int, placement: Placement, keys_GT: Vectors, values_GT: Vectors) -> None:
        """Commit a step's keys and values of one layer to a row, as `layout.kept` gives them."""
        for token, run in placement:
            slots = self.slots_of(row, run)
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                place = slots[kind, layer, :, run.start : run.start + run.size]
                place.copy_(new_GT[:, token : token + run.size])

    def mark(self, row: int, placement: Placement) -> None:
        """Nothing to note: slot i holds position i."""

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run to compute with, [G, S, K] each: in place if they are kept as they are computed."""
        slots = self.rows.block(row, run.block).slots[:, layer, :, run.start : run.stop]
        return slots[0].to(self.layout.dtype), slots[1].to(self.layout.dtype)

    def wipe(self, row: int) -> None:
        """Give a row's blocks back; those that others share stay theirs."""
        self.rows.wipe(row)

    def copy_row(self, row: int, other: GrowingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape: its blocks are shared until one of the two goes on."""
        self.rows.copy_row(row, other.rows, other_row)

    def undo(self, row: int, position: int, n_tokens: int) -> bool:
        """What a failed step of `n_tokens` tokens had claimed is copied when it is repeated: all that was there is."""
        return True

    def capture(self, row: int, length: int) -> StoreState:
        """What a row of `length` tokens holds: its blocks, shared with it."""
        starts, blocks = self.rows.capture(row, 0, length)
        return StoreState(blocks, starts)

    def fits(self, state: StoreState, length: int) -> bool:
        """Whether `restore` can take `state` over as that of a row of `length` tokens."""
        sizes = block_sizes(length)
        starts = tuple(accumulate(sizes, initial=0))[:-1]
        if state.starts != starts or len(state.blocks) != len(sizes) or state.reach is not None or state.pinned:
            return False
        return state.begin == 0 and all(
            min(length - start, size) <= block.used <= block.size <= size
            and fits_layout(self.layout, block, flags=self.pattern.global_tokens)
            for start, size, block in zip(starts, sizes, state.blocks, strict=True)
        )

    def restore(self, row: int, state: StoreState, length: int) -> None:
        """Take `state` over into an empty row, as of `length` tokens: blocks are shared until somebody goes on."""
        self.rows.restore(row, state.starts, state.blocks, length)


def fits_layout(layout: Layout, block: Block, *, flags: bool) -> bool:
    """Whether a block is made of what a store's slots are made of."""
    has_flags = block.flags is not None and block.flags.dtype == torch.bool and len(block.flags) == block.size
    return has_flags is flags and layout.holds(block.slots, 2, layout.n_layers, layout.n_heads, block.size)
