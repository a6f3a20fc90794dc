"""Where keys and values lie: rings of W slots for windows, growing blocks for layers without a bound.

Slots keep absolute positions, so attention neither unrolls nor trims anything. What is held where is told in plain
integers, as runs of slots that hold consecutive positions: planning a step of single tokens makes no tensors, and a
kernel turns a run into a pointer. Layers of one pattern share a store: their keys and values lie apart, their
positions are one.

Shape suffixes: T tokens, G key/value heads, S slots, K head dimension.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import KeyRun
from sash.errors import DoesNotFitError, PinsError
from sash.network.batch import Batch, Span
from sash.network.sizing import block_sizes
from sash.network.slots import HeldRun, Layout, Placement, Put, Vectors, stretches


class RingStore:
    """Rings and pins of the layers that share a windowed pattern.

    Attributes:
        pattern: the layers' own.
        layout: what the slots are made of.
        n_slots: slots of a ring.
        ring, pins: [2 (keys, values), layers, rows, G, S] vectors.
        positions: the position in each slot of a row's ring, -1 for an empty one.
    """

    def __init__(self, pattern: AttentionPattern, layout: Layout) -> None:
        self.pattern, self.layout = pattern, layout
        self.n_slots = (pattern.capacity() or 0) - pattern.pins
        rows = (2, layout.n_layers, layout.n_rows, layout.n_heads)
        self.ring = layout.zeros(*rows, self.n_slots)
        self.pins = layout.zeros(*rows, pattern.pins)
        self.positions = [[-1] * self.n_slots for _ in range(layout.n_rows)]
        self._pinned: list[list[HeldRun]] = [[] for _ in range(layout.n_rows)]
        self._n_pinned = [0] * layout.n_rows
        self._begin: list[int | None] = [None] * layout.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.ring.nbytes + self.pins.nbytes

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
        pinned = self._pins_among(batch, span)
        taken = self._n_pinned[row]
        n_pins = sum(count for _, count in pinned)
        if taken + n_pins > self.pattern.pins:
            raise PinsError(f"{taken + n_pins} tokens are pinned, and there is room for {self.pattern.pins}: pin fewer")
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

    def _pins_among(self, batch: Batch, span: Span) -> list[tuple[int, int]]:
        """(first, count) of each stretch of a span's tokens that are pins."""
        if not self.pattern.pins:
            return []
        if self.pattern.pin_by == "first":
            count = min(self.pattern.pins - span.position, len(span))
            return [(0, count)] if count > 0 else []
        if batch.pinned_T is None:
            return []
        return stretches(batch.pinned_T[span.start : span.stop].tolist())

    def write(self, layer: int, row: int, placement: Placement, keys_GT: Vectors, values_GT: Vectors) -> None:
        """Commit a step's keys and values of one layer to a row, as `layout.kept` gives them."""
        for token, run in placement:
            slots = self.ring if run.source == "ring" else self.pins
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                place = slots[kind, layer, row, :, run.start : run.start + run.size]
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

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run to compute with, [G, S, K] each: in place if they are kept as they are computed."""
        slots = (self.ring if run.source == "ring" else self.pins)[:, layer, row, :, run.start : run.stop]
        return slots[0].to(self.layout.dtype), slots[1].to(self.layout.dtype)

    def wipe(self, row: int) -> None:
        """Leave nothing of a row: neither keys and values, nor positions."""
        for slots in (self.ring, self.pins):
            slots[:, :, row].zero_()
        self.positions[row] = [-1] * self.n_slots
        self._pinned[row], self._n_pinned[row], self._begin[row] = [], 0, None

    def copy_row(self, row: int, other: RingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape."""
        self.ring[:, :, row].copy_(other.ring[:, :, other_row])
        self.pins[:, :, row].copy_(other.pins[:, :, other_row])
        self.positions[row] = list(other.positions[other_row])
        self._pinned[row] = list(other._pinned[other_row])
        self._n_pinned[row], self._begin[row] = other._n_pinned[other_row], other._begin[other_row]


class GrowingStore:
    """Blocks of the layers that share a pattern without a bound: slot i holds position i.

    Attributes:
        pattern: the layers' own.
        layout: what the slots are made of.
        blocks: of each row, [2 (keys, values), layers, G, S] vectors each.
    """

    def __init__(self, pattern: AttentionPattern, layout: Layout) -> None:
        self.pattern, self.layout = pattern, layout
        self.blocks: list[list[Vectors]] = [[] for _ in range(layout.n_rows)]
        self._starts: list[list[int]] = [[0] for _ in range(layout.n_rows)]
        self._global: list[list[Tensor]] = [[] for _ in range(layout.n_rows)]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(block.nbytes for blocks in self.blocks for block in blocks)

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
        layout = self.layout
        for size in block_sizes(length)[len(self.blocks[row]) :]:
            try:
                block = layout.zeros(2, layout.n_layers, layout.n_heads, size)
            except RuntimeError as error:
                raise DoesNotFitError(
                    f"no memory for the keys and values of {length} tokens: use --window N"
                ) from error
            self.blocks[row].append(block)
            starts.append(starts[-1] + size)
            if self.pattern.global_tokens:
                self._global[row].append(torch.zeros(size, dtype=torch.bool, device=layout.device))

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
            flags = self._global[row][run.block][: run.size] if self.pattern.global_tokens else False
            yield KeyRun("block", 0, run.size, block=run.block), TokenMeta(position=positions, is_global=flags)

    def place(self, batch: Batch, span: Span) -> Placement:
        """Where a span's tokens go: slot = position, in blocks that this makes."""
        end = span.position + len(span)
        self.reserve(span.row, end)
        puts = tuple(
            Put(span.start + run.first_position - span.position, run)
            for run in self._among(span.row, span.position, end)
        )
        if self.pattern.global_tokens:
            for token, run in puts:
                flags = False if batch.global_T is None else batch.global_T[token : token + run.size]
                self._global[span.row][run.block][run.start : run.start + run.size] = flags
        return puts

    def write(self, layer: int, row: int, placement: Placement, keys_GT: Vectors, values_GT: Vectors) -> None:
        """Commit a step's keys and values of one layer to a row, as `layout.kept` gives them."""
        for token, run in placement:
            for kind, new_GT in enumerate((keys_GT, values_GT)):
                place = self.blocks[row][run.block][kind, layer, :, run.start : run.start + run.size]
                place.copy_(new_GT[:, token : token + run.size])

    def mark(self, row: int, placement: Placement) -> None:
        """Nothing to note: slot i holds position i."""

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run to compute with, [G, S, K] each: in place if they are kept as they are computed."""
        slots = self.blocks[row][run.block][:, layer, :, run.start : run.stop]
        return slots[0].to(self.layout.dtype), slots[1].to(self.layout.dtype)

    def wipe(self, row: int) -> None:
        """Give a row's blocks back."""
        self.blocks[row].clear()
        self._starts[row] = [0]
        self._global[row].clear()

    def copy_row(self, row: int, other: GrowingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape."""
        self.blocks[row] = [block.clone() for block in other.blocks[other_row]]
        self._starts[row] = list(other._starts[other_row])
        self._global[row] = [flags.clone() for flags in other._global[other_row]]


Store = RingStore | GrowingStore
