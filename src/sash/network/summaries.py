"""Summaries of what left the windows: means of keys and values, kept in each layer's annex (`sash.network.annex`).

A summary's key is the mean of its tokens' keys as they were before rotation, turned to the middle of their positions;
its value is the mean of their values; and its weight is how many they are, whose logarithm is added to its score. That
is what attention over the tokens themselves would come to, if their keys were alike. Two summaries make one by their
weighted means, so nothing is kept of the tokens. A middle that is farther away than the layer was trained to see counts
as that far.

Summaries move when a row has read a multiple of the block, and never within a step: `Summaries.run` cuts steps there,
so that nothing depends on chunks. A block is summed up before its first token leaves the ring, out of the ring.

Shape suffixes: L layers, G key/value heads, S summaries, N tokens, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sash.kernels.activations import rotate as mix
from sash.network import rope
from sash.network.batch import Batch, Span
from sash.network.config import ModelConfig, RopeConfig
from sash.network.ring_store import RingStore
from sash.network.slots import Vectors


@dataclass(slots=True)
class RowSummaries:
    """The summaries of one row in one store, from the oldest on.

    Attributes:
        vectors: [2 (mean keys before rotation, mean values), L, G, S, K] float32; None before the first.
        counts: tokens of each.
        middles: mean position of the tokens of each.
        levels: doublings of each.
        end: the position up to which tokens are in one of them; pins are in none.
    """

    vectors: Tensor | None = None
    counts: list[int] = field(default_factory=list)
    middles: list[float] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    end: int = 0

    def copy(self) -> RowSummaries:
        """The same, to go its own way."""
        vectors = None if self.vectors is None else self.vectors.clone()
        return RowSummaries(vectors, list(self.counts), list(self.middles), list(self.levels), self.end)

    def append(self, vectors: Tensor, count: int, middle: float) -> None:
        """Add a summary, [2, L, G, K]."""
        one = vectors.unsqueeze(-2)
        self.vectors = one if self.vectors is None else torch.cat((self.vectors, one), -2)
        self.counts.append(count)
        self.middles.append(middle)

    def join(self, at: int) -> None:
        """Make one summary of two side by side."""
        if self.vectors is None:
            return
        n, more = self.counts[at : at + 2]
        both = (self.vectors[..., at, :] * n + self.vectors[..., at + 1, :] * more) / (n + more)
        self.vectors = torch.cat(
            (self.vectors[..., :at, :], both.unsqueeze(-2), self.vectors[..., at + 2 :, :]), -2
        )  # fmt: skip
        middle = (self.middles[at] * n + self.middles[at + 1] * more) / (n + more)
        self.counts[at : at + 2], self.middles[at : at + 2] = [n + more], [middle]


class Summaries:
    """The summaries of all rows of a cache."""

    def __init__(self, config: ModelConfig, stores: list[RingStore], mixing: int) -> None:
        """`stores` are those with an annex; `mixing` is the cache's."""
        if config.hierarchy is None:
            raise ValueError("this model has no hierarchy")
        self._hierarchy, self._stores, self._mixing, self._config = config.hierarchy, stores, mixing, config
        self._rows = [[RowSummaries() for _ in range(store.layout.n_rows)] for store in stores]
        self._smallest = min(store.pattern.window or 0 for store in stores)
        self._turns = [_turns(config, store) for store in stores]
        self._farthest = [_farthest(config, store) for store in stores]

    @property
    def nbytes(self) -> int:
        """Bytes of the means."""
        return sum(one.vectors.nbytes for rows in self._rows for one in rows if one.vectors is not None)

    def of(self, row: int) -> tuple[RowSummaries, ...]:
        """What a row has, of each store."""
        return tuple(rows[row] for rows in self._rows)

    def wipe(self, row: int) -> None:
        """Leave nothing of a row."""
        for rows in self._rows:
            rows[row] = RowSummaries()

    def copy_row(self, row: int, other: Summaries, other_row: int) -> None:
        """Take over a row of another cache of the same model."""
        for rows, others in zip(self._rows, other._rows, strict=True):
            rows[row] = others[other_row].copy()

    def beyond(self, row: int, position: int) -> bool:
        """Whether a row has summed up more than it had when it had read `position` tokens."""
        at = position // self._hierarchy.block * self._hierarchy.block
        pairs = zip(self._stores, self._rows, strict=True)
        return any(rows[row].end > self._hierarchy.end(at, store.pattern.window or 0) for store, rows in pairs)

    def run(self, batch: Batch, forward: Callable[[Batch], Tensor]) -> Tensor:
        """Hidden states of a step, [T, D], by as many forwards as it takes for summaries to move between them."""
        ends = [self._next(span) for span in batch.spans]
        if all(end >= span.stop for span, end in zip(batch.spans, ends, strict=True)):
            self._prepare(batch)
            return forward(batch)
        out_TD: Tensor | None = None
        left = list(batch.spans)
        while left:
            now = [Span(span.start, min(span.stop, self._next(span)), span.position, span.row) for span in left]
            part = batch.take(now)
            self._prepare(part)
            hidden_TD = forward(part)
            if out_TD is None:
                out_TD = hidden_TD.new_empty(len(batch.tokens_T), hidden_TD.shape[1])
            for span, inside in zip(now, part.spans, strict=True):
                out_TD[span.start : span.stop] = hidden_TD[inside.start : inside.stop]
            rests = zip(left, now, strict=True)
            left = [
                Span(done.stop, span.stop, span.position + len(done), span.row)
                for span, done in rests
                if done.stop < span.stop
            ]
        return batch.tokens_T if out_TD is None else out_TD

    def _next(self, span: Span) -> int:
        """The token of the step before which a span's summaries move next."""
        return span.start + self._hierarchy.next_stop(span.position, self._smallest) - span.position

    def _prepare(self, batch: Batch) -> None:
        for span in batch.spans:
            if span.position % self._hierarchy.block == 0:
                for index in range(len(self._stores)):
                    self._advance(index, span.row, span.position)

    @torch.inference_mode()
    def _advance(self, index: int, row: int, position: int) -> None:
        """Sum up the block that leaves the ring while a row goes on from `position`, and lay all out anew."""
        store, own = self._stores[index], self._rows[index][row]
        end = self._hierarchy.end(position, store.pattern.window or 0)
        if end <= own.end:
            return
        runs = [run for run in store.held(row, position, own.end) if run.source == "ring" and run.first_position < end]
        pieces, where = [], []
        for run in runs:
            size = min(run.size, end - run.first_position)
            slots = store.slots(row, "ring")[:, :, :, run.start : run.start + size]
            pieces.append(slots.to(torch.float32))
            where.append(torch.arange(run.first_position, run.first_position + size, device=store.layout.device))
        own.end = end
        if pieces:
            vectors, positions_N = torch.cat(pieces, -2), torch.cat(where)
            keys_LGNK = mix(vectors[0], self._mixing)
            keys_LGNK = self._turn(index, keys_LGNK, -positions_N.double(), back=True)
            means = torch.stack((keys_LGNK.mean(-2), vectors[1].mean(-2)))
            own.append(means, len(positions_N), float(positions_N.double().mean()))
            for at in self._hierarchy.merges(own.levels):
                own.join(at)
        if own.vectors is not None:
            self._show(index, row, position, own)

    def _show(self, index: int, row: int, position: int, own: RowSummaries) -> None:
        """Write the summaries of a row into its annex, for tokens from `position` up to the next move."""
        store = self._stores[index]
        if own.vectors is None or store.annex is None:
            return
        middles_S = torch.tensor(own.middles, dtype=torch.float64, device=store.layout.device)
        farthest = self._farthest[index]
        if farthest is not None:
            middles_S = middles_S.clamp_min(position - farthest)
        keys_LGSK = mix(self._turn(index, own.vectors[0], middles_S), self._mixing)
        kept = (_kept(store, keys_LGSK), _kept(store, own.vectors[1]))
        store.annex.fill(row, 0, *kept)
        store.annex.show(row, len(own.counts), torch.tensor(own.counts))

    def _turn(self, index: int, keys_LGNK: Tensor, positions_N: Tensor, *, back: bool = False) -> Tensor:
        """Rotate keys to positions, or `back`, which takes the factor of the rotation away, too."""
        _, n_heads, n_keys, dim = keys_LGNK.shape
        out = torch.empty_like(keys_LGNK)
        for config, layers in self._turns[index]:
            frequencies_F, factor = rope.frequencies(config, dim)
            cos_NF, sin_NF = rope.angles(
                frequencies_F, 1 / factor if back else factor, positions_N, torch.float32
            )  # fmt: skip
            flat_NHK = keys_LGNK[layers].flatten(0, 1).transpose(0, 1)
            turned_NHK = rope.rotate(flat_NHK, cos_NF, sin_NF, config.layout)
            out[layers] = turned_NHK.transpose(0, 1).view(len(layers), n_heads, n_keys, dim)
        return out


def _turns(config: ModelConfig, store: RingStore) -> list[tuple[RopeConfig, list[int]]]:
    """Which layers of a store are rotated how."""
    found: dict[RopeConfig, list[int]] = {}
    own = [layer for layer in config.layers if layer.pattern == store.pattern]
    for index, layer in enumerate(own):
        found.setdefault(layer.rope, []).append(index)
    return list(found.items())


def _farthest(config: ModelConfig, store: RingStore) -> int | None:
    """How far before the next token a middle may lie: as far as each layer was trained to see, or its window."""
    if config.hierarchy is None:
        return None
    windows = config.trained_windows or config.windows
    pairs = zip(config.layers, windows, strict=True)
    reaches = [
        window or config.context - config.hierarchy.block for layer, window in pairs if layer.pattern == store.pattern
    ]
    known = [reach for reach in reaches if reach > 0]
    return max(min(known), store.pattern.window or 0) if known else None


def _kept(store: RingStore, vectors: Tensor) -> Vectors:
    return Vectors.of(vectors, store.layout.numbers)
