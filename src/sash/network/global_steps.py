"""A step cut where global tokens stand: native kernels show all queries of a step the same kind of sight.

Stretches of global tokens are steps of their own, in which the log is read too; what lies between them is read as ever.
A row's numbers depend on the row alone, so cutting changes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern
from sash.network.batch import Batch, Span


def sees_log(patterns: Sequence[AttentionPattern], batch: Batch) -> bool:
    """Whether any token of a step sees more than its window and pins."""
    return (
        batch.global_T is not None and any(pattern.holds_global for pattern in patterns) and bool(batch.global_T.any())
    )


def stretches_of(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """[first, end) of each stretch of equal flags.

    >>> stretches_of([False, False, True, False])
    [(0, 2), (2, 3), (3, 4)]
    """
    edges = [at for at in range(1, len(flags)) if flags[at] != flags[at - 1]]
    return list(zip([0, *edges], [*edges, len(flags)], strict=True))


def steps_of(batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
    """Steps of which each has either global tokens alone or none, with the places of their tokens in the step.

    Each sequence's tokens keep their order; those of different sequences are taken together where they can be.
    """
    flags = [False] * len(batch.tokens_T) if batch.global_T is None else batch.global_T.tolist()
    waiting = [
        [(span, span.start + a, span.start + b) for a, b in stretches_of(flags[span.start : span.stop])]
        for span in batch.spans
    ]
    is_global = False
    while any(waiting):
        taken = [parts.pop(0) for parts in waiting if parts and flags[parts[0][1]] is is_global]
        if taken:
            yield _step(batch, taken)
        is_global = not is_global


def _step(batch: Batch, taken: list[tuple[Span, int, int]]) -> tuple[Batch, Tensor]:
    index_T = torch.cat([torch.arange(first, end) for _, first, end in taken])
    spans, start = [], 0
    for span, first, end in taken:
        position = span.position + first - span.start
        spans.append(replace(span, start=start, stop=start + end - first, position=position))
        start += end - first

    def at(flags_T: Tensor | None) -> Tensor | None:
        return None if flags_T is None else flags_T[index_T]

    is_global = at(batch.global_T)
    return (
        Batch(
            batch.tokens_T[index_T],
            batch.positions_T[index_T],
            tuple(spans),
            at(batch.pinned_T),
            is_global if is_global is not None and bool(is_global.any()) else None,
        ),
        index_T,
    )
