"""How many (query, key) pairs a pattern lets be computed, counted without going through them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sash.errors import PinsError, UsageError

if TYPE_CHECKING:
    from sash.attention.pattern import AttentionPattern


def count_pairs(
    pattern: AttentionPattern, n_tokens: int, global_positions: Sequence[int], pinned_positions: Sequence[int]
) -> int:
    """Pairs of one head that `pattern.allows` allows among `n_tokens` tokens; see `AttentionPattern.visible_pairs`.

    Raises:
        UsageError: a negative `n_tokens`.
        PinsError: more positions flagged to stay than the pattern has pins.
    """
    n = n_tokens
    if n < 0:
        raise UsageError(f"a sequence has 0 or more tokens; got {n}")
    if pattern.window is None:
        return n * (n + 1) // 2 if pattern.causal else n * n
    arm = pattern.arm
    pairs = n + (1 if pattern.causal else 2) * _steps_behind(n, arm, pattern.dilation)
    n_first = min(pattern.pins, n) if pattern.pin_by == "first" else 0
    if n_first:
        rest = n - n_first
        steps = _steps_behind(n, arm, pattern.dilation) - _steps_behind(rest, arm, pattern.dilation)
        pairs += n * (n - 1) // 2 - rest * (rest - 1) // 2 - steps
    flagged: set[int] = set()
    seers = {p for p in global_positions if 0 <= p < n} if pattern.global_tokens else set()
    if pattern.pins and pattern.pin_by == "flag":
        flagged.update(pinned_positions)
        if len(flagged) > pattern.pins:
            raise PinsError(f"{len(flagged)} tokens are flagged as pins, and the pattern holds {pattern.pins}")
    seen = sorted(p for p in flagged | seers if n_first <= p < n)
    pairs += sum(_beyond(pattern, n - 1 - key) + (0 if pattern.causal else _beyond(pattern, key)) for key in seen)
    return pairs + _pairs_of_global_queries(pattern, n, n_first, seen, seers)


def _beyond(pattern: AttentionPattern, n_side: int) -> int:
    """Of the `n_side` tokens on one side of a token, those that the window does not join to it."""
    return n_side - min(n_side // pattern.dilation, pattern.arm)


def _pairs_of_global_queries(pattern: AttentionPattern, n: int, n_first: int, seen: list[int], seers: set[int]) -> int:
    """Keys that global queries see and that neither their window nor a pin or flag of the key shows them.

    `seen` are the sorted flagged keys past the first `n_first`, which are all pins; `seers` the global queries.
    """
    by_residue: dict[int, list[int]] = {}
    for key in seen:
        by_residue.setdefault(key % pattern.dilation, []).append(key)
    pairs = 0
    for query in seers:
        last = query if pattern.causal else n - 1
        low, high = query - pattern.arm * pattern.dilation, min(last, query + pattern.arm * pattern.dilation)
        alike = by_residue.get(query % pattern.dilation, [])
        in_window = bisect_right(alike, high) - bisect_left(alike, low)
        behind = query if pattern.global_reach is None else min(query, pattern.global_reach - 1)
        shown = bisect_right(seen, last) - bisect_left(seen, query - behind) - in_window
        nearest = max(0, -((n_first - 1 - query) // pattern.dilation))  # steps back to the last of the first pins
        first_in_window = max(0, min(pattern.arm, query // pattern.dilation) - nearest + 1)
        shown += min(n_first, query + 1) - first_in_window if n_first else 0
        pairs += _beyond(pattern, behind) + (0 if pattern.causal else _beyond(pattern, n - 1 - query)) - shown
    return pairs


def _steps_behind(n: int, arm: int, dilation: int) -> int:
    """Keys on one side of each of n tokens, summed: min(i // dilation, arm) over i < n.

    >>> _steps_behind(8, 3, 1), sum(min(i, 3) for i in range(8))
    (18, 18)
    >>> _steps_behind(9, 2, 2), sum(min(i // 2, 2) for i in range(9))
    (12, 12)
    """
    near = min(n, arm * dilation)
    rounds, rest = divmod(near, dilation)
    return dilation * rounds * (rounds - 1) // 2 + rest * rounds + (n - near) * arm
