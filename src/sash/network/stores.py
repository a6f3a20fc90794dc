"""Where keys and values lie: rings of W slots for windows, growing blocks for layers without a bound.

Slots store absolute positions, -1 for empty, so attention neither unrolls nor trims anything. Layers of one pattern
share a store: their keys and values lie apart, their positions are one.

Shape suffixes: T tokens, R rows, G key/value heads, S slots, P pin slots, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import KeyRun
from sash.errors import DoesNotFitError, PinsError
from sash.network.config import ModelConfig
from sash.network.sizing import block_sizes

Placement = tuple[Tensor, Tensor, Tensor, Tensor]


class RingStore:
    """Rings and pins of the layers that share a windowed pattern."""

    def __init__(
        self,
        pattern: AttentionPattern,
        n_layers: int,
        n_rows: int,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pattern = pattern
        self.n_slots = (pattern.capacity() or 0) - pattern.pins
        heads, dim = config.n_kv_heads, config.head_dim
        self.ring = torch.zeros(2, n_layers, n_rows, heads, self.n_slots, dim, dtype=dtype, device=device)
        self.pins = torch.zeros(2, n_layers, n_rows, heads, pattern.pins, dim, dtype=dtype, device=device)
        self.position_RS = torch.full((n_rows, self.n_slots), -1, dtype=torch.int64, device=device)
        self.pin_position_RP = torch.full((n_rows, pattern.pins), -1, dtype=torch.int64, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.ring.nbytes + self.pins.nbytes

    def last_pin(self, row: int) -> int:
        """Position of the row's last pin; -1 without one."""
        return int(self.pin_position_RP[row].max()) if self.pattern.pins else -1

    def runs(self, row: int, length: int, oldest: int) -> Iterator[tuple[KeyRun, TokenMeta]]:
        """The slots that hold positions oldest..length-1 of a row, as one or two runs, then its pins.

        With 4 slots, positions 3..5 lie in slot 3 and in slots 0..1.
        """
        oldest = max(oldest, length - self.n_slots, 0)
        if oldest < length:
            first, last = oldest % self.n_slots, (length - 1) % self.n_slots
            slices = [(first, last + 1)] if first <= last else [(first, self.n_slots), (0, last + 1)]
            for start, stop in slices:
                yield KeyRun("ring", start, stop), TokenMeta(position=self.position_RS[row, start:stop])
        n_pins = int((self.pin_position_RP[row] >= 0).sum()) if self.pattern.pins else 0
        if n_pins:
            meta = TokenMeta(position=self.pin_position_RP[row, :n_pins], pinned=True)
            yield KeyRun("pins", 0, n_pins, clamped=True), meta

    def place(self, row: int, meta: TokenMeta, offset: int) -> Placement:
        """Where a span's tokens go: (tokens for the ring, their slots, tokens for the pins, their slots).

        Tokens are numbered within the step, the span beginning at `offset`. Only the newest tokens that the ring can
        hold are written. Pins never enter the ring.

        Raises:
            PinsError: more tokens are flagged than the pattern has pins.
        """
        position_T = meta.position
        pin_T = self.pattern.is_pin(meta)
        pinned = torch.nonzero(pin_T).flatten()
        rolling = torch.nonzero(~pin_T & (position_T > position_T[-1] - self.n_slots)).flatten()
        taken = int((self.pin_position_RP[row] >= 0).sum())
        if taken + pinned.numel() > self.pattern.pins:
            raise PinsError(
                f"{taken + pinned.numel()} tokens are pinned, and there is room for {self.pattern.pins}: pin fewer"
            )
        pin_slots = torch.arange(taken, taken + pinned.numel(), device=position_T.device)
        return rolling + offset, position_T[rolling] % self.n_slots, pinned + offset, pin_slots

    def write(self, layer: int, row: int, placement: Placement, k_GTK: Tensor, v_GTK: Tensor) -> None:
        """Commit a step's keys and values of one layer to a row."""
        rolling, slots, pinned, pin_slots = placement
        for kind, new_GTK in enumerate((k_GTK, v_GTK)):
            if rolling.numel() == 1:
                self.ring[kind, layer, row][:, int(slots)] = new_GTK[:, int(rolling)]
            elif rolling.numel():
                self.ring[kind, layer, row].index_copy_(1, slots, new_GTK[:, rolling])
            if pinned.numel():
                self.pins[kind, layer, row].index_copy_(1, pin_slots, new_GTK[:, pinned])

    def mark(self, row: int, placement: Placement, positions_T: Tensor) -> None:
        """Note which positions a row's slots now hold."""
        rolling, slots, pinned, pin_slots = placement
        self.position_RS[row, slots] = positions_T[rolling]
        self.pin_position_RP[row, pin_slots] = positions_T[pinned]

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run, [G, S, K] each, in place."""
        slots = self.ring if run.source == "ring" else self.pins
        return slots[0, layer, row, :, run.start : run.stop], slots[1, layer, row, :, run.start : run.stop]

    def wipe(self, row: int) -> None:
        """Leave nothing of a row: neither keys and values, nor positions."""
        for tensor in (self.ring, self.pins):
            tensor[:, :, row] = 0
        self.position_RS[row] = -1
        self.pin_position_RP[row] = -1

    def copy_row(self, row: int, other: RingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape."""
        self.ring[:, :, row] = other.ring[:, :, other_row]
        self.pins[:, :, row] = other.pins[:, :, other_row]
        self.position_RS[row] = other.position_RS[other_row]
        self.pin_position_RP[row] = other.pin_position_RP[other_row]


class GrowingStore:
    """Blocks of the layers that share a pattern without a bound: slot i holds position i."""

    def __init__(
        self,
        pattern: AttentionPattern,
        n_layers: int,
        n_rows: int,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pattern = pattern
        self._shape = (2, n_layers, config.n_kv_heads)
        self._head_dim = config.head_dim
        self._dtype, self._device = dtype, device
        self._blocks: list[list[Tensor]] = [[] for _ in range(n_rows)]
        self._global: list[list[Tensor]] = [[] for _ in range(n_rows)]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(block.nbytes for blocks in self._blocks for block in blocks)

    def last_pin(self, row: int) -> int:
        """Nothing slides out of this store, so nothing is pinned: -1."""
        return -1

    def reserve(self, row: int, length: int) -> None:
        """Hold at least `length` slots. What is there stays where it is.

        Raises:
            DoesNotFitError: there is no memory for another block.
        """
        for size in block_sizes(length)[len(self._blocks[row]) :]:
            try:
                block = torch.zeros(*self._shape, size, self._head_dim, dtype=self._dtype, device=self._device)
            except RuntimeError as error:
                raise DoesNotFitError(
                    f"no memory for the keys and values of {length} tokens: use --window N"
                ) from error
            self._blocks[row].append(block)
            self._global[row].append(torch.zeros(size, dtype=torch.bool, device=self._device))

    def _bounds(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(block, its first position, its last position + 1) of each block of a row."""
        start = 0
        for index, block in enumerate(self._blocks[row]):
            yield index, start, start + block.shape[3]
            start += block.shape[3]

    def runs(self, row: int, length: int, oldest: int) -> Iterator[tuple[KeyRun, TokenMeta]]:
        """The blocks that hold positions 0..length-1 of a row; `oldest` is for windows, which lie elsewhere."""
        for index, first, end in self._bounds(row):
            filled = min(length, end) - first
            if filled > 0:
                positions = torch.arange(first, first + filled, device=self._device)
                meta = TokenMeta(position=positions, is_global=self._global[row][index][:filled])
                yield KeyRun("block", 0, filled, block=index), meta

    def place(self, row: int, meta: TokenMeta, offset: int) -> Placement:
        """Where a span's tokens go: slot = position. The last two of the four are empty: there are no pins."""
        self.reserve(row, int(meta.position[-1]) + 1)
        if self.pattern.global_tokens:
            for index, first, end in self._bounds(row):
                inside = (meta.position >= first) & (meta.position < end)
                self._global[row][index][meta.position[inside] - first] = meta.is_global[inside]
        none = torch.empty(0, dtype=torch.int64, device=self._device)
        return torch.arange(offset, offset + meta.position.shape[0]), meta.position, none, none

    def write(self, layer: int, row: int, placement: Placement, k_GTK: Tensor, v_GTK: Tensor) -> None:
        """Commit a step's keys and values of one layer to a row."""
        token, position = int(placement[0][0]), int(placement[1][0])
        stop = token + placement[0].numel()
        for index, first, end in self._bounds(row):
            take = min(stop - token, end - position)
            if take > 0 and position >= first:
                inside = slice(position - first, position - first + take)
                self._blocks[row][index][0, layer, :, inside] = k_GTK[:, token : token + take]
                self._blocks[row][index][1, layer, :, inside] = v_GTK[:, token : token + take]
                token, position = token + take, position + take

    def mark(self, row: int, placement: Placement, positions_T: Tensor) -> None:
        """Nothing to note: slot i holds position i."""

    def view(self, layer: int, row: int, run: KeyRun) -> tuple[Tensor, Tensor]:
        """Keys and values of a run, [G, S, K] each, in place."""
        block = self._blocks[row][run.block]
        return block[0, layer, :, run.start : run.stop], block[1, layer, :, run.start : run.stop]

    def wipe(self, row: int) -> None:
        """Give a row's blocks back."""
        self._blocks[row].clear()
        self._global[row].clear()

    def copy_row(self, row: int, other: GrowingStore, other_row: int) -> None:
        """Take over a row of another store of the same shape."""
        self._blocks[row] = [block.clone() for block in other._blocks[other_row]]
        self._global[row] = [flags.clone() for flags in other._global[other_row]]


Store = RingStore | GrowingStore
