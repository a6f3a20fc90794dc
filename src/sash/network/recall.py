"""Bringing back what slid out of the window: the blocks that queries want most.

Behind each ring lies the log of all tokens. The keys in it are ranked, in each layer and for each key/value head, by
what is asked there: a block of a few tokens is worth what its best key would have got of the attention to all that is
out of sight, for the query that wants it most. The best blocks that the annex has room for are copied into it, with
their true positions, so that what follows attends to them as if they were still in the window; no farther away, though,
than the layer was trained to see (`sash.network.clamped_keys`). What is there already and wanted again stays.

A text is ranked between two steps, every so many tokens, by what its last ones asked. A token of its question or of
the answer ranks for itself, in each layer before it attends there: it alone knows what it looks for, and what it
finds in one layer decides what it asks in the next. Where that is follows from positions alone, and from where the
question begins (`sash.network.recall_points`), never from how a text is cut into steps: so what a row reads depends
neither on its company nor on chunks.

What is done in each store of layers is `sash.network.recall_part`.

Shape suffixes: T tokens of a step, D model dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.network.batch import Batch, Span
from sash.network.config import ModelConfig
from sash.network.recall_part import RecallPart
from sash.network.recall_points import Points, RecallSettings
from sash.network.ring_store import RingStore
from sash.network.stores import Store


def recalling(
    config: ModelConfig, settings: RecallSettings, budget: int | None = None, layers: Collection[int] | None = None
) -> ModelConfig:
    """A model with annexes for what is brought back, and with its beginning pinned where windows were forced on it.

    Such pins are met at their true distances, as what is brought back is.

    Args:
        config: the model.
        settings: blocks are as large as these say.
        budget: slots of each annex; by default what window and pins leave of twice the window, in whole blocks.
        layers: which layers recall; by default those whose window was forced on them, or all with a window.

    Raises:
        UsageError: no such layers, or no room for a block.
    """
    windowed = [at for at, pattern in enumerate(config.patterns) if pattern.window and pattern.causal]
    forced = [at for at in windowed if config.patterns[at].window == config.forced_window] or windowed
    chosen = set(forced if layers is None else layers)
    if not chosen or not chosen <= set(windowed):
        raise UsageError("only layers with a window lose anything that could be brought back: add --window N")
    changed, trained = [], config.trained_windows or config.windows
    for at, layer in enumerate(config.layers):
        pattern, annex = layer.pattern, 0
        if at in forced or at in chosen:
            window = pattern.window or 0
            if not pattern.pins and not pattern.global_tokens and settings.block <= window:
                pattern = replace(pattern, pins=settings.block, pin_by="first")
            farthest = trained[at] or config.context  # true distances up to there, as of what is brought back
            if pattern.pins and not pattern.global_tokens and farthest > window + pattern.pins:
                pattern = replace(pattern, pin_reach=farthest - pattern.pins)
            annex = (window - pattern.pins if budget is None else budget) // settings.block * settings.block
            if at in chosen and annex < settings.block:
                raise UsageError(f"a block of {settings.block} tokens does not fit the slots that recall may take")
        changed.append(replace(layer, pattern=replace(pattern, annex=annex if at in chosen else 0)))
    return replace(config, layers=tuple(changed))


class Recall:
    """What is brought back to the rows of a cache."""

    def __init__(self, settings: RecallSettings, stores: Sequence[Store], config: ModelConfig, mixing: int) -> None:
        self.settings, self._reading, self._patterns = settings, Points(settings), config.patterns
        self._parts = [
            RecallPart(store, settings, config, mixing)
            for store in stores
            if isinstance(store, RingStore) and store.annex is not None
        ]
        if not self._parts:
            raise UsageError("nothing can be brought back: no layer has a window and an annex")
        self._points: dict[int, Points] = {}
        self._stale: set[int] = set()
        self._before: dict[int, tuple[int, list[Tensor | None]]] = {}

    def ask(self, row: int, end: int) -> None:
        """Take the last of a row's first `end` tokens for a question; to be told before they are read."""
        self._points[row] = Points(self.settings, max(0, end - self.settings.question))

    def sizes(self, span: Span) -> list[int]:
        """How many tokens of a span are read at a time."""
        if not self._has_lost(span.position + len(span) - 1):
            return [len(span)]
        return self._points_of(span.row).sizes(span.position, len(span))

    def cuts(self, batch: Batch) -> bool:
        """Whether a step has to be read in pieces."""
        return any(not span.drafted and len(self.sizes(span)) > 1 for span in batch.spans)

    def before(self, spans: Sequence[Span]) -> None:
        """Before a step: make ready what those of its tokens look up that rank for themselves."""
        for span in spans:
            if self._asks(span):
                ranks_all = self._points_of(span.row).ranks_all(span.position)
                for part in self._parts:
                    part.open(span.row, span.position, ranks_all=ranks_all)

    def look(self, store: Store, layer: int, spans: Sequence[Span]) -> None:
        """In one layer of a store, before its tokens attend: bring back what they want, by the queries in its tap."""
        for part in self._parts:
            for span in spans if part.store is store else ():
                if self._asks(span):
                    part.look(span.row, layer)

    def add_to(self, plan: Any, store: Store, span: Span) -> None:
        """Tell a native plan what its last span, in layers of a store, looks up."""
        for part in self._parts:
            if part.store is store and self._asks(span):
                part.add_to(plan, span.row)

    def after(self, spans: Sequence[Span], lengths: Sequence[int]) -> None:
        """After a step: fill the annexes of the rows that are to be ranked there."""
        for span in spans:
            row, length = span.row, lengths[span.row]
            points = self._points_of(row)
            if span.drafted or not (row in self._stale or points.due(length)):
                continue  # what is guessed may be taken back
            self._stale.discard(row)
            if points.asks(span.position):
                continue
            self._before[row] = length, [part.tags(row) for part in self._parts]
            for part in self._parts:
                part.refresh(row, length)

    def shown(self, row: int, query: int, length: int) -> list[list[range]] | None:
        """Of each layer of the model, what a row of `length` tokens has brought back for the token at `query`.

        A run is shown to one head or more. None where something else was brought back since that token was read, twice
        where that was its last one; and where it is still to be read and ranks for itself then.
        """
        ranked, tags = self._before.get(row, (-1, []))
        points = self._points_of(row)
        if points.asks(query) or ranked != length or query != length - 1:
            read = query < length if points.asks(query) and self._has_lost(query) else query <= length
            if query < 0 or not read or points.changes(query) <= length:
                return None
            tags = [part.tags(row) for part in self._parts]
        found: list[list[range]] = [[] for _ in self._patterns]
        for part, held in zip(self._parts, tags, strict=True):
            own = [index for index, pattern in enumerate(self._patterns) if pattern == part.pattern]
            for index, runs in zip(own, part.runs(held), strict=True):
                found[index] = runs
        return found

    def wipe(self, row: int) -> None:
        """Leave nothing of a row."""
        self._points.pop(row, None)
        self._before.pop(row, None)
        self._stale.discard(row)
        for part in self._parts:
            part.wipe(row)

    def restored(self, row: int) -> None:
        """A row goes on from where nothing was kept of what is brought back: it is ranked with its next step."""
        self._stale.add(row)
        self._before.pop(row, None)
        for part in self._parts:
            part.forget(row)

    def copy_row(self, row: int, other: Recall, other_row: int) -> None:
        """Take over a row of another cache's."""
        self.wipe(row)
        if other_row in other._points:
            self._points[row] = other._points[other_row]
        if other_row in other._before:
            self._before[row] = other._before[other_row]
        if other_row in other._stale:
            self._stale.add(row)
        for own, theirs in zip(self._parts, other._parts, strict=True):
            own.copy_row(row, theirs, other_row)

    def _points_of(self, row: int) -> Points:
        return self._points.get(row) or self._reading

    def _has_lost(self, position: int) -> bool:
        return any(part.has_lost(position) for part in self._parts)

    def _asks(self, span: Span) -> bool:
        """Whether a span is a token that ranks for itself."""
        return len(span) == 1 and not span.drafted and self._points_of(span.row).asks(span.position)


def pieces_of(batch: Batch, recall: Recall) -> Iterator[tuple[Batch, Tensor]]:
    """A step in parts that let what is brought back be ranked between them: each with the tokens that it has of it."""
    cuts = [[len(span)] if span.drafted else recall.sizes(span) for span in batch.spans]
    done = [0] * len(cuts)
    for turn in range(max(len(sizes) for sizes in cuts)):
        spans: list[Span] = []
        index: list[Tensor] = []
        start = 0
        for at, (span, sizes) in enumerate(zip(batch.spans, cuts, strict=True)):
            if turn >= len(sizes):
                continue
            first, count = span.start + done[at], sizes[turn]
            spans.append(replace(span, start=start, stop=start + count, position=span.position + done[at]))
            index.append(torch.arange(first, first + count, device=batch.tokens_T.device))
            start += count
            done[at] += count
        yield batch_at(batch, torch.cat(index), tuple(spans)), torch.cat(index)


def batch_at(batch: Batch, index_T: Tensor, spans: tuple[Span, ...]) -> Batch:
    """Those tokens of a step, as the spans tell."""

    def flags(of: Tensor | None) -> Tensor | None:
        return None if of is None else of[index_T]

    return Batch(
        batch.tokens_T[index_T], batch.positions_T[index_T], spans, flags(batch.pinned_T), flags(batch.global_T)
    )


def read_in_pieces(run: Callable[[Batch], Tensor], batch: Batch, recall: Recall, dim: int) -> Tensor:
    """What `run` makes of a step, [T, D], a piece at a time."""
    out_TD: Tensor | None = None
    for piece, index_T in pieces_of(batch, recall):
        part_TD = run(piece)
        out_TD = part_TD.new_empty(len(batch.tokens_T), dim) if out_TD is None else out_TD
        out_TD[index_T] = part_TD
    if out_TD is None:
        raise UsageError("a step needs at least one token")
    return out_TD
