"""Bringing back what slid out of the window: between steps, the blocks that the last queries want most.

Behind each ring lies the log of all tokens. Every few tokens the keys in it are ranked, in each layer and for each
key/value head, by what the last tokens asked there: a block of a few tokens is worth what its best key would
have got of the attention to all that is out of sight, for the query that wants it most. The best blocks that the annex
has room for are copied into it, with their true positions, so that the next tokens attend to them as if they were still
in the window; no farther away, though, than the layer was trained to see (`sash.network.clamped_keys`). What is there
already and wanted again stays where it is.

Where a text is ranked follows from positions alone, and from where its question begins (`sash.network.recall_points`),
never from how it is cut into steps: so what a row reads depends neither on its company nor on chunks.

What is done in each store of layers is `sash.network.recall_part`.

Shape suffixes: T tokens of a step, D model dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.network.batch import Batch, Span
from sash.network.config import ModelConfig
from sash.network.drafts import Drafts
from sash.network.recall_part import RecallPart
from sash.network.recall_points import Points, RecallSettings
from sash.network.ring_store import RingStore
from sash.network.stores import Store


def recalling(
    config: ModelConfig, settings: RecallSettings, budget: int | None = None, layers: Collection[int] | None = None
) -> ModelConfig:
    """A model with annexes for what is brought back, and with its beginning pinned where windows were forced on it.

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
    changed = []
    for at, layer in enumerate(config.layers):
        pattern, annex = layer.pattern, 0
        if at in forced or at in chosen:
            window = pattern.window or 0
            if not pattern.pins and not pattern.global_tokens and settings.block <= window:
                pattern = replace(pattern, pins=settings.block, pin_by="first")
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
        return self._points_of(span.row).sizes(span.position, len(span))

    def cuts(self, batch: Batch) -> bool:
        """Whether a step has to be read in pieces."""
        return any(not span.drafted and (len(self.sizes(span)) > 1 or self.rehearses(span)) for span in batch.spans)

    def rehearses(self, span: Span) -> bool:
        """Whether a span is a token that is read twice."""
        if len(span) > 1 or span.drafted or not self._points_of(span.row).rehearsed(span.position):
            return False
        return any(part.has_lost(span.position) for part in self._parts)

    def rehearse(self, run: Callable[[Batch], object], batch: Batch, drafts: Drafts) -> None:
        """Fill annexes by what those tokens of a step ask that are read twice; they are still to be read.

        Their keys and values wait where those of guesses do, and are forgotten.
        """
        spans = [span for span in batch.spans if self.rehearses(span)]
        if not spans:
            return
        index_T = torch.tensor([span.start for span in spans], device=batch.tokens_T.device)
        alone = tuple(replace(span, start=at, stop=at + 1, drafted=True) for at, span in enumerate(spans))
        before = [[part.tap.kept(span.row) for span in spans] for part in self._parts]
        run(Batch(batch.tokens_T[index_T], batch.positions_T[index_T], alone))
        for part, kept in zip(self._parts, before, strict=True):
            for span, own in zip(spans, kept, strict=True):
                part.refresh(span.row, span.position)
                part.tap.put_back(span.row, own)
        for span in spans:
            drafts.wipe(span.row)

    def after(self, spans: Sequence[Span], lengths: Sequence[int]) -> None:
        """After a step: fill the annexes of the rows that are to be ranked there."""
        for span in spans:
            row, length = span.row, lengths[span.row]
            if span.drafted or not (row in self._stale or self._points_of(row).due(length)):
                continue  # what is guessed may be taken back
            self._stale.discard(row)
            self._before[row] = length, [part.tags(row) for part in self._parts]
            for part in self._parts:
                part.refresh(row, length)

    def shown(self, row: int, query: int, length: int) -> list[list[range]] | None:
        """Of each layer of the model, what a row of `length` tokens has brought back for the token at `query`.

        A run is shown to one head or more. None where the row was ranked again since that token was read, or ranked
        twice, where that was its last one; and where it is still to be read and asks for itself before that.
        """
        ranked, tags = self._before.get(row, (-1, []))
        if ranked != length or query != length - 1:
            points = self._points_of(row)
            rehearsed = points.rehearsed(query) and any(part.has_lost(query) for part in self._parts)
            if rehearsed or not 0 <= query <= length or points.after(query) <= length:
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
            part.tap.wipe(row)

    def restored(self, row: int) -> None:
        """A row goes on from where nothing was kept of what is brought back: it is ranked after its next step."""
        self._stale.add(row)
        self._before.pop(row, None)

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
            own.tap.copy_row(row, theirs.tap, other_row)

    def _points_of(self, row: int) -> Points:
        return self._points.get(row) or self._reading


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


def read_in_pieces(run: Callable[[Batch], Tensor], batch: Batch, recall: Recall, drafts: Drafts, dim: int) -> Tensor:
    """What `run` makes of a step, [T, D], a piece at a time."""
    out_TD: Tensor | None = None
    for piece, index_T in pieces_of(batch, recall):
        recall.rehearse(run, piece, drafts)
        part_TD = run(piece)
        out_TD = part_TD.new_empty(len(batch.tokens_T), dim) if out_TD is None else out_TD
        out_TD[index_T] = part_TD
    if out_TD is None:
        raise UsageError("a step needs at least one token")
    return out_TD
