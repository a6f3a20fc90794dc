"""How much of what was read at a distance arrives: a few tokens are changed there, and the prediction is looked at.

That a path of windows leads from a position to the last one says what can arrive (`sash.explain.reach`). This says what
does. Where no path leads, it is zero to the last bit; where one does, numbers of 16 bits round a thing that small away
or blow it up: in bfloat16 whatever changes moves the prediction by some thousandths of a nat. float32 tells more.

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.evaluation.prompts import Source
from sash.evaluation.trials import Cancelled, Progress
from sash.lm import LM

LEAD = 32
"""Tokens before the farthest change: the first tokens of a text are seen for their own sake, as sinks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """What a change at a distance did to the prediction after the last token.

    Attributes:
        method: how the text was read.
        distance: from the nearest changed token to the last one, in tokens.
        mean: Kullback-Leibler divergence of the prediction with the change from that without, in nats, over the texts.
        median: of them.
        largest: of them.
        reached: texts whose prediction moved at all.
        of: texts.
    """

    method: str
    distance: int
    mean: float
    median: float
    largest: float
    reached: int
    of: int

    def to_json(self, window: int) -> dict[str, Any]:
        """Plain values; the distance in windows, too."""
        return asdict(self) | {"distance_windows": self.distance / window}


def influences(
    ways: Mapping[str, LM],
    source: Source,
    distances: Sequence[int],
    *,
    n_trials: int = 10,
    n_changed: int = 8,
    seed: int = 0,
    cancelled: Cancelled = lambda: False,
    progress: Progress = lambda count: None,
) -> Iterator[Influence]:
    """Read texts with and without a change at each distance.

    Args:
        ways: models by the names of their methods, see `sash.evaluation.positions.readers`.
        source: the text, from which each trial takes another stretch.
        distances: from the nearest changed token to the last one, 1 or more.
        n_trials: stretches of text.
        n_changed: tokens that are replaced, by others of the text.
        seed: other seeds, other texts.
        cancelled: asked between readings; True ends it, without a method that is not done.
        progress: called with the tokens of each reading.

    Raises:
        UsageError: distances, trials or changes that cannot be.
    """
    if not distances or min(distances) < 1 or n_trials < 1 or n_changed < 1:
        raise UsageError("influence needs 1 or more distances, trials and changed tokens, and distances of 1 or more")
    length = LEAD + max(distances) + n_changed
    for name, lm in ways.items():
        found: dict[int, list[float]] = {distance: [] for distance in distances}
        for number in range(n_trials):
            rng = random.Random(f"{seed} influence {number}")
            start, other = (rng.randrange(source.size) for _ in range(2))
            ids, changed = source.stretch(start, length), source.filler(other, n_changed)
            plain_V = prediction(lm, ids)
            for distance in distances:
                if cancelled():
                    return
                stop = len(ids) - distance
                now_V = prediction(lm, [*ids[: stop - n_changed], *changed, *ids[stop:]])
                found[distance].append(divergence(plain_V, now_V))
                progress(len(ids))
        for distance, values in found.items():
            yield Influence(
                method=name,
                distance=distance,
                mean=sum(values) / len(values),
                median=statistics.median(values),
                largest=max(values),
                reached=sum(value > 0 for value in values),
                of=len(values),
            )


def prediction(lm: LM, ids: list[int]) -> Tensor:
    """Logarithmic probabilities of what follows, [V] float64."""
    for hidden_CD in lm.hidden(ids, lm.chunk):
        last_1D = hidden_CD[-1:]
    with torch.inference_mode():
        return lm.decoder.logits(last_1D)[0].double().cpu().log_softmax(-1)


def divergence(plain_V: Tensor, now_V: Tensor) -> float:
    """Kullback-Leibler divergence in nats; zero only where all of it is the same, to the last bit."""
    if torch.equal(plain_V, now_V):
        return 0.0
    return max(float((plain_V.exp() * (plain_V - now_V)).sum()), torch.finfo(torch.float64).tiny)
