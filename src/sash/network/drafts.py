"""Where keys and values wait that may never count: those of tokens that somebody guessed.

A ring that has wrapped cannot be cut back, so a guess must not be written to it before it has proved right: it would
overwrite a key that is still in sight. A span of guessed tokens is attended as any other, but its keys and values go
here. What is accepted is copied from here to where the row's own tokens lie, one copy a store for all of its layers;
the rest is forgotten where it lies. So a row that took guesses and one that never did hold the same bytes.

Shape suffixes: G key/value heads, S slots, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import DoesNotFitError, UsageError
from sash.network.batch import Batch, Span
from sash.network.slots import HeldRun, Placement, Put, Vectors
from sash.network.stores import Store

SLOTS = 8
"""Slots are made by so many."""

_UNFLAGGED = Batch(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), ())


@dataclass(slots=True)
class _Row:
    """Slots [2 (keys, values), layers, G, S] of each pattern, and what waits: slots [at, end), from a position on."""

    slots: dict[AttentionPattern, Vectors] = field(default_factory=dict)
    n_slots: int = 0
    position: int = 0
    at: int = 0
    end: int = 0


class Drafts:
    """Guessed tokens of the rows of one cache."""

    def __init__(self, stores: Mapping[AttentionPattern, Store]) -> None:
        self._stores = stores
        self._rows: dict[int, _Row] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, whether or not they wait for anything."""
        return sum(slots.nbytes for row in self._rows.values() for slots in row.slots.values())

    def waiting(self, row: int) -> int:
        """Tokens of a row that may be accepted, in their order."""
        held = self._rows.get(row)
        return 0 if held is None else held.end - held.at

    def place(self, span: Span) -> Placement:
        """Where a guessed span's tokens go; what waited in its row before is forgotten.

        Raises:
            DoesNotFitError: there is no memory for them.
        """
        held = self._rows.setdefault(span.row, _Row())
        if len(span) > held.n_slots:
            n_slots = -(-len(span) // SLOTS) * SLOTS
            try:
                for pattern, store in self._stores.items():
                    layout = store.layout
                    held.slots[pattern] = layout.zeros(2, layout.n_layers, layout.n_heads, n_slots)
            except RuntimeError as error:
                raise DoesNotFitError(f"no memory to guess {len(span)} tokens at once: guess fewer") from error
            held.n_slots = n_slots
        held.at = held.end = 0
        return (Put(span.start, HeldRun(span.position, len(span), "drafts", 0)),)

    def slots(self, pattern: AttentionPattern, row: int) -> Vectors:
        """The slots of a pattern's layers in a row, [2 (keys, values), layers, G, S] vectors."""
        return self._rows[row].slots[pattern]

    def write(
        self,
        pattern: AttentionPattern,
        layer: int,
        row: int,
        placement: Placement,
        keys_GT: Vectors,
        values_GT: Vectors,
    ) -> None:
        """Keep a step's keys and values of one layer, as `layout.kept` gives them."""
        slots = self.slots(pattern, row)
        for token, run in placement:
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                slots[kind, layer, :, run.start : run.start + run.size].copy_(new_GT[:, token : token + run.size])

    def mark(self, span: Span) -> None:
        """Note that a span's tokens have been computed, and wait."""
        held = self._rows[span.row]
        held.position, held.at, held.end = span.position, 0, len(span)

    def accept(self, row: int, position: int, count: int) -> None:
        """Commit the next `count` tokens that wait to the stores of a row that has read `position` tokens.

        Raises:
            UsageError: they do not wait, or not for this position.
        """
        held = self._rows.get(row)
        if held is None or not 0 < count <= held.end - held.at or held.position + held.at != position:
            raise UsageError(f"row {row} has no {count} guessed tokens that go on from position {position}")
        span = Span(held.at, held.at + count, position, row)
        for pattern, store in self._stores.items():
            placement, slots = store.place(_UNFLAGGED, span), held.slots[pattern]
            for token, run in placement:
                place = store.slots_of(row, run)[:, :, :, run.start : run.start + run.size]
                place.copy_(slots[:, :, :, token : token + run.size])
            store.mark(row, placement)
        held.at += count

    def wipe(self, row: int) -> None:
        """Leave nothing of a row."""
        self._rows.pop(row, None)
