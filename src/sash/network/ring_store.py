"""Where keys and values of windowed layers lie: a ring of W slots a row, and pins beside it.

Slots keep absolute positions, so attention neither unrolls nor trims anything. What is held where is told in plain
integers, as runs of slots that hold consecutive positions: planning a step of single tokens makes no tensors, and a
kernel turns a run into a pointer. Layers of one pattern share a store: their keys and values lie apart, their
positions are one. What slides out of a ring is gone, unless there is a log behind it (`sash.network.log`): then every
token goes to both.

Shape suffixes: T tokens, G key/value heads, S slots, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import KeyRun
from sash.errors import DoesNotFitError, PinsError
from sash.network.annex import Annex
from sash.network.batch import Batch, Span
from sash.network.blocks import Block
from sash.network.growing_store import fits_layout
from sash.network.log import Log, LogRoom
from sash.network.query_tap import QueryTap
from sash.network.ring_row import RingRow
from sash.network.slots import HeldRun, Layout, Placement, Put, Vectors, stretches
from sash.network.store_state import StoreState


class RingStore:
    """Rings and pins of the layers that share a windowed pattern.

    Attributes:
        pattern: the layers' own.
        layout: what the slots are made of.
        n_slots: slots of a ring.
        reach: how many tokens before a token it sees besides the pins: one less than there are slots.
        log: all tokens of every row; None where none is kept.
        ring, pins: [2 (keys, values), layers, rows, G, S] vectors of all rows; of none where rows are made on demand.
        annex: slots that are filled with keys from outside of the window; None where the pattern has none.
        tap: keeps what the last tokens of each step ask; None, and nothing is kept, until somebody puts one there.
    """

    def __init__(
        self, pattern: AttentionPattern, layout: Layout, *, on_demand: bool = False, room: LogRoom | None = None
    ) -> None:
        """`on_demand` makes a row's slots when it is first written to, and frees them when it is wiped.

        `room` is that of the log; without one there is none, unless global tokens are to see what it keeps.
        """
        self.pattern, self.layout, self._on_demand = pattern, layout, on_demand
        if room is None and pattern.holds_global:
            room = LogRoom()
        self.tap: QueryTap | None = None
        self.log = None if room is None else Log(layout, room)
        self.annex = Annex(layout, pattern.annex) if pattern.annex else None
        self.n_slots = (pattern.capacity() or 0) - pattern.pins - pattern.annex
        self.reach = self.n_slots - 1
        rows = (2, layout.n_layers, 0 if on_demand else layout.n_rows, layout.n_heads)
        self.ring = layout.zeros(*rows, self.n_slots)
        self.pins = layout.zeros(*rows, pattern.pins)
        self._slots: list[tuple[Vectors, Vectors] | None] = [
            None if on_demand else (self.ring[:, :, row], self.pins[:, :, row]) for row in range(layout.n_rows)
        ]
        self._rows = [RingRow(self.n_slots) for _ in range(layout.n_rows)]

    @property
    def positions(self) -> list[list[int]]:
        """The position in each slot of each row's ring, -1 for an empty one."""
        return [row.positions for row in self._rows]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, the log's not among them."""
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
        return self._rows[row].last_pin

    def held(self, row: int, length: int, oldest: int) -> list[HeldRun]:
        """What a row holds of the positions oldest..length-1, and its pins, by ascending position.

        A ring that wraps gives two runs, and a pin among the positions, which is not in the ring, one more. With 4
        slots, positions 3..5 lie in slot 3 and in slots 0..1. Pins side by side are one run.
        """
        return self._rows[row].held(length, oldest)

    def behind(self, row: int, length: int, oldest: int) -> list[HeldRun]:
        """What the log has of positions `oldest` to `length - reach - 1` that are no pins; the ring has what follows.

        It is what global queries see beside what `held` tells from there on; what a budget has dropped nobody sees.
        """
        if self.log is None:
            return []
        end, pinned = max(self._rows[row].begin or 0, length - self.reach), self._rows[row].pinned
        edges = [oldest, *(at for run in pinned for at in (run.first_position, run.first_position + run.size))]
        stops = [*edges[1:], end]
        found = []
        for first, stop in zip(edges[::2], stops[::2], strict=True):
            first = max(first, oldest)
            found += self.log.held(row, first, min(stop, end)) if first < min(stop, end) else []
        return found

    def whole(self, row: int, length: int, oldest: int) -> tuple[KeyRun, ...]:
        """What `held` tells, for a query that sees all of it; pins are one run, whatever their positions."""
        rings = tuple(
            KeyRun("ring", run.start, run.start + run.size)
            for run in self.held(row, length, oldest)
            if run.source == "ring"
        )
        count = self._rows[row].n_pinned
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
            yield KeyRun("pins", 0, self._rows[row].n_pinned, clamped=True), meta

    def _positions(self, runs: Iterable[HeldRun]) -> Tensor:
        device = self.layout.device
        parts = [torch.arange(run.first_position, run.first_position + run.size, device=device) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def place(self, batch: Batch, span: Span) -> Placement:
        """Where a span's tokens go: the newest that the ring can hold into the ring, pins into slots of their own.

        With a log, all of them go to it too.

        Raises:
            PinsError: more tokens are flagged than the pattern has pins.
            DoesNotFitError: there is no memory for another block of the log.
        """
        row = span.row
        pinned = pins_among(self.pattern, batch, span)
        n_pins = self._rows[row].n_pinned + sum(count for _, count in pinned)
        if n_pins > self.pattern.pins:
            raise PinsError(f"{n_pins} tokens are pinned, and there is room for {self.pattern.pins}: pin fewer")
        self.slots(row, "ring")
        puts = self._rows[row].place(span.position, len(span), pinned)
        if self.log is not None:
            logged = self.log.place(row, span.position, len(span))
            puts += [Put(run.first_position - span.position, run) for run in logged]
        return tuple(Put(span.start + token, run) for token, run in puts)

    def slots_of(self, row: int, run: HeldRun | KeyRun) -> Vectors:
        """The slots that a run's `start` counts in, [2 (keys, values), layers, G, S] vectors."""
        if run.source == "block" and self.log is not None:
            return self.log.rows.block(row, run.block).slots
        return self.slots(row, run.source)

    def write(self, layer: int, row: int, placement: Placement, keys_GT: Vectors, values_GT: Vectors) -> None:
        """Commit a step's keys and values of one layer to a row, as `layout.kept` gives them."""
        for token, run in placement:
            slots = self.slots_of(row, run)
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                place = slots[kind, layer, :, run.start : run.start + run.size]
                place.copy_(new_GT[:, token : token + run.size])

    def mark(self, row: int, placement: Placement) -> None:
        """Note which positions a row's slots now hold."""
        self._rows[row].mark(run for _, run in placement)
        if self.log is not None and placement:
            self.log.mark(row, placement[-1].run.first_position + placement[-1].run.size)

    def undo(self, row: int, position: int, n_tokens: int) -> bool:
        """Take back a step of `n_tokens` tokens that failed at any layer; whether all that the row held is there.

        A single token writes to the slot whose position no query can see any more. A longer chunk may have written over
        positions that its own first tokens still see, unless the ring had not wrapped, or a log has them.
        """
        held, log = self._rows[row], self.log
        held.undo(position, n_tokens)
        if held.begin is None:
            return True
        if log is not None:
            log.cut(row, position)
        needed = max(held.begin, position - self.reach)
        if held.oldest <= needed:
            return True
        if log is None or log.first(row) > needed:
            return False
        self._fill(row, *log.capture(row, position), needed, position)
        return True

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run to compute with, [G, S, K] each: in place if they are kept as they are computed."""
        slots = self.slots_of(row, run)[:, layer, :, run.start : run.stop]
        device = self.layout.device  # a log is on the host
        return slots[0].to(self.layout.dtype).to(device), slots[1].to(self.layout.dtype).to(device)

    def wipe(self, row: int) -> None:
        """Leave nothing of a row: neither keys and values, nor positions."""
        if self._on_demand:
            self._slots[row] = None
        for slots in self._slots[row] or ():
            slots.zero_()
        if self.annex is not None:
            self.annex.wipe(row)
        self._rows[row] = RingRow(self.n_slots)
        if self.log is not None:
            self.log.wipe(row)

    def copy_row(self, row: int, other: RingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape."""
        for source in ("ring", "pins"):
            self.slots(row, source).copy_(other.slots(other_row, source))
        self._rows[row] = other._rows[other_row].copy()
        if self.annex is not None and other.annex is not None:
            self.annex.copy_row(row, other.annex, other_row)
        if self.log is not None and other.log is not None:
            self.log.copy_row(row, other.log, other_row)
        elif self.log is not None:
            length = max(*self._rows[row].positions, self._rows[row].last_pin) + 1
            state = other.capture(other_row, length)
            self.log.restore(row, state.starts, state.blocks, length)

    def capture(self, row: int, length: int) -> StoreState:
        """What a row of `length` tokens holds: blocks of its log, shared, or a copy of its ring; and pins."""
        held, log = self._rows[row], self.log
        begin = held.begin
        if begin is None:
            return StoreState((), (), length, self.reach, self.slots(row, "pins")[:, :, :, :0].clone())
        if log is not None and log.first(row) <= max(begin, length - self.reach):
            starts, blocks = log.capture(row, length)
        else:
            starts, blocks = self._copied(row, max(begin, held.oldest, length - self.n_slots), length)
        pins = self.slots(row, "pins")[:, :, :, : held.n_pinned].clone()
        return StoreState(blocks, starts, begin, self.reach, pins, tuple(held.pinned))

    def _copied(self, row: int, first: int, length: int) -> tuple[tuple[int, ...], tuple[Block, ...]]:
        """Positions [first, length) of a row in a block of their own; pins among them have their slot in it."""
        count = length - first
        if count <= 0:
            return (), ()
        slots = self.layout.zeros(2, self.layout.n_layers, self.layout.n_heads, count)
        for run in self.held(row, length, first):
            a, b = max(first, run.first_position), min(length, run.first_position + run.size)
            if a < b:
                at = run.start + a - run.first_position
                slots[:, :, :, a - first : b - first].copy_(self.slots_of(row, run)[:, :, :, at : at + b - a])
        return (first,), (Block(slots, None, count),)

    def fits(self, state: StoreState, length: int) -> bool:
        """Whether `restore` can take `state` over as that of a row of `length` tokens."""
        pinned, blocks, starts = state.pinned, state.blocks, state.starts
        n_pinned = sum(run.size for run in pinned)
        ends = [run.first_position + run.size for run in pinned]
        return (
            state.reach == self.reach
            and 0 <= state.begin <= length
            and len(starts) == len(blocks)
            and state.begin <= state.first(length)
            and state.covers_from(length) <= length
            and all(a < b for a, b in pairwise((*starts, length)))
            and all(
                b - a <= block.used <= block.size and fits_layout(self.layout, block, flags=False)
                for a, b, block in zip(starts, (*starts[1:], length), blocks, strict=True)
            )
            and n_pinned <= self.pattern.pins
            and state.pins is not None
            and self.layout.holds(state.pins, 2, self.layout.n_layers, self.layout.n_heads, n_pinned)
            and all(run.size > 0 and run.first_position >= 0 for run in pinned)
            and [run.start for run in pinned] == [0, *accumulate(run.size for run in pinned)][:-1]
            and all(end <= run.first_position for end, run in zip(ends, pinned[1:], strict=False))
            and (not ends or ends[-1] <= length)
        )

    def restore(self, row: int, state: StoreState, length: int) -> None:
        """Take `state` over into an empty row, as of `length` tokens, one of those that it covers.

        The ring is filled with what a next token sees: `reach` tokens, or all that there are. Pins after them go.
        """
        if state.pins is None or length <= state.begin:
            return
        held = self._rows[row]
        held.pinned, held.begin = list(state.pinned), state.begin
        held.unpin(length)
        self.slots(row, "pins")[:, :, :, : held.n_pinned].copy_(state.pins[:, :, :, : held.n_pinned])
        self._fill(row, state.starts, state.blocks, max(state.begin, length - self.reach), length)
        if self.log is not None:
            self.log.restore(row, state.starts, state.blocks, length)

    def _fill(self, row: int, starts: Sequence[int], blocks: Sequence[Block], first: int, length: int) -> None:
        """Put positions [first, length) into the ring, from blocks that hold them; pins have slots of their own."""
        ring, held = self.slots(row, "ring"), self._rows[row]
        for start, end, block in zip(starts, (*starts[1:], length), blocks, strict=True):
            runs = held.unpinned(max(first, start), min(end, length))
            for run in runs:
                at = run.first_position - start
                ring[:, :, :, run.start : run.start + run.size].copy_(block.slots[:, :, :, at : at + run.size])
            held.mark(runs)
        held.oldest = first


def pins_among(pattern: AttentionPattern, batch: Batch, span: Span) -> list[tuple[int, int]]:
    """(first, count) of each stretch of a span's tokens that are pins."""
    if not pattern.pins:
        return []
    if pattern.pin_by == "first":
        count = min(pattern.pins - span.position, len(span))
        return [(0, count)] if count > 0 else []
    chosen = (batch.pinned_T, batch.global_T if pattern.holds_global else None)
    flags = [flags_T[span.start : span.stop] for flags_T in chosen if flags_T is not None]
    if not flags:
        return []
    return stretches((flags[0] if len(flags) == 1 else flags[0] | flags[1]).tolist())
