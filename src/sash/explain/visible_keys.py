"""Which keys a whole set of queries sees: the predicate of `attention.pattern`, on spans instead of single tokens."""

from __future__ import annotations

from dataclasses import dataclass

from sash.attention.pattern import AttentionPattern
from sash.explain.spans import Spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Flagged:
    """A sequence.

    Attributes:
        n: its tokens.
        pinned: positions flagged to stay.
        is_global: positions flagged global.
    """

    n: int
    pinned: Spans
    is_global: Spans

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

    def keys(self, pattern: AttentionPattern, queries: Spans) -> Spans:
        """All keys that any of `queries` sees."""
        seen = self.window_keys(pattern, queries)
        return seen | self.pin_keys(pattern, queries) | self.global_keys(pattern, queries)
