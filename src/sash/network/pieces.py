"""States of rows cut at multiples of a block of the log, and put together again.

A piece is a `RowState` of its own that holds the positions [first, end) of a row in every store, `end` being its
length, and no pins beside them: those lie at their positions too, maybe in an earlier piece. Pieces share the blocks
of the state that they were cut from, and a state that is joined shares those of its pieces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

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


def cut(state: RowState, first: int, end: int) -> RowState | None:
    """The piece [first, end) of a state, in the state's own blocks; None where it does not hold all of that."""
    states = []
    for one in state.states:
        index = bisect_right(one.starts, first) - 1
        if index < 0 or one.begin:
            return None
        stop = (*one.starts[1:], state.length)[index]
        if stop < end:
            return None
        pinned = tuple(run._replace(size=min(run.size, end - run.first_position)) for run in one.pinned)
        pinned = tuple(run for run in pinned if run.size > 0)
        states.append(StoreState((one.blocks[index],), (one.starts[index],), 0, one.reach, None, pinned))
    return RowState(end, state.kinds, tuple(states))


def alone(piece: RowState, first: int) -> RowState:
    """A piece that begins at `first`, as views of what its blocks hold from there to its end."""
    states = []
    for one in piece.states:
        (block,), (start,) = one.blocks, one.starts
        inside = slice(first - start, piece.length - start)
        flags = None if block.flags is None else block.flags[inside]
        view = Block(block.slots[:, :, :, inside], flags, piece.length - first)
        states.append(StoreState((view,), (first,), 0, one.reach, None, one.pinned))
    return RowState(piece.length, piece.kinds, tuple(states))


def join(pieces: Sequence[tuple[int, RowState]], length: int) -> RowState:
    """The state of `length` tokens that some pieces make up.

    Args:
        pieces: (first, piece), ascending. The last holds position `length - 1`; those before it without a gap are
            what the state covers; others are only looked at for pins.
        length: tokens read.

    Raises:
        CheckpointError: they do not belong together, or pins are missing.
    """
    kinds = pieces[-1][1].kinds
    if any(piece.kinds != kinds or len(piece.states) != len(kinds) for _, piece in pieces):
        raise CheckpointError("pieces of a snapshot do not belong together")
    tail = 0
    for index, ((_, before), (first, _)) in enumerate(pairwise(pieces), 1):
        if before.length != first:
            tail = index
    states = []
    for store in range(len(kinds)):
        parts = [_Part(first, min(piece.length, length), piece.states[store]) for first, piece in pieces]
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
            block = _gathered(inside, start, end)
        starts.append(start)
        blocks.append(block)
        start += size
    return StoreState(tuple(blocks), tuple(starts))


def _gathered(parts: list[_Part], start: int, end: int) -> Block:
    slots = _empty(parts[0].block, end - start)
    has_flags = parts[0].block.flags is not None
    flags = torch.zeros(end - start, dtype=torch.bool, device=slots.numbers.device) if has_flags else None
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
