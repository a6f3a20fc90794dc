"""The queries that the last tokens of each sequence asked, kept from one step to the next.

Whoever brings something back between steps ranks it by them. They are as they met the keys: rotated, and mixed where
the cache mixes keys.

Shape suffixes: L layers, N tokens, H query heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sash.network.batch import Span


class QueryTap:
    """Queries of the layers of one store.

    Attributes:
        n_tokens: of how many last tokens of a span they are kept.
    """

    def __init__(self, n_layers: int, n_heads: int, head_dim: int, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self._shape = (n_layers, n_heads, head_dim)
        self._out: Tensor | None = None
        self._spans: Sequence[Span] = ()
        self._rows: dict[int, tuple[int, int]] = {}

    def open(self, spans: Sequence[Span], dtype: torch.dtype) -> Tensor:
        """Where a step's queries go, [L, spans, N, H, K]: those of the last token last. Layers fill it in."""
        if self._out is None or self._spans is not spans:
            n_layers, n_heads, head_dim = self._shape
            self._out = torch.empty(n_layers, len(spans), self.n_tokens, n_heads, head_dim, dtype=dtype)
            self._spans = spans
            self._rows = {span.row: (index, min(self.n_tokens, len(span))) for index, span in enumerate(spans)}
        return self._out

    def take(self, layer: int, q_THK: Tensor) -> None:
        """Keep what one layer of the store asks in an open step."""
        if self._out is None:
            return
        for index, span in enumerate(self._spans):
            count = min(self.n_tokens, len(span))
            self._out[layer, index, self.n_tokens - count :] = q_THK[span.stop - count : span.stop]

    def of(self, row: int) -> Tensor | None:
        """What the last tokens of a row asked in the last step that it took part in, [L, n, H, K]; None for nothing."""
        if self._out is None or row not in self._rows:
            return None
        index, count = self._rows[row]
        return self._out[:, index, self.n_tokens - count :]
