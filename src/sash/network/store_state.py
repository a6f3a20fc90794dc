"""What one row of a store holds, as something that can be gone on from elsewhere."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable
from dataclasses import dataclass, replace

from torch import Tensor

from sash.network.blocks import Block
from sash.network.slots import HeldRun, Vectors


@dataclass(frozen=True, slots=True)
class StoreState:
    """Positions side by side of a row, in blocks that are shared with others, and pins.

    Attributes:
        blocks: slots of consecutive positions; the last may hold more than are meant.
        starts: the position in the first slot of each block.
        begin: position of the first token that the row ever read.
        reach: how many tokens before a token it sees besides the pins; None for all.
        pins: [2 (keys, values), layers, G, pins held] vectors; None where the store has none.
        pinned: the pins' positions, as runs of slots of `pins`.
    """

    blocks: tuple[Block, ...]
    starts: tuple[int, ...]
    begin: int = 0
    reach: int | None = None
    pins: Vectors | None = None
    pinned: tuple[HeldRun, ...] = ()

    def first(self, length: int) -> int:
        """The first of the positions side by side that are held up to `length`; `length` where there is none."""
        return self.starts[0] if self.starts else length

    def covers_from(self, length: int) -> int:
        """The least length that a row can be taken back to, of a state of `length` tokens.

        >>> StoreState((), (), reach=3).covers_from(0)
        0
        """
        first = self.first(length)
        return self.begin if first <= self.begin else first + (self.reach or 0)

    def since(self, length: int, end: int) -> StoreState:
        """What of a state of `end` tokens is needed to go on from `length` tokens, or from any more."""
        first = 0 if self.reach is None else max(0, length - self.reach)
        if not self.starts or first <= self.starts[0]:
            return self
        index = bisect_right(self.starts, first) - 1
        block, start = self.blocks[index], self.starts[index]
        stop = (*self.starts[index + 1 :], end)[0] - start
        slots, flags = block.slots[:, :, :, first - start : stop], block.flags
        cut = Block(slots, None if flags is None else flags[first - start : stop], stop - (first - start))
        return replace(
            self, blocks=(cut, *self.blocks[index + 1 :]), starts=(first, *self.starts[index + 1 :])
        )  # fmt: skip

    def tensors(self) -> list[Tensor]:
        """Every tensor of it."""
        flags = [block.flags for block in self.blocks if block.flags is not None]
        pins = [] if self.pins is None else self.pins.tensors()
        return [tensor for block in self.blocks for tensor in block.slots.tensors()] + flags + pins

    def storages(self) -> dict[Hashable, int]:
        """Address and bytes of each piece of memory that it holds: pieces of two states are the same by address."""
        found = (tensor.untyped_storage() for tensor in self.tensors())
        return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}
