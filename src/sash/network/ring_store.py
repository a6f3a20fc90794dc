"""Where keys and values of windowed layers lie: a ring of W slots a row, and pins beside it.

Slots keep absolute positions, so attention neither unrolls nor trims anything. What is held where is told in plain
integers, as runs of slots that hold consecutive positions: planning a step of single tokens makes no tensors, and a
kernel turns a run into a pointer. Layers of one pattern share a store: their keys and values lie apart, their
positions are one.

Shape suffixes: T tokens, G key/value heads, S slots, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import KeyRun
from sash.errors import DoesNotFitError, PinsError
from sash.network.annex import Annex
from sash.network.batch import Batch, Span
from sash.network.slots import HeldRun, Layout, Placement, Put, Vectors, stretches


@dataclass(frozen=True, slots=True)
class RingState:
    """What one row of a ring store holds: a copy of its own.

    Attributes:
        ring: [2 (keys, values), layers, G, n] vectors: the ring's first n slots, of which the others are empty.
        pins: [2, layers, G, pins held] vectors.
        positions: of each of the n slots, -1 for an empty one.
        pinned: the pins' positions, as runs of slots.
        begin: the first position that ever went into the ring; None for none.
    """

    ring: Vectors
    pins: Vectors
    positions: tuple[int, ...]
    pinned: tuple[HeldRun, ...]
    begin: int | None

    def tensors(self) -> list[Tensor]:
        """Every tensor of it."""
        return [*self.ring.tensors(), *self.pins.tensors()]


class RingStore:
    """Rings and pins of the layers that share a windowed pattern.

    Attributes:
        pattern: the layers' own.
        layout: what the slots are made of.
        n_slots: slots of a ring.
        ring, pins: [2 (keys, values), layers, rows, G, S] vectors of all rows; of none where rows are made on demand.
        positions: the position in each slot of a row's ring, -1 for an empty one.
        annex: slots that are filled between steps; None where the pattern has none.
    """

    def __init__(self, pattern: AttentionPattern, layout: Layout, *, on_demand: bool = False) -> None:
        """`on_demand` makes a row's slots when it is first written to, and frees them when it is wiped."""
        self.pattern, self.layout, self._on_demand = pattern, layout, on_demand
        self.n_slots = (pattern.capacity() or 0) - pattern.pins - pattern.annex
        self.annex = Annex(layout, pattern.annex) if pattern.annex else None
        rows = (2, layout.n_layers, 0 if on_demand else layout.n_rows, layout.n_heads)
        self.ring = layout.zeros(*rows, self.n_slots)
        self.pins = layout.zeros(*rows, pattern.pins)
        self._slots: list[tuple[Vectors, Vectors] | None] = [
            None if on_demand else (self.ring[:, :, row], self.pins[:, :, row]) for row in range(layout.n_rows)
        ]
        self.positions = [[-1] * self.n_slots for _ in range(layout.n_rows)]
        self._pinned: list[list[HeldRun]] = [[] for _ in range(layout.n_rows)]
        self._n_pinned = [0] * layout.n_rows
        self._begin: list[int | None] = [None] * layout.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        beside = 0 if self.annex is None else self.annex.nbytes
        return beside + sum(ring.nbytes + pins.nbytes for ring, pins in filter(None, self._slots))

    def slots(self, row: int, source: str) -> Vectors:
        """The "ring", the "pins" or the "annex" of a row, [2 (keys, values), layers, G, S] vectors.

        Raises:
            DoesNotFitError: there is no memory for a row that is made on demand.
        """
        if source == "annex" and self.annex is not None:
            return self.annex.slots(row)
        made = self._slots[row]
        if made is None:
            front = (2, self.layout.n_layers, self.layout.n_heads)
            try:
                made = self.layout.zeros(*front, self.n_slots), self.layout.zeros(*front, self.pattern.pins)
            except RuntimeError as error:
                raise DoesNotFitError("no memory for another rolling buffer: use fewer sequences at once") from error
            self._slots[row] = made
        return made[0] if source == "ring" else made[1]

    def last_pin(self, row: int) -> int:
        """Position of the row's last pin; -1 without one."""
        if not self._pinned[row]:
            return -1
        last = self._pinned[row][-1]
        return last.first_position + last.size - 1

    def held(self, row: int, length: int, oldest: int) -> list[HeldRun]:
        """What a row holds of the positions oldest..length-1, and its pins, by ascending position.

        A ring that wraps gives two runs, and a pin among the positions, which is not in the ring, one more. With 4
        slots, positions 3..5 lie in slot 3 and in slots 0..1. Pins side by side are one run.
        """
        begin, pinned = self._begin[row], self._pinned[row]
        runs: list[HeldRun] = []
        if begin is not None:
            first = max(oldest, length - self.n_slots, begin)
            for run in pinned:
                if run.first_position + run.size > first:
                    runs += self._around(first, min(run.first_position, length) - first)
                    first = max(first, run.first_position + run.size)
            runs += self._around(first, length - first)
        return sorted([*pinned, *runs]) if pinned else runs

    def _around(self, position: int, count: int) -> list[HeldRun]:
        """The slots of `count` positions, at most `n_slots`: two runs if the ring ends among them."""
        if count <= 0:
            return []
        start = position % self.n_slots
        before = min(count, self.n_slots - start)
        run = HeldRun(position, before, "ring", start)
        return [run] if before == count else [run, HeldRun(position + before, count - before, "ring", 0)]

    def whole(self, row: int, length: int, oldest: int) -> tuple[KeyRun, ...]:
        """What `held` tells, for a query that sees all of it; pins are one run, whatever their positions."""
        rings = tuple(
            KeyRun("ring", run.start, run.start + run.size)
            for run in self.held(row, length, oldest)
            if run.source == "ring"
        )
        count = self._n_pinned[row]
        return (*rings, KeyRun("pins", 0, count, clamped=True)) if count else rings

    def runs(self, row: int, length: int, oldest: int) -> Iterator[tuple[KeyRun, TokenMeta]]:
        """What `held` tells, each run with the metadata of its tokens; pins are one run."""
        held = self.held(row, length, oldest)
        for run in held:
            if run.source == "ring":
                yield KeyRun("ring", run.start, run.start + run.size), TokenMeta(position=self._positions((run,)))
        pinned = [run for run in held if run.source == "pins"]
        if pinned:
            meta = TokenMeta(position=self._positions(pinned), pinned=True)
            yield KeyRun("pins", 0, self._n_pinned[row], clamped=True), meta

    def _positions(self, runs: Iterable[HeldRun]) -> Tensor:
        device = self.layout.device
        parts = [torch.arange(run.first_position, run.first_position + run.size, device=device) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def place(self, batch: Batch, span: Span) -> Placement:
        """Where a span's tokens go: the newest that the ring can hold into the ring, pins into slots of their own.

        Raises:
            PinsError: more tokens are flagged than the pattern has pins.
        """
        row, n_tokens = span.row, len(span)
        pinned = pins_among(self.pattern, batch, span)
        taken = self._n_pinned[row]
        n_pins = sum(count for _, count in pinned)
        if taken + n_pins > self.pattern.pins:
            raise PinsError(f"{taken + n_pins} tokens are pinned, and there is room for {self.pattern.pins}: pin fewer")
        self.slots(row, "ring")
        puts = []
        first = max(0, n_tokens - self.n_slots)
        for index, count in pinned:
            puts.append(Put(span.start + index, HeldRun(span.position + index, count, "pins", taken)))
            taken += count
            puts += self._rolling(span, first, index)
            first = max(first, index + count)
        return (*puts, *self._rolling(span, first, n_tokens))

    def _rolling(self, span: Span, a: int, b: int) -> list[Put]:
        """Tokens [a, b) of a span into the ring."""
        runs = self._around(span.position + a, b - a)
        return [Put(span.start + run.first_position - span.position, run) for run in runs]

    def write(self, layer: int, row: int, placement: Placement, keys_GT: Vectors, values_GT: Vectors) -> None:
        """Commit a step's keys and values of one layer to a row, as `layout.kept` gives them."""
        for token, run in placement:
            slots = self.slots(row, run.source)
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                place = slots[kind, layer, :, run.start : run.start + run.size]
                place.copy_(new_GT[:, token : token + run.size])

    def mark(self, row: int, placement: Placement) -> None:
        """Note which positions a row's slots now hold."""
        for _, run in placement:
            end = run.first_position + run.size
            if run.source == "ring":
                self.positions[row][run.start : run.start + run.size] = range(run.first_position, end)
                begin = self._begin[row]
                self._begin[row] = run.first_position if begin is None else min(begin, run.first_position)
                continue
            self._n_pinned[row] += run.size
            before = self._pinned[row]
            if before and before[-1].first_position + before[-1].size == run.first_position:
                before[-1] = before[-1]._replace(size=before[-1].size + run.size)
            else:
                before.append(run)

    def unpin(self, row: int, position: int) -> None:
        """Forget the pins at a position and after it, whose step failed."""
        kept = [run._replace(size=min(run.size, position - run.first_position)) for run in self._pinned[row]]
        self._pinned[row] = [run for run in kept if run.size > 0]
        self._n_pinned[row] = sum(run.size for run in self._pinned[row])

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run to compute with, [G, S, K] each: in place if they are kept as they are computed."""
        slots = self.slots(row, run.source)[:, layer, :, run.start : run.stop]
        return slots[0].to(self.layout.dtype), slots[1].to(self.layout.dtype)

    def wipe(self, row: int) -> None:
        """Leave nothing of a row: neither keys and values, nor positions."""
        if self._on_demand:
            self._slots[row] = None
        for slots in self._slots[row] or ():
            slots.zero_()
        if self.annex is not None:
            self.annex.wipe(row)
        self.positions[row] = [-1] * self.n_slots
        self._pinned[row], self._n_pinned[row], self._begin[row] = [], 0, None

    def copy_row(self, row: int, other: RingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape."""
        for source in ("ring", "pins"):
            self.slots(row, source).copy_(other.slots(other_row, source))
        self.positions[row] = list(other.positions[other_row])
        self._pinned[row] = list(other._pinned[other_row])
        self._n_pinned[row], self._begin[row] = other._n_pinned[other_row], other._begin[other_row]
        if self.annex is not None and other.annex is not None:
            self.annex.copy_row(row, other.annex, other_row)

    def capture(self, row: int, length: int) -> RingState:
        """A copy of what a row of `length` tokens holds."""
        positions = self.positions[row]
        n_slots = next((slot + 1 for slot in range(self.n_slots - 1, -1, -1) if positions[slot] >= 0), 0)
        return RingState(
            self.slots(row, "ring")[:, :, :, :n_slots].clone(),
            self.slots(row, "pins")[:, :, :, : self._n_pinned[row]].clone(),
            tuple(positions[:n_slots]),
            tuple(self._pinned[row]),
            self._begin[row],
        )

    def fits(self, state: RingState, length: int) -> bool:
        """Whether `restore` can take `state` over as that of a row of `length` tokens."""
        n_pinned, n_slots = sum(run.size for run in state.pinned), len(state.positions)
        front = (2, self.layout.n_layers, self.layout.n_heads)
        ends = [run.first_position + run.size for run in state.pinned]
        return (
            n_slots <= self.n_slots
            and n_pinned <= self.pattern.pins
            and self.layout.holds(state.ring, *front, n_slots)
            and self.layout.holds(state.pins, *front, n_pinned)
            and (state.begin is None or 0 <= state.begin <= length)
            and all(p == -1 or (0 <= p < length and p % self.n_slots == s) for s, p in enumerate(state.positions))
            and all(run.size > 0 and run.first_position >= 0 for run in state.pinned)
            and [run.start for run in state.pinned] == [0, *accumulate(run.size for run in state.pinned)][:-1]
            and all(end <= run.first_position for end, run in zip(ends, state.pinned[1:], strict=False))
            and (not ends or ends[-1] <= length)
        )

    def restore(self, row: int, state: RingState, length: int) -> None:
        """Take `state` over into an empty row, as of `length` tokens: all that it holds, or all but the last.

        A ring cannot be cut back, but for one token: what the last one overwrote had just left the window of the
        token that takes its place.
        """
        n_slots = len(state.positions)
        self.slots(row, "ring")[:, :, :, :n_slots].copy_(state.ring)
        self.positions[row][:n_slots] = [position if position < length else -1 for position in state.positions]
        kept = [run._replace(size=min(run.size, length - run.first_position)) for run in state.pinned]
        self._pinned[row] = [run for run in kept if run.size > 0]
        self._n_pinned[row] = sum(run.size for run in self._pinned[row])
        self.slots(row, "pins")[:, :, :, : self._n_pinned[row]].copy_(state.pins[:, :, :, : self._n_pinned[row]])
        self._begin[row] = None if state.begin is None or state.begin >= length else state.begin


def pins_among(pattern: AttentionPattern, batch: Batch, span: Span) -> list[tuple[int, int]]:
    """(first, count) of each stretch of a span's tokens that are pins."""
    if not pattern.pins:
        return []
    if pattern.pin_by == "first":
        count = min(pattern.pins - span.position, len(span))
        return [(0, count)] if count > 0 else []
    if batch.pinned_T is None:
        return []
    return stretches(batch.pinned_T[span.start : span.stop].tolist())
