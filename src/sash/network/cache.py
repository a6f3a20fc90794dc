"""The rolling buffer cache: position i of a sequence lives in slot i mod W (Mistral 7B, section 2, figure 2).

A windowed layer has exactly W slots a row, plus its pins', whatever the length of the sequence and of its chunks. A
layer without a bound grows by blocks, and a slot once written never moves. A row is one sequence's slots; rows are
wiped when they are released, so that what one sequence wrote another can never see.
"""

from __future__ import annotations

import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import DoesNotFitError, UsageError
from sash.kernels.activations import rotation_of
from sash.network.config import ModelConfig
from sash.network.drafts import Drafts
from sash.network.growing_store import GrowingStore
from sash.network.log import LogRoom
from sash.network.recall import Recall
from sash.network.recall_points import RecallSettings
from sash.network.ring_store import RingStore
from sash.network.sizing import kv_bytes, kv_numbers
from sash.network.slots import Layout
from sash.network.snapshot import RowState
from sash.network.stores import Store
from sash.network.summaries import Summaries


class KVCache:
    """Keys and values of up to `n_rows` sequences.

    Attributes:
        config: the model.
        n_rows: how many.
        dtype: what the network computes in.
        kv: what keys and values are kept as: "auto" (as they are computed), "bf16" or "int8".
        numbers: the type of the numbers kept.
        mixing: components of queries and keys that are mixed with each other before keys are kept as int8; 1 for none.
            A few components of keys are far larger than the others and would set the scale for all; a Hadamard
            transform spreads them, and leaves q.k as it is where both go through it
            (`sash.kernels.activations.rotate`).
        lengths: tokens read so far, a row.
        log: how much the logs may hold; None where none is kept.
        stores: of each pattern, the slots of its layers.
        drafts: guessed tokens that wait to be accepted.
        summaries: of what left the windows; None where the model has none.
        recall: what brings evicted blocks back; None for nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_rows: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kv: str = "auto",
        *,
        on_demand: bool = False,
        log: bool | int | LogRoom = False,
        recall: RecallSettings | None = None,
    ) -> None:
        """Make room for the rows.

        Args:
            config, n_rows, dtype, device, kv: see the attributes.
            on_demand: make the rings of a row when it is first used, and free them when it is wiped.
            log: keep what leaves the rings of windowed layers, in blocks on the host: all of it (True), as much as so
                many bytes hold, or what a room allows. Rows can then go back to any position that it has.
            recall: fill the annexes that the model's patterns have with what queries want of the log, which
                is then kept.

        Raises:
            UsageError: no rows, an encoder, or a budget that cannot be.
            DoesNotFitError: there is no memory for the rings.
        """
        if n_rows < 1:
            raise UsageError(f"a cache needs 1 row or more; got {n_rows}")
        self.config, self.n_rows, self.dtype, self.device, self.kv = config, n_rows, dtype, torch.device(device), kv
        self.numbers: torch.dtype = getattr(torch, kv_numbers(kv, str(dtype).removeprefix("torch.")))
        self.mixing = rotation_of(config.head_dim) if self.numbers == torch.int8 else 1
        self.lengths = [0] * n_rows
        self.log = _room(recall is not None if log is False else log)
        self._free = list(range(n_rows))
        self.stores: dict[AttentionPattern, Store] = {}
        self._layer_index: list[int] = []
        counts: dict[AttentionPattern, int] = {}
        for pattern in config.patterns:
            if not pattern.causal:
                raise UsageError("an encoder has no cache: it reads its whole input at once")
            self._layer_index.append(counts.get(pattern, 0))
            counts[pattern] = counts.get(pattern, 0) + 1
        self.drafts = Drafts(self.stores)
        for pattern, n_layers in counts.items():
            layout = Layout(
                n_layers, n_rows, config.n_kv_heads, config.head_dim, self.numbers, dtype, self.device
            )  # fmt: skip
            try:
                if pattern.capacity() is None:
                    self.stores[pattern] = GrowingStore(pattern, layout)
                else:
                    self.stores[pattern] = RingStore(pattern, layout, on_demand=on_demand, room=self.log)
            except RuntimeError as error:
                raise DoesNotFitError(f"no memory for {n_rows} rolling buffers: use fewer sequences at once") from error
        annexed = [store for store in self.stores.values() if isinstance(store, RingStore) and store.annex is not None]
        self.summaries = None if config.hierarchy is None else Summaries(config, annexed, self.mixing)
        stores = tuple(self.stores.values())
        if recall is not None and config.hierarchy is not None:
            raise UsageError("an annex holds what recall brings back or summaries, not both: use one of them")
        self.recall = None if recall is None else Recall(recall, stores, config, self.mixing)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held for attention, and of their scales; logs are not among them.

        A row of windowed layers takes 2 x layers x W x n_kv_heads x (head_dim x itemsize + 4 if they are int8).
        """
        summaries = 0 if self.summaries is None else self.summaries.nbytes
        return summaries + sum(store.nbytes for store in self.stores.values()) + self.drafts.nbytes

    @property
    def number_bytes(self) -> tuple[int, int]:
        """Bytes of one number, and of the scale of one key or value of a head."""
        return self.numbers.itemsize, 4 if self.numbers == torch.int8 else 0

    @property
    def rounds(self) -> bool:
        """Whether what is kept may differ from what was computed."""
        return self.numbers != self.dtype

    def bytes_of(self, length: int) -> int:
        """Bytes that the keys and values of one sequence of `length` tokens take."""
        return kv_bytes(self.config, length, *self.number_bytes)

    def layer_in_store(self, layer: int) -> int:
        """Which of its store's layers a layer of the network is."""
        return self._layer_index[layer]

    def allocate(self) -> int:
        """An empty row.

        Raises:
            DoesNotFitError: all rows are taken.
        """
        if not self._free:
            raise DoesNotFitError(f"all {self.n_rows} rows of the cache are taken: release one first")
        return self._free.pop(0)

    @property
    def n_free(self) -> int:
        """Rows that are not taken."""
        return len(self._free)

    def wipe(self, row: int) -> None:
        """Empty a row that stays taken: what it held is gone."""
        for store in self.stores.values():
            store.wipe(row)
        self.drafts.wipe(row)
        if self.summaries is not None:
            self.summaries.wipe(row)
        if self.recall is not None:
            self.recall.wipe(row)
        self.lengths[row] = 0

    def ask(self, row: int, end: int) -> None:
        """Take the last of a row's first `end` tokens for a question, where recall ranks more often.

        To be told before they are read: by whoever knows where a text ends, since steps may end anywhere.
        """
        if self.recall is not None:
            self.recall.ask(row, end)

    @torch.inference_mode()
    def accept(self, row: int, count: int = 1) -> None:
        """Commit the next `count` guessed tokens of a row, which then has read them.

        Raises:
            UsageError: no so many of them wait.
            PinsError, DoesNotFitError: as for a step that reads them.
        """
        self.drafts.accept(row, self.lengths[row], count)
        self.lengths[row] += count

    def release(self, row: int) -> None:
        """End a sequence: its row is wiped and free.

        Raises:
            UsageError: a row that is not taken.
        """
        if row in self._free or not 0 <= row < self.n_rows:
            raise UsageError(f"row {row} is not taken")
        self.wipe(row)
        self._free.append(row)

    def copy_row(self, row: int, other: KVCache, other_row: int) -> None:
        """Continue another cache's sequence in this row: a fork.

        Raises:
            UsageError: caches of two configurations, or that keep other numbers.
        """
        if other.config != self.config or (other.dtype, other.numbers) != (self.dtype, self.numbers):
            raise UsageError("a row can only be copied between caches of one model that keep the same numbers")
        for pattern, store in self.stores.items():
            store.copy_row(row, other.stores[pattern], other_row)  # type: ignore[arg-type]  # of one kind a pattern
        if self.summaries is not None and other.summaries is not None:
            self.summaries.copy_row(row, other.summaries, other_row)
        if self.recall is not None and other.recall is not None:
            self.recall.copy_row(row, other.recall, other_row)
        self.lengths[row] = other.lengths[other_row]

    def kinds(self) -> tuple[str, ...]:
        """What each store's slots are made of: rows can only be restored to where that is the same."""
        layouts = ((pattern, store.layout) for pattern, store in self.stores.items())
        return tuple(f"{pattern} {at.n_layers}x{at.n_heads}x{at.head_dim} {at.numbers}" for pattern, at in layouts)

    @torch.inference_mode()
    def capture(self, row: int) -> RowState:
        """What a row has read, as of now: blocks are shared with it; where it has no log, its rings are copied."""
        length = self.lengths[row]
        states = tuple(store.capture(row, length) for store in self.stores.values())
        return RowState(length, self.kinds(), states)

    @torch.inference_mode()
    def restore(self, row: int, state: RowState, length: int | None = None) -> None:
        """Go on in a row from where a state was captured, or from before; what the row held is gone.

        Args:
            row: a row that is taken.
            state: of a cache of the same kind; it stays as it is.
            length: tokens to have read: one of `state.positions()`, by default all.

        Raises:
            UsageError: a state of a cache of another kind, or a length that it does not cover.
        """
        length = state.length if length is None else length
        if self.summaries is not None:
            raise UsageError("a row with summaries cannot be gone on from elsewhere: read its text again")
        if not self._fits(state):
            raise UsageError("a row can only be restored to a cache of its own model that keeps the same numbers")
        if not state.covers(length):
            known = state.positions()
            raise UsageError(
                f"a state of {state.length} tokens can be gone on from after {known.start} to {known[-1]} tokens;"
                f" not after {length}"
            )
        if self.lengths[row]:
            self.wipe(row)
        for store, held in zip(self.stores.values(), state.states, strict=True):
            store.restore(row, held, length)
        if self.recall is not None:
            self.recall.restored(row)
        self.lengths[row] = length

    def rewind(self, row: int, length: int) -> None:
        """Take a row back to where it had read `length` tokens: what it read afterwards is forgotten.

        A log has to hold the tokens that a next one sees, as many as the window less one; without a log only texts that
        have not left the window, and the last token, can be taken back.

        Raises:
            UsageError: the row was never there, or what it saw there is gone.
        """
        if length != self.lengths[row]:
            self.restore(row, self.capture(row), length)

    def _fits(self, state: RowState) -> bool:
        return self.kinds() == state.kinds and all(
            store.fits(held, state.length) for store, held in zip(self.stores.values(), state.states, strict=False)
        )


def _room(log: bool | int | LogRoom) -> LogRoom | None:
    if isinstance(log, LogRoom):
        return log
    if isinstance(log, bool):
        return LogRoom() if log else None
    return LogRoom(log)
