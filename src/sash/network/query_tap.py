"""The queries that the last tokens of each sequence asked, kept from one step to the next.

Whoever brings something back ranks it by them. They are as they met the keys: rotated, and mixed where
the cache mixes keys. Tokens count as the last ones however they were cut into steps.

Shape suffixes: L layers, N tokens, H query heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sash.network.batch import Span


@dataclass(frozen=True, slots=True)
class _Kept:
    """Queries of a row's last tokens, [L, N, H, K]: the `count` last of them were asked before `end`."""

    queries_LNHK: Tensor
    count: int
    end: int


class QueryTap:
    """Queries of the layers of one store.

    Attributes:
        n_tokens: of how many last tokens of a row they are kept.
    """

    def __init__(self, n_layers: int, n_heads: int, head_dim: int, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self._shape = (n_layers, n_heads, head_dim)
        self._out: Tensor | None = None
        self._spans: Sequence[Span] = ()
        self._rows: dict[int, _Kept] = {}

    def open(self, spans: Sequence[Span], dtype: torch.dtype) -> Tensor:
        """Where a step's queries go, [L, spans, N, H, K]: those of the last token last. Layers fill it in."""
        if self._out is None or self._spans is not spans:
            n_layers, n_heads, head_dim = self._shape
            self._out = torch.empty(n_layers, len(spans), self.n_tokens, n_heads, head_dim, dtype=dtype)
            self._spans = spans
            for index, span in enumerate(spans):
                self._rows[span.row] = self._go_on(span, self._out[:, index])
        return self._out

    def _go_on(self, span: Span, out_LNHK: Tensor) -> _Kept:
        """Put what a row asked before a span to its front, as far as there is room."""
        old, room, count = self._rows.get(span.row), max(0, self.n_tokens - len(span)), min(self.n_tokens, len(span))
        end = span.position + len(span)
        if old is None or old.end != span.position or not room:
            return _Kept(out_LNHK, count, end)
        before = min(room, old.count)
        # Layer by layer: a larger copy wakes torch's threads, which then spin where the kernels' own want to run.
        for out_NHK, old_NHK in zip(out_LNHK, old.queries_LNHK, strict=True):
            out_NHK[room - before : room] = old_NHK[self.n_tokens - before :]
        return _Kept(out_LNHK, before + count, end)

    def take(self, layer: int, q_THK: Tensor) -> None:
        """Keep what one layer of the store asks in an open step."""
        if self._out is None:
            return
        for index, span in enumerate(self._spans):
            count = min(self.n_tokens, len(span))
            self._out[layer, index, self.n_tokens - count :] = q_THK[span.stop - count : span.stop]

    def of(self, row: int) -> Tensor | None:
        """What the last tokens of a row asked, [L, n, H, K]; None for nothing."""
        kept = self._rows.get(row)
        return None if kept is None else kept.queries_LNHK[:, self.n_tokens - kept.count :]

    def kept(self, row: int) -> object:
        """What there is of a row, for `put_back`."""
        return self._rows.get(row)

    def put_back(self, row: int, kept: object) -> None:
        """Have of a row what `kept` gave: later steps go on from there."""
        self._spans = ()
        if isinstance(kept, _Kept):
            self._rows[row] = kept
        else:
            self.wipe(row)

    def wipe(self, row: int) -> None:
        """Leave nothing of a row."""
        self._rows.pop(row, None)

    def copy_row(self, row: int, other: QueryTap, other_row: int) -> None:
        """Take over a row of another."""
        if other_row in other._rows:
            self._rows[row] = other._rows[other_row]
