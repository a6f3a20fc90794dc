"""Who takes part, what each has shown, and how it is told."""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rival_engines.process import Contestant, EngineFailed, Stable


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Prompts to read, and tokens to write after each.

    Attributes:
        reads, writes: what its two speeds are called; None for one that is not shown.
    """

    n_streams: int
    n_prompt: int
    n_write: int
    reads: str | None
    writes: str

    def prompts(self, seed: int, text: list[int] | None) -> list[list[int]]:
        """Passages of a text, another one for each seed; without a text, random ids that are no control tokens."""
        draw = random.Random(seed)
        if text is not None:
            starts = [draw.randrange(len(text) - self.n_prompt) for _ in range(self.n_streams)]
            return [text[start : start + self.n_prompt] for start in starts]
        return [[draw.randrange(1000, 30_000) for _ in range(self.n_prompt)] for _ in range(self.n_streams)]

    def speeds(self, answer: dict[str, Any]) -> dict[str, float]:
        """Tokens a second by what they are called."""
        found = {} if self.reads is None else {self.reads: self.n_streams * self.n_prompt / answer["read_seconds"]}
        return found | {self.writes: answer["written"] / answer["write_seconds"]}


class Field:
    """Those who take part, and what they have shown: speeds[model][contestant][column] is a list over the rounds.

    Attributes:
        skipped: who does not take part, and why.
        first: by model and contestant, the tokens that answered the first prompt.
        texts: ids of a text, for the models that know words.
    """

    def __init__(self) -> None:
        self.speeds: dict[str, dict[str, dict[str, list[float]]]] = {}
        self.weights: dict[str, str] = {}
        self.load_seconds: dict[str, float] = {}
        self.first: dict[str, dict[str, list[int]]] = {}
        self.skipped: dict[str, str] = {}
        self.texts: dict[str, list[int]] = {}

    def skip(self, name: str, reason: object) -> None:
        """Leave somebody out, and say so."""
        self.skipped[name] = str(reason)
        print(f"without {name}: {reason}", file=sys.stderr)

    def measure(self, stable: Stable, model: str, contestant: Contestant, work: Work, seed: int) -> None:
        """One contestant's part of a round."""
        worker = stable.fetch(contestant)
        shown = self.speeds.setdefault(model, {}).setdefault(contestant.name, {})
        self.load_seconds.setdefault(contestant.name, worker.told["load_seconds"])
        prompts = work.prompts(seed, self.texts.get(model))
        if work.writes not in shown:
            worker.run([ids[:64] for ids in prompts], 3)  # whatever is done only once
        answer = worker.run(prompts, work.n_write)
        self.first.setdefault(model, {}).setdefault(contestant.name, answer["tokens"][0])
        for column, speed in work.speeds(answer).items():
            shown.setdefault(column, []).append(speed)
            print(f"{model}: {contestant.name}: {column}: {speed:.1f} tok/s", file=sys.stderr)

    def compete(
        self, stable: Stable, model: str, contestants: list[Contestant], works: list[Work], rounds: int
    ) -> None:
        """All rounds of one model. Every other round goes the other way round, so that no one is always first."""
        for round_ in range(rounds):
            for work in works:
                for contestant in contestants if round_ % 2 == 0 else reversed(contestants):
                    name = contestant.name
                    if name in self.skipped:
                        continue
                    try:
                        self.measure(stable, model, contestant, work, seed=round_)
                    except EngineFailed as error:
                        self.skip(name, error)
                        stable.drop(contestant)

    def ratios(self) -> list[dict[str, Any]]:
        """Sash against each rival of the same weights, and against vLLM with any: medians of the rounds' ratios."""
        found = []
        for model, speeds in self.speeds.items():
            for ours, theirs in ((a, b) for a in speeds for b in speeds if a.startswith("sash") > b.startswith("sash")):
                if self.weights[ours] != self.weights[theirs] and not theirs.startswith("vllm"):
                    continue
                for column in speeds[ours]:
                    pairs = [a / b for a, b in zip(speeds[ours][column], speeds[theirs].get(column, []), strict=False)]
                    if pairs:
                        found.append(
                            {
                                "model": model, "sash": ours, "rival": theirs, "work": column,
                                "ratio": statistics.median(pairs), "min": min(pairs), "max": max(pairs),
                            }
                        )  # fmt: skip
        return found


def print_tables(field: Field) -> None:
    """Speeds, then ratios."""
    for model, speeds in field.speeds.items():
        columns = list(dict.fromkeys(column for shown in speeds.values() for column in shown))
        print(f"\n{model}, tokens a second, medians\n")
        print_row(["", *columns, "loads in"])
        print_row(["---"] * (len(columns) + 2))
        for name, shown in speeds.items():
            cells = [f"{statistics.median(shown[column]):,.1f}" if column in shown else "" for column in columns]
            print_row([name, *cells, f"{field.load_seconds[name]:.1f} s"])
        base = next((name for name in field.first[model] if name.startswith("sash")), None)
        for name, tokens in field.first[model].items():
            if base is not None and name != base:
                same = next(
                    (i for i, (a, b) in enumerate(zip(tokens, field.first[model][base], strict=False)) if a != b),
                    len(tokens),
                )
                print(f"\n{name} writes the same first {same} of {len(tokens)} tokens as {base}", end="")
        print()
    print("\nSash against each, pair by pair: median of the rounds (lowest to highest)\n")
    print_row(["Sash", "rival", "work", "ratio"])
    print_row(["---"] * 4)
    for found in field.ratios():
        ratio = f"{found['ratio']:.2f} ({found['min']:.2f} to {found['max']:.2f})"
        print_row([found["sash"], found["rival"], found["work"], ratio])


def print_row(cells: Iterable[str]) -> None:
    """A row of a Markdown table."""
    print(f"| {' | '.join(cells)} |")
