"""Which runs of keys each block of queries meets: worked out once a step and pattern, shared by all its layers.

Queries are taken in blocks, and a block meets only the run of its own sequence's tokens that some query in it can
see; so memory is O(block x (window + block)) and nothing of size N x N exists, whatever N is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.segment import Mask, Segment

QUERY_BLOCK = 256


@dataclass(frozen=True, slots=True)
class KeyRun:
    """A run of keys that a block of queries meets.

    Attributes:
        source: the step's "own" tokens, or a store's "ring", "pins", "annex" or growing "block".
        start, stop: which of them.
        index: instead of start:stop, for own tokens that do not lie side by side.
        block: which growing block.
        mask: None if every query of the block sees every key of the run.
        clamped: whether these keys meet the queries at the clamped distance.
    """

    source: Literal["own", "ring", "pins", "annex", "block"]
    start: int
    stop: int
    index: Tensor | None = None
    block: int = 0
    mask: Mask | None = None
    clamped: bool = False


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """Queries [start:stop) of a step and the runs of keys they meet; `row` is their sequence's cache row or -1."""

    start: int
    stop: int
    runs: tuple[KeyRun, ...]
    row: int = -1


def masked_run(
    pattern: AttentionPattern, queries: TokenMeta, keys: TokenMeta, run: KeyRun, dtype: torch.dtype
) -> KeyRun | None:
    """`run` with its mask filled in from the pattern's predicate; None if no query sees any of its keys.

    Keys that are pins are left to the run that is clamped, others to the run that is not.
    """
    query, key = queries.reshape(-1, 1), keys.reshape(1, -1)
    allowed_TS = pattern.allows(query, key)
    if pattern.pins:
        pin = pattern.is_pin(key)
        allowed_TS = allowed_TS & (pin if run.clamped else ~pin)
    if not bool(allowed_TS.any()):
        return None
    return KeyRun(run.source, run.start, run.stop, run.index, run.block, Mask.of(allowed_TS, dtype), run.clamped)


def own_runs(
    pattern: AttentionPattern, meta: TokenMeta, a: int, b: int, offset: int, dtype: torch.dtype
) -> list[KeyRun]:
    """The runs of a span's own tokens that its queries [a:b) meet.

    Args:
        pattern: who sees whom.
        meta: of the span's tokens, each field of shape [n].
        a, b: the block of queries, counted within the span.
        offset: where the span begins in the step; runs are given in the step's numbering.
        dtype: of the queries, for masks.
    """
    n = int(meta.position.shape[0])
    queries = meta.take(slice(a, b))
    lo, hi = _band(pattern, queries, a, b, n)
    runs: list[KeyRun | None] = []
    if pattern.window is None and pattern.causal and a > 0:
        runs.append(KeyRun("own", offset, offset + a))  # all of these came before: no mask to build
        lo = a
    run = KeyRun("own", offset + lo, offset + hi)
    runs.append(masked_run(pattern, queries, meta.take(slice(lo, hi)), run, dtype))
    if pattern.pins:
        pins = torch.nonzero(pattern.is_pin(meta)).flatten()
        if pins.numel():
            side_by_side = int(pins[-1] - pins[0]) + 1 == pins.numel()
            first, last = offset + int(pins[0]), offset + int(pins[-1]) + 1
            run = KeyRun("own", first, last, None if side_by_side else pins + offset, clamped=True)
            runs.append(masked_run(pattern, queries, meta.take(pins), run, dtype))
    if pattern.global_tokens:
        beyond = torch.nonzero(meta.is_global).flatten()
        beyond = beyond[(beyond < lo) | (beyond >= hi)]
        if beyond.numel():
            run = KeyRun("own", 0, 0, beyond + offset)
            runs.append(masked_run(pattern, queries, meta.take(beyond), run, dtype))
    return [run for run in runs if run is not None]


def _band(pattern: AttentionPattern, queries: TokenMeta, a: int, b: int, n: int) -> tuple[int, int]:
    """The run of a span's tokens that holds every key which its queries [a:b) see through the window."""
    back = pattern.reach_back
    if back is None or (pattern.global_tokens and bool(torch.as_tensor(queries.is_global).any())):
        return 0, b if pattern.causal else n
    return max(0, a - back), b if pattern.causal else min(n, b + back)


def own_segment(run: KeyRun, k_GTK: Tensor, v_GTK: Tensor) -> Segment:
    """The segment of a run of the step's own tokens: views, unless the tokens do not lie side by side."""
    if run.index is not None:
        return Segment(k_GTK[:, run.index], v_GTK[:, run.index], run.mask, run.clamped)
    return Segment(k_GTK[:, run.start : run.stop], v_GTK[:, run.start : run.stop], run.mask, run.clamped)
