"""What one row of a cache has read, as of a position: to be gone on from later, elsewhere, by several.

A wrapped ring cannot be cut back to where a text began to differ, so whoever wants to go on from a position must have
kept what the row held there. That is a copy of the rings, of a size that does not depend on the length of the text, and
the blocks of layers without a bound, which are shared and not copied: they are only ever appended to.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sash.errors import CheckpointError
from sash.network.growing_store import Block, GrowingState
from sash.network.ring_store import RingState
from sash.network.slots import HeldRun, Vectors
from sash.network.stores import State


@dataclass(frozen=True, slots=True, eq=False)
class RowState:
    """A row as of a position. Nothing that the row does afterwards changes it, nor does what others do with it.

    Attributes:
        length: tokens read.
        kinds: of each store of the cache, what its slots are made of (`kind_of`).
        states: of each store, what it held.
    """

    length: int
    kinds: tuple[str, ...]
    states: tuple[State, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps from being freed; what it shares with rows and other states is counted in full."""
        return sum(self.storages().values())

    def storages(self) -> dict[Hashable, int]:
        """Address and bytes of each piece of memory that it holds: pieces of two states are the same by address."""
        tensors = (tensor.untyped_storage() for state in self.states for tensor in state.tensors())
        return {storage.data_ptr(): storage.nbytes() for storage in tensors if storage.nbytes()}

    def describe(self) -> dict[str, Any]:
        """All of it but the tensors, as JSON has it."""
        return {"length": self.length, "kinds": list(self.kinds), "stores": [_describe(s) for s in self.states]}

    def tensors(self) -> Iterator[Tensor]:
        """The tensors in the order in which `rebuild` wants them, without idle slots; copies where need be."""
        for state in self.states:
            if isinstance(state, RingState):
                yield from (tensor.contiguous() for tensor in state.tensors())
                yield torch.tensor(state.positions, dtype=torch.int64)
                continue
            left = self.length
            for block in state.blocks:
                count = min(left, block.size)
                left -= count
                yield from (tensor.contiguous() for tensor in block.slots[:, :, :, :count].tensors())
                if block.flags is not None:
                    yield block.flags[:count].contiguous()

    @staticmethod
    def rebuild(description: Mapping[str, Any], tensors: Sequence[Tensor]) -> RowState:
        """The state of a `describe` and its tensors, which are kept as they are.

        What it says is checked against a cache only when it is restored.

        Raises:
            CheckpointError: they do not belong together.
        """
        left = iter(tensors)
        try:
            length = _count(description["length"])
            kinds = tuple(str(kind) for kind in description["kinds"])
            states = tuple(_rebuild(store, left) for store in description["stores"])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, StopIteration) as error:
            raise CheckpointError("a snapshot's description and its numbers do not belong together") from error
        if next(left, None) is not None or len(kinds) != len(states):
            raise CheckpointError("a snapshot's description and its numbers do not belong together")
        return RowState(length, kinds, states)


def _describe(state: State) -> dict[str, Any]:
    if isinstance(state, RingState):
        pinned = [[run.first_position, run.size] for run in state.pinned]
        return {"ring": True, "scales": state.ring.scales is not None, "pinned": pinned, "begin": state.begin}
    first = state.blocks[0] if state.blocks else None
    return {
        "ring": False,
        "scales": first is not None and first.slots.scales is not None,
        "blocks": len(state.blocks),
        "flags": first is not None and first.flags is not None,
    }


def _rebuild(store: Mapping[str, Any], tensors: Iterator[Tensor]) -> State:
    def vectors() -> Vectors:
        return Vectors(next(tensors), next(tensors) if store["scales"] else None)

    if store["ring"]:
        runs, taken = [], 0
        for first, size in store["pinned"]:
            runs.append(HeldRun(_count(first), _count(size), "pins", taken))
            taken += size
        begin = None if store["begin"] is None else _count(store["begin"])
        ring, pins, positions = vectors(), vectors(), next(tensors)
        if positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError("positions are whole numbers")
        return RingState(ring, pins, tuple(positions.tolist()), tuple(runs), begin)
    blocks = []
    for _ in range(_count(store["blocks"])):
        slots = vectors()
        blocks.append(Block(slots, next(tensors) if store["flags"] else None, slots.numbers.shape[-2]))
    return GrowingState(tuple(blocks))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} counts nothing")
    return value
