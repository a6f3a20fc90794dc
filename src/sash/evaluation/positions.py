"""Perplexity by position: how well a text is predicted early and late in it, by several ways to read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sash.errors import EmptyPromptError, UsageError
from sash.evaluation.methods import OVERLAP, SINKS, summarising, window_of
from sash.lm import LM

Progress = Callable[[int], None]


class _Stopped(Exception):
    """Reading was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A text as one method predicts it.

    Attributes:
        method: how it was read.
        starts: first position of each stretch.
        n_tokens: tokens predicted in each stretch.
        nlls: mean negative log-likelihood of a token of each stretch, in nats.
        seconds: for all of it.
    """

    method: str
    starts: tuple[int, ...]
    n_tokens: tuple[int, ...]
    nlls: tuple[float, ...]
    seconds: float

    @property
    def nll(self) -> float:
        """Of the whole text."""
        return sum(nll * n for nll, n in zip(self.nlls, self.n_tokens, strict=True)) / sum(self.n_tokens)

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that is no number any more."""
        return math.exp(self.nll) if self.nll < 709 else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "method": self.method,
            "nll": self.nll,
            "perplexity": self.perplexity,
            "starts": list(self.starts),
            "tokens": list(self.n_tokens),
            "nlls": list(self.nlls),
            "seconds": self.seconds,
        }

    def lines(self) -> list[dict[str, Any]]:
        """Plain values of each stretch of the text by itself."""
        stretches = zip(self.starts, self.n_tokens, self.nlls, strict=True)
        return [
            {
                "method": self.method,
                "start": start,
                "tokens": count,
                "nll": nll,
                "perplexity": math.exp(min(nll, 700.0)),
            }
            for start, count, nll in stretches
        ]


def readers(lm: LM, names: Sequence[str], window: int | None = None) -> dict[str, LM]:
    """The model as each method reads with it; what is pinned by prompt in questions has no part in it.

    Args:
        lm: the model, with no forced window.
        names: of `READERS`.
        window: forced in every layer; None leaves the model its own.

    Raises:
        UsageError: a name that is not known, or none.
        WindowError, PinsError: a window that cannot be, or none where one is needed.
    """
    if unknown := [name for name in names if name not in READERS]:
        raise UsageError(f"{unknown[0]!r} is no way to read a whole text: use {', '.join(READERS)}")
    if not names:
        raise UsageError(f"there are no ways to read: use {', '.join(READERS)}")
    window_of(lm, window)
    return {name: READERS[name](lm, window) for name in dict.fromkeys(names)}


def _overlap(lm: LM, window: int | None) -> LM:
    return lm.with_window(window).with_overlap(max(1, window_of(lm, window) // OVERLAP))


READERS: dict[str, Callable[[LM, int | None], LM]] = {
    "full": lambda lm, window: lm.with_window("full"),
    "window": lambda lm, window: lm.with_window(window),
    "sinks": lambda lm, window: lm.with_window(window, SINKS),
    "overlap": _overlap,
    "hierarchy": summarising,
    "recall": lambda lm, window: lm.with_window(window).with_recall(),
}
"""What makes each from the model and its window; see `sash.evaluation.methods.DESCRIPTIONS`."""


def curves(
    ways: dict[str, LM],
    ids: list[int],
    *,
    n_stretches: int = 16,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Progress = lambda count: None,
) -> Iterator[Curve]:
    """Score the text by each method, one after the other; one that is cancelled is left out.

    Args:
        ways: models by the names of their methods.
        ids: the text.
        n_stretches: that it is cut into, as equal as can be.
        cancelled: asked after each chunk.
        progress: called with the tokens of each chunk.

    Raises:
        EmptyPromptError: fewer than 2 tokens.
        UsageError: no stretches, or an id outside of the vocabulary.
    """
    if len(ids) < 2:
        raise EmptyPromptError("there are fewer than 2 tokens, so nothing to predict: give a longer text")
    if n_stretches < 1:
        raise UsageError(f"a text is cut into 1 stretch or more; got {n_stretches}")
    edges = stretches(len(ids), n_stretches)

    def advance(count: int) -> None:
        progress(count)
        if cancelled():
            raise _Stopped

    for name, lm in ways.items():
        began = time.perf_counter()
        try:
            scores = lm.score(ids, lm.chunk, advance).double()
        except _Stopped:
            return
        parts = [scores[start - 1 : stop - 1] for start, stop in zip(edges, [*edges[1:], len(ids)], strict=True)]
        yield Curve(
            method=name,
            starts=edges,
            n_tokens=tuple(len(part) for part in parts),
            nlls=tuple(-float(part.mean()) for part in parts),
            seconds=time.perf_counter() - began,
        )


def stretches(n_tokens: int, count: int) -> tuple[int, ...]:
    """Where each of `count` stretches of the positions 1 to n_tokens - 1 begins; position 0 is not predicted.

    >>> stretches(9, 2), stretches(3, 8)
    ((1, 5), (1, 2))
    """
    count = min(count, n_tokens - 1)
    return tuple(1 + (n_tokens - 1) * at // count for at in range(count))
