"""Does an instruction at the head of a long prompt still count? The same prompts, read in several ways.

Each prompt says something at its head (a key; a line to repeat; how prices are written), goes on with a novel for 4, 8
or 16 windows, and ends with the beginning of a sentence that only who knows the head goes on with rightly. Read with
full attention that shows the model's wit; what full attention can do and windows cannot is the mechanism.

    python benchmarks/instructions.py --model smollm2-135m-instruct --window 64
    python benchmarks/instructions.py --model gemma-3-270m --methods own,pins --prompts 20
    python benchmarks/instructions.py --model gemma-3-270m --window 128 --methods own,window,pins

The baseline is full attention, or the model as it is (own) where that is one of the methods. Without --window a model
keeps its own windows, and full attention where it has it; with it all layers are forced.
Target: pinned, at least 95% of the answers that full attention gets right. Prompts are asked in blocks, and each block
is a line of JSON in --log, if that is given: the same call with the same file goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from machine import describe_machine

from sash.evaluation.methods import Method, methods, window_of
from sash.evaluation.prompts import Source
from sash.evaluation.trials import Cell, Grid, ask, wilson
from sash.loading import load_decoder

NOVEL = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
TASKS = ("copying", "format", "passkey")
BLOCK = 20
TARGET = 0.95

Key = tuple[str, str, int]
"""Method, task and windows of a prompt."""


def read_log(path: Path | None, kind: dict[str, object]) -> dict[tuple[str, str, int, int], Cell]:
    """Blocks that are done already, by method, task, length and number."""
    done: dict[tuple[str, str, int, int], Cell] = {}
    if path is None or not path.exists():
        return done
    for line in path.read_text(encoding="utf-8").splitlines():
        block = json.loads(line)
        if block["kind"] != kind:
            raise SystemExit(f"{path} is of another run: {block['kind']}")
        cell = Cell(**block["cell"])
        done[cell.method, cell.task, cell.length, block["block"]] = cell
    return done


def measure(options: argparse.Namespace, ways: list[Method], source: Source, window: int) -> dict[Key, Cell]:
    """Ask what is not in the log yet; all prompts of a task and length, summed up."""
    kind = {name: getattr(options, name) for name in ("model", "weights", "window", "seed")}
    done, found = read_log(options.log, kind), {}
    for windows in options.windows:
        for task in options.tasks:
            grid = Grid(tasks=(task,), lengths=(windows * window,), n_trials=options.prompts, seed=options.seed)
            trials = grid.trials(source, task, windows * window, 0.0)
            for way in ways:
                for block, start in enumerate(range(0, len(trials), BLOCK)):
                    part = trials[start : start + BLOCK]
                    cell = done.get((way.name, task, windows * window, block))
                    if cell is None or cell.of != len(part):
                        began = time.perf_counter()
                        right = ask(way, part)
                        cell = Cell(
                            method=way.name, task=task, length=windows * window, depth=0.0,
                            distance=sum(trial.distance for trial in part) / len(part),
                            right=sum(right or []), of=len(part), seconds=time.perf_counter() - began,
                        )  # fmt: skip
                        if options.log is not None:
                            with options.log.open("a", encoding="utf-8") as file:
                                file.write(json.dumps({"kind": kind, "block": block, "cell": asdict(cell)}) + "\n")
                    key = (way.name, task, windows)
                    found[key] = found[key].plus(cell) if key in found else cell
                tell(found[way.name, task, windows], windows)
    return found


def tell(cell: Cell, windows: int) -> None:
    """A line for people."""
    low, high = wilson(cell.right, cell.of)
    print(
        f"{windows:>3} W  {cell.task:<8} {cell.method:<10} {cell.right:>4}/{cell.of}  {100 * cell.share:5.1f}%"
        f"  ({100 * low:.1f} to {100 * high:.1f})  {cell.seconds:7.1f} s",
        flush=True,
    )


def summed(found: dict[Key, Cell], method: str, part: tuple[str | None, int | None] = (None, None)) -> tuple[int, int]:
    """Right answers of a method and prompts, of one task or length or of all."""
    cells = [
        cell
        for (name, task, windows), cell in found.items()
        if name == method and part[0] in (None, task) and part[1] in (None, windows)
    ]
    return sum(cell.right for cell in cells), sum(cell.of for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--window", type=int, help="forced in every layer; by default the model's own, or 64 if none")
    parser.add_argument("--windows", default="4,8,16", help="lengths of prompts")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default="full,window,pins")
    parser.add_argument("--prompts", type=int, default=200, help="of each task and length")
    parser.add_argument("--text", type=Path, default=NOVEL)
    parser.add_argument("--weights", default="auto", help="bf16, int8 or int4; by default as the model has them")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="blocks that are done are kept here, and are not asked again")
    options = parser.parse_args()
    options.windows = [int(part) for part in options.windows.split(",")]
    options.tasks = options.tasks.split(",")

    lm = load_decoder(options.model, weights=options.weights, threads=options.threads)
    if options.window is None and lm.config.window is None:
        options.window = 64
    window = window_of(lm, options.window)
    ways = methods(lm, options.methods.split(","), options.window)
    source = Source(lm.tokenizer, options.text.read_text(encoding="utf-8"))
    began = time.perf_counter()
    found = measure(options, ways, source, window)
    ratios = {}
    # A model with windows of its own breaks where all its layers see farther than they were trained to.
    full = summed(found, "own" if "own" in options.methods.split(",") else "full")
    for way in ways:
        right, of = summed(found, way.name)
        of_full = right / full[0] if full[0] else None
        ratios[way.name] = {"right": right, "of": of, "share": right / of, "of_full": of_full}
        if of_full is not None:
            print(f"{way.name:<10} {right}/{of}: {100 * of_full:.1f}% of the baseline", file=sys.stderr)
    result = {
        "benchmark": "instructions",
        "model": options.model,
        "window": window,
        "forced": options.window is not None,
    }
    result |= {"cells": [cell.to_json(window) for cell in found.values()], "methods": ratios, "target": TARGET}
    reached = ratios.get("pins", {}).get("of_full")
    result |= {"pass": reached is not None and reached >= TARGET, "seconds": round(time.perf_counter() - began, 1)}
    result |= {"cpu_seconds": round(time.process_time(), 1)}
    print(json.dumps(result | describe_machine()))


if __name__ == "__main__":
    main()
