"""The rolling buffer cache: position i of a sequence lives in slot i mod W (Mistral 7B, section 2, figure 2).

A windowed layer has exactly W slots a row, plus its pins', whatever the length of the sequence and of its chunks. A
layer without a bound grows by blocks, and a slot once written never moves. A row is one sequence's slots; rows are
wiped when they are released, so that what one sequence wrote another can never see.
"""

from __future__ import annotations

import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import DoesNotFitError, UsageError
from sash.network.config import ModelConfig
from sash.network.stores import GrowingStore, RingStore, Store


class KVCache:
    """Keys and values of up to `n_rows` sequences.

    Attributes:
        lengths: tokens read so far, a row.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_rows: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if n_rows < 1:
            raise UsageError(f"a cache needs 1 row or more; got {n_rows}")
        self.config, self.n_rows, self.dtype, self.device = config, n_rows, dtype, torch.device(device)
        self.lengths = [0] * n_rows
        self._free = list(range(n_rows))
        self.stores: dict[AttentionPattern, Store] = {}
        self._layer_index: list[int] = []
        counts: dict[AttentionPattern, int] = {}
        for pattern in config.patterns:
            if not pattern.causal:
                raise UsageError("an encoder has no cache: it reads its whole input at once")
            self._layer_index.append(counts.get(pattern, 0))
            counts[pattern] = counts.get(pattern, 0) + 1
        for pattern, n_layers in counts.items():
            kind = GrowingStore if pattern.capacity() is None else RingStore
            try:
                self.stores[pattern] = kind(pattern, n_layers, n_rows, config, dtype, self.device)
            except RuntimeError as error:
                raise DoesNotFitError(f"no memory for {n_rows} rolling buffers: use fewer sequences at once") from error

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held.

        A row of windowed layers takes 2 x layers x W x n_kv_heads x head_dim x itemsize.
        """
        return sum(store.nbytes for store in self.stores.values())

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
        self.lengths[row] = 0

    def release(self, row: int) -> None:
        """End a sequence: its row is wiped and free."""
        if row in self._free or not 0 <= row < self.n_rows:
            raise UsageError(f"row {row} is not taken")
        self.wipe(row)
        self._free.append(row)

    def copy_row(self, row: int, other: KVCache, other_row: int) -> None:
        """Continue another cache's sequence in this row (a fork); the caches' configs must be equal."""
        if other.config != self.config or other.dtype != self.dtype:
            raise UsageError("a row can only be copied between caches of one model")
        for pattern, store in self.stores.items():
            store.copy_row(row, other.stores[pattern], other_row)  # type: ignore[arg-type]
        self.lengths[row] = other.lengths[other_row]
