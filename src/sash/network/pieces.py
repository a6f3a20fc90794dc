"""States of rows cut at multiples of a block of the log, and put together again.

A piece is what stores hold of the positions [first, end) of a row: one part a store, each in one block. There are no
pins beside them: those lie at their positions too, maybe in an earlier piece. Parts share the blocks of the state that
they were cut from, and a state that is joined shares those of its parts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch

from sash.errors import CheckpointError
from sash.network import sizing
from sash.network.blocks import Block
from sash.network.slots import HeldRun, Vectors
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState


def piece_starts(length: int) -> range:
    """Where the pieces of a row of `length` tokens begin.

    >>> list(piece_starts(0)), list(piece_starts(512)), list(piece_starts(513))
    ([], [0, 256], [0, 256, 512])
    """
    return range(0, length, sizing.LOG_BLOCK)


def cut(state: RowState, first: int, end: int) -> dict[int, StoreState]:
    """The parts of the piece [first, end) of a state, by store, in its own blocks: of those stores that hold it all."""
    parts = {}
    for store, one in enumerate(state.states):
        index = bisect_right(one.starts, first) - 1
        if index < 0 or one.begin or (*one.starts[1:], state.length)[index] < end:
            continue
        pinned = pinned_before(one, end)
        parts[store] = StoreState((one.blocks[index],), (one.starts[index],), 0, one.reach, None, pinned)
    return parts


def pinned_before(state: StoreState, end: int) -> tuple[HeldRun, ...]:
    """The pins of a store before a position."""
    pinned = (run._replace(size=min(run.size, end - run.first_position)) for run in state.pinned)
    return tuple(run for run in pinned if run.size > 0)


def alone(parts: Sequence[StoreState], kinds: tuple[str, ...], first: int, end: int) -> RowState:
    """The piece [first, end) of its parts, one a store, as views of what their blocks hold from there to its end."""
    states = []
    for one in parts:
        (block,), (start,) = one.blocks, one.starts
        inside = slice(first - start, end - start)
        flags = None if block.flags is None else block.flags[inside]
        view = Block(block.slots[:, :, :, inside], flags, end - first)
        states.append(StoreState((view,), (first,), 0, one.reach, None, one.pinned))
    return RowState(end, kinds, tuple(states))


def join(kinds: tuple[str, ...], stores: Sequence[Sequence[tuple[int, int, StoreState]]], length: int) -> RowState:
    """The state of `length` tokens that parts of pieces make up.

    Args:
        kinds: what slots of each store are made of.
        stores: of each store (first, end, part) of pieces, ascending. The last holds position `length - 1`; those
            before it without a gap are what the state covers; others are only looked at for pins.
        length: tokens read.

    Raises:
        CheckpointError: they do not belong together, or pins are missing.
    """
    states = []
    for held in stores:
        parts = [_Part(first, min(end, length), state) for first, end, state in held]
        tail = max((i for i in range(1, len(parts)) if parts[i - 1].end != parts[i].first), default=0)
        if parts[-1].state.reach is None:
            states.append(_grown(parts[tail:], length))
        else:
            states.append(_windowed(parts, tail, length))
    return RowState(length, kinds, tuple(states))


class _Part:
    """Positions [first, end) of one store, which lie in a block that begins at `start`."""

    def __init__(self, first: int, end: int, state: StoreState) -> None:
        if len(state.blocks) != 1 or not state.starts[0] <= first < end <= state.starts[0] + state.blocks[0].size:
            raise CheckpointError("a piece of a snapshot does not hold what it names")
        self.first, self.end, self.state = first, end, state
        self.block, self.start = state.blocks[0], state.starts[0]


def _windowed(parts: list[_Part], tail: int, length: int) -> StoreState:
    starts: list[int] = []
    blocks: list[Block] = []
    for part in parts[tail:]:
        if not blocks or part.block is not blocks[-1]:
            if starts and part.start <= starts[-1]:
                raise CheckpointError("pieces of a snapshot do not follow each other")
            blocks.append(part.block)
            starts.append(part.start)
    last = parts[-1].state
    runs: list[HeldRun] = []
    taken = 0
    for run in last.pinned:
        size = min(run.size, length - run.first_position)
        if size > 0:
            runs.append(HeldRun(run.first_position, size, "pins", taken))
            taken += size
    pins = _empty(parts[-1].block, taken)
    for run in runs:
        filled = 0
        for part in parts:
            a, b = max(part.first, run.first_position), min(part.end, run.first_position + run.size)
            if a < b:
                at = run.start + a - run.first_position
                pins[:, :, :, at : at + b - a].copy_(part.block.slots[:, :, :, a - part.start : b - part.start])
                filled += b - a
        if filled != run.size:
            raise CheckpointError("pins of a snapshot are missing")
    return StoreState(tuple(blocks), tuple(starts), 0, last.reach, pins, tuple(runs))


def _grown(parts: list[_Part], length: int) -> StoreState:
    """Blocks of the sizes that a growing store has: the pieces' own where they are, copies elsewhere."""
    starts: list[int] = []
    blocks: list[Block] = []
    start = 0
    for size in sizing.block_sizes(length):
        end = min(start + size, length)
        inside = [part for part in parts if part.first < end and part.end > start]
        if not inside or inside[0].first > start or inside[-1].end < end:
            raise CheckpointError("a piece of a snapshot is missing")
        block = inside[-1].block
        if inside[-1].start != start or block.used < end - start or block.size > size:
            block = _gathered(inside, start, end, size)
        starts.append(start)
        blocks.append(block)
        start += size
    return StoreState(tuple(blocks), tuple(starts))


def _gathered(parts: list[_Part], start: int, end: int, size: int) -> Block:
    """A block of `size` slots that holds the positions [start, end): a row goes on in it, and copies nothing again."""
    numbers = parts[0].block.slots.numbers
    slots = Vectors.zeros((*numbers.shape[:-2], size), numbers.shape[-1], numbers.dtype, numbers.device)
    has_flags = parts[0].block.flags is not None
    flags = torch.zeros(size, dtype=torch.bool, device=numbers.device) if has_flags else None
    for part in parts:
        a, b = max(part.first, start), min(part.end, end)
        inside = slice(a - part.start, b - part.start)
        slots[:, :, :, a - start : b - start].copy_(part.block.slots[:, :, :, inside])
        if flags is not None and part.block.flags is not None:
            flags[a - start : b - start] = part.block.flags[inside]
    return Block(slots, flags, end - start)


def _empty(like: Block, count: int) -> Vectors:
    """Slots for `count` positions, made of what a block's are made of."""
    numbers, scales = like.slots.numbers, like.slots.scales
    front, dim = numbers.shape[:-2], numbers.shape[-1]
    return Vectors(
        numbers.new_empty((*front, count, dim)), None if scales is None else scales.new_empty((*front, count))
    )
