"""Prompts asked in several ways: how many answers are right, with how much certainty."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sash.errors import UsageError
from sash.evaluation.methods import Method
from sash.evaluation.prompts import FACTS, Source, Trial, plant
from sash.lm import Prompt

BATCH_TOKENS = 16_384
MOST_AT_ONCE = 16
"""Prompts of one batch: as many as make up so many tokens, and no more than this."""

Cancelled = Callable[[], bool]
Progress = Callable[[int], None]


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The interval in which the true share lies with 95%, by Wilson (1927).

    >>> [round(end, 3) for end in wilson(10, 10)], [round(end, 3) for end in wilson(0, 0)]
    ([0.722, 1.0], [0.0, 1.0])
    """
    if not of:
        return 0.0, 1.0
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Prompts of one kind, read in one way.

    Attributes:
        method: how they were read.
        task: what was asked.
        length: tokens of a prompt.
        distance: of what is asked for from the end, in tokens; the mean over the prompts.
        depth: where that is, from 0 to 1; None where the distance was given.
        right: answers that were.
        of: prompts.
        seconds: for all of them.
    """

    method: str
    task: str
    length: int
    distance: float
    depth: float | None
    right: int
    of: int
    seconds: float

    @property
    def share(self) -> float:
        """Of answers that were right."""
        return self.right / self.of if self.of else math.nan

    def plus(self, other: Cell) -> Cell:
        """Both together, where only their prompts differ."""
        of = self.of + other.of
        distance = (self.distance * self.of + other.distance * other.of) / of if of else 0.0
        return replace(
            self,
            right=self.right + other.right,
            of=of,
            distance=distance,
            seconds=self.seconds + other.seconds,
        )

    def to_json(self, window: int) -> dict[str, Any]:
        """Plain values; lengths and distances in tokens and in windows."""
        low, high = wilson(self.right, self.of)
        return {
            "method": self.method,
            "task": self.task,
            "length": self.length,
            "length_windows": self.length / window,
            "depth": self.depth,
            "distance": self.distance,
            "distance_windows": self.distance / window,
            "right": self.right,
            "of": self.of,
            "share": self.share,
            "low": low,
            "high": high,
            "seconds": self.seconds,
        }


def ask(
    method: Method,
    trials: Sequence[Trial],
    *,
    cancelled: Cancelled = lambda: False,
    progress: Progress = lambda count: None,
) -> list[bool] | None:
    """Whether the greedy answer to each prompt is right, in their order; None where it was cancelled.

    Prompts that are pinned alike are read together.

    Args:
        method: how they are read.
        trials: the prompts.
        cancelled: asked between batches.
        progress: called with the tokens of each batch once it is answered.
    """
    readings = [method.reading(trial) for trial in trials]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for at, (trial, reading) in enumerate(zip(trials, readings, strict=True)):
        alike.setdefault((reading.pins, reading.seers, reading.budget, trial.n_answer), []).append(at)
    found = [False] * len(trials)
    for (pins, seers, budget, n_answer), members in alike.items():
        longest = max(len(readings[at].ids) for at in members)
        size = max(1, min(MOST_AT_ONCE, BATCH_TOKENS // longest))
        for start in range(0, len(members), size):
            if cancelled():
                return None
            batch = members[start : start + size]
            prompts: list[Prompt] = [readings[at].ids for at in batch]
            done = method.lm.generate(
                prompts, pins=pins, pin_budget=budget, global_=seers, temperature=0.0, max_tokens=n_answer
            )
            for at, completion in zip(batch, done, strict=True):
                found[at] = trials[at].right(completion.text)
            progress(sum(len(trials[at].ids) for at in batch))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is asked: every task at every place, so many times.

    Attributes:
        tasks: see `sash.evaluation.prompts.Task`.
        lengths: tokens of the prompts; none where `distances` are given.
        depths: where what is asked for stands, 0 the head and 1 the end.
        distances: in place of lengths and depths, how far back it stands, in tokens.
        before: tokens of filler before it, where distances are given.
        n_trials: prompts of each kind.
        n_facts: facts of a prompt of "needles".
        seed: other seeds, other prompts.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0,)
    distances: tuple[int, ...] = ()
    before: int = 0
    n_trials: int = 10
    n_facts: int = FACTS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_trials < 1:
            raise UsageError(f"trials are prompts of each kind, 1 or more; got {self.n_trials}")

    def places(self) -> list[tuple[str, int, float | None]]:
        """(task, length or distance, depth) of each kind of prompt."""
        if self.distances:
            return [(task, distance, None) for distance in self.distances for task in self.tasks]
        return [(task, n, depth) for n in self.lengths for task in self.tasks for depth in self.depths]

    def trials(self, source: Source, task: str, size: int, depth: float | None) -> list[Trial]:
        """The prompts of one kind: what is planted depends on the seed and the task, and on nothing else."""
        made = []
        for number in range(self.n_trials):
            rng = random.Random(f"{self.seed} {task} {number}")
            planted = plant(task, rng, self.n_facts)
            if depth is None:
                made.append(source.at_distance(planted, rng, size, self.before))
            else:
                made.append(source.at_depth(planted, rng, size, depth))
        return made


def measure(
    methods: Sequence[Method],
    source: Source,
    grid: Grid,
    *,
    cancelled: Cancelled = lambda: False,
    progress: Progress = lambda count: None,
) -> Iterator[Cell]:
    """The cells of the grid as they are done; all methods are asked the same prompts, one after the other.

    Raises:
        UsageError: prompts that cannot be made so short.
        PinsError: a passage that is too long to be pinned.
    """
    for task, size, depth in grid.places():
        trials = grid.trials(source, task, size, depth)
        for method in methods:
            began = time.perf_counter()
            found = ask(method, trials, cancelled=cancelled, progress=progress)
            if found is None:
                return
            yield Cell(
                method=method.name,
                task=task,
                length=max(len(trial.ids) for trial in trials),
                distance=sum(trial.distance for trial in trials) / len(trials),
                depth=depth,
                right=sum(found),
                of=len(found),
                seconds=time.perf_counter() - began,
            )
