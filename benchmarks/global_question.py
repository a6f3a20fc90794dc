"""What a question that is global recalls: keys and facts that slid out of the window, asked for at the end of a novel.

Which tokens are global is varied, over the same prompts, beside the window alone, the window with attention sinks, and
full attention. A token a line of `seconds` is what an answer took, its prompt read from the start.

    python benchmarks/global_question.py --model smollm2-135m-instruct --window 256 --lengths 1024,2000
    python benchmarks/global_question.py --model gemma-3-270m --window 256 --lengths 1024,4096

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from machine import describe_machine

from sash.evaluation.prompts import Source, Trial
from sash.evaluation.trials import Grid, wilson
from sash.lm import LM
from sash.loading import load_decoder

NOVEL = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
TASKS = ("passkey", "needles")
SINKS = range(4)

Way = tuple[str, str, Callable[[Trial], Sequence[range | str]]]
"""Its name, the model that reads, and what is global."""

WAYS: tuple[Way, ...] = (
    ("full", "full", lambda trial: ()),
    ("window", "window", lambda trial: ()),
    ("sinks", "sinks", lambda trial: ()),
    ("question", "sinks", lambda trial: (trial.question,)),
    ("answer", "sinks", lambda trial: (range(len(trial.ids) - 1, len(trial.ids)), "answer")),
    ("question+answer", "sinks", lambda trial: (trial.question, "answer")),
)


def ask(lm: LM, way: Way, trial: Trial, window: int) -> tuple[bool, float]:
    """Whether the answer is right, and the seconds that it took."""
    _, kind, seers = way
    began = time.perf_counter()
    done = lm.generate(
        list(trial.ids),
        pins=[SINKS] if kind == "sinks" else (),
        pin_budget=window,
        global_=seers(trial),
        temperature=0.0,
        max_tokens=trial.n_answer,
    )
    return trial.right(done.text), time.perf_counter() - began


def main() -> None:
    """Ask, print a line a way, and all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--lengths", default="1024,2000")
    parser.add_argument("--depth", type=float, default=0.1)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--ways", default=",".join(name for name, _, _ in WAYS))
    options = parser.parse_args()
    lm = load_decoder(options.model)
    windowed = lm.with_window(options.window)
    source = Source(lm.tokenizer, NOVEL.read_text(encoding="utf-8"))
    ways = [way for way in WAYS if way[0] in options.ways.split(",")]
    cells = []
    for length in map(int, options.lengths.split(",")):
        for task in TASKS:
            trials = Grid(tasks=(task,), lengths=(length,), n_trials=options.prompts).trials(
                source, task, length, options.depth
            )
            for way in ways:
                answers = [ask(lm if way[1] == "full" else windowed, way, trial, options.window) for trial in trials]
                right, seconds = sum(ok for ok, _ in answers), statistics.median(taken for _, taken in answers)
                cells.append({"way": way[0], "task": task, "length": length, "right": right, "of": len(answers),
                              "interval": wilson(right, len(answers)), "median_seconds": seconds})  # fmt: skip
                print(f"{task:8} {length:6,} {way[0]:16} {right:3} of {len(answers)}  {seconds:.2f} s", flush=True)
    print(json.dumps({"machine": describe_machine(), "model": options.model, "window": options.window,
                      "depth": options.depth, "cells": cells}))  # fmt: skip


if __name__ == "__main__":
    main()
