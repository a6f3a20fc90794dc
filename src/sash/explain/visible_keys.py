"""Which keys a whole set of queries sees: the predicate of `attention.pattern`, on spans instead of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sash.attention.pattern import AttentionPattern
from sash.explain.spans import Spans
from sash.network.config import ModelConfig
from sash.network.hierarchy import Hierarchy


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What annexes show beside windows and pins.

    Attributes:
        hierarchy: how layers with an annex sum up what left their window; None for not at all. Which tokens are in a
            summary follows from the position alone.
        recalled: of each layer, from the input up, the positions that it has brought back for the last token, for one
            head of it or more; nothing where that is not known. It is known only while the model runs.
        recalls: whether there is something to be known.
    """

    hierarchy: Hierarchy | None = None
    recalled: Sequence[Spans] = ()
    recalls: bool = False

    @staticmethod
    def of(config: ModelConfig, recalled: Sequence[Sequence[range]] | None = None) -> Beside:
        """Of a model, and of what each of its layers has brought back, where that is known."""
        return Beside(
            hierarchy=config.hierarchy,
            recalled=[Spans.of((run.start, run.stop) for run in runs) for runs in recalled or ()],
            recalls=config.n_annex > 0 and config.hierarchy is None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagged:
    """A sequence.

    Attributes:
        n: its tokens.
        pinned: positions flagged to stay.
        is_global: positions flagged global.
        hierarchy: how layers with an annex sum up what left their window; None for not at all.
    """

    n: int
    pinned: Spans
    is_global: Spans
    hierarchy: Hierarchy | None = None

    def window_keys(self, pattern: AttentionPattern, queries: Spans) -> Spans:
        """Keys that the window alone shows to any of `queries`."""
        last = queries.last
        if last is None:
            return queries
        if pattern.window is None:
            return Spans.of([(0, last + 1 if pattern.causal else self.n)])
        steps = pattern.window - 1 if pattern.causal else pattern.window // 2
        keys = queries.smeared(steps, -pattern.dilation)
        if not pattern.causal:
            keys = keys | queries.smeared(steps, pattern.dilation)
        return keys.within(0, self.n)

    def pin_keys(self, pattern: AttentionPattern, queries: Spans) -> Spans:
        """Keys that any of `queries` sees because they are pinned."""
        pins = self.pinned if pattern.pin_by == "flag" else Spans.of([(0, pattern.pins)])
        return pins.within(0, 1 + (-1 if queries.last is None else queries.last)) if pattern.pins else Spans()

    def global_keys(self, pattern: AttentionPattern, queries: Spans) -> Spans:
        """Keys that any of `queries` sees because one of the two is global."""
        if not pattern.global_tokens or queries.last is None:
            return Spans()
        keys = self.is_global.within(0, queries.last + 1 if pattern.causal else self.n)
        seers = queries - (queries - self.is_global)
        if seers.last is None:
            return keys
        if pattern.global_reach is not None:
            return keys | seers.smeared(pattern.global_reach - 1, -1).within(0, self.n)
        return keys | Spans.of([(0, seers.last + 1 if pattern.causal else self.n)])

    def summary_keys(self, pattern: AttentionPattern, queries: Spans) -> Spans:
        """Keys of which a summary is shown to any of `queries`, pins aside."""
        last = queries.last
        if self.hierarchy is None or not pattern.annex or pattern.window is None or last is None:
            return Spans()
        block = self.hierarchy.block
        return Spans.of([(0, self.hierarchy.end(last // block * block, pattern.window))])

    def keys(self, pattern: AttentionPattern, queries: Spans) -> Spans:
        """All keys that any of `queries` sees, or a summary of them."""
        seen = self.window_keys(pattern, queries) | self.summary_keys(pattern, queries)
        return seen | self.pin_keys(pattern, queries) | self.global_keys(pattern, queries)
