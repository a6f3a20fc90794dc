"""What one row of a cache has read, as of a position: to be gone on from later, elsewhere, by several.

A state holds positions side by side: all that the row has read, or the last of it, as far as its log goes; where it has
no log, as much as its rings had. It can be gone on from wherever it holds what a next token would see: as many tokens
before it as the window less one, and the pins. Blocks are shared and not copied: they are only ever appended to.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sash.errors import CheckpointError
from sash.network.blocks import Block
from sash.network.slots import HeldRun, Vectors
from sash.network.store_state import StoreState

_WRONG = (KeyError, TypeError, ValueError, IndexError, RuntimeError, StopIteration)
_APART = "a snapshot's description and its numbers do not belong together"


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
    states: tuple[StoreState, ...]

    def positions(self) -> range:
        """The lengths that a row can be restored to: from the least on, all up to its own."""
        return range(max((state.covers_from(self.length) for state in self.states), default=0), self.length + 1)

    def covers(self, length: int) -> bool:
        """Whether a row can be restored as of `length` tokens."""
        return length in self.positions()

    def since(self, length: int) -> RowState:
        """The same row without what nobody needs who goes on from `length` tokens or more."""
        return replace(self, states=tuple(state.since(length, self.length) for state in self.states))

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps from being freed; what it shares with rows and other states is counted in full."""
        return sum(self.storages().values())

    def storages(self) -> dict[Hashable, int]:
        """Address and bytes of each piece of memory that it holds: pieces of two states are the same by address."""
        return {at: nbytes for state in self.states for at, nbytes in state.storages().items()}

    def describe(self) -> dict[str, Any]:
        """All of it but the tensors, as JSON has it."""
        return {"length": self.length, "kinds": list(self.kinds), "stores": [_describe(s) for s in self.states]}

    def tensors(self) -> Iterator[Tensor]:
        """The tensors in the order in which `rebuild` wants them, without idle slots; copies where need be."""
        for store in range(len(self.states)):
            yield from self.tensors_of(store)

    def tensors_of(self, store: int) -> Iterator[Tensor]:
        """Those of one store."""
        state = self.states[store]
        for start, end, block in zip(state.starts, (*state.starts[1:], self.length), state.blocks, strict=True):
            count = min(end - start, block.size)
            yield from (tensor.contiguous() for tensor in block.slots[:, :, :, :count].tensors())
            if block.flags is not None:
                yield block.flags[:count].contiguous()
        if state.pins is not None:
            yield from (tensor.contiguous() for tensor in state.pins.tensors())

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
            states = tuple(_rebuild(store, length, left) for store in description["stores"])
        except _WRONG as error:
            raise CheckpointError(_APART) from error
        if next(left, None) is not None or len(kinds) != len(states):
            raise CheckpointError(_APART)
        return RowState(length, kinds, states)

    @staticmethod
    def rebuild_store(description: Mapping[str, Any], store: int, tensors: Sequence[Tensor]) -> StoreState:
        """One store of the state of a `describe`, of its own tensors.

        Raises:
            CheckpointError: they do not belong together.
        """
        left = iter(tensors)
        try:
            state = _rebuild(description["stores"][store], _count(description["length"]), left)
        except _WRONG as error:
            raise CheckpointError(_APART) from error
        if next(left, None) is not None:
            raise CheckpointError(_APART)
        return state


def _describe(state: StoreState) -> dict[str, Any]:
    first = state.blocks[0] if state.blocks else None
    slots = state.pins if first is None else first.slots
    return {
        "starts": list(state.starts),
        "scales": slots is not None and slots.scales is not None,
        "flags": first is not None and first.flags is not None,
        "begin": state.begin,
        "reach": state.reach,
        "pins": state.pins is not None,
        "pinned": [[run.first_position, run.size] for run in state.pinned],
    }


def _rebuild(store: Mapping[str, Any], length: int, tensors: Iterator[Tensor]) -> StoreState:
    def vectors() -> Vectors:
        return Vectors(next(tensors), next(tensors) if store["scales"] else None)

    runs, taken = [], 0
    for first, size in store["pinned"]:
        runs.append(HeldRun(_count(first), _count(size), "pins", taken))
        taken += size
    starts, blocks = tuple(_count(start) for start in store["starts"]), []
    for start, end in zip(starts, (*starts[1:], length), strict=True):
        slots = vectors()
        if slots.numbers.shape[-2] != end - start:
            raise ValueError("a block of another size")
        blocks.append(Block(slots, next(tensors) if store["flags"] else None, slots.numbers.shape[-2]))
    reach = None if store["reach"] is None else _count(store["reach"])
    return StoreState(
        tuple(blocks), starts, _count(store["begin"]), reach, vectors() if store["pins"] else None, tuple(runs)
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} counts nothing")
    return value
