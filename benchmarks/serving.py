"""`sash serve` against vLLM's server: the same model, trace and machine, one server at a time.

    python benchmarks/serving.py             # both; vLLM's environment is that of benchmarks/rivals.py --install
    python benchmarks/serving.py --only sash --streams 8 --rounds 1
    python benchmarks/serving.py --only sash --works stall --rounds 1    # a stream beside a long prompt: two minutes
    python benchmarks/serving.py --quick     # a model of 4M parameters and few requests, to see that all of it works

The model has 1.0B random parameters (window 4,096) and computes in bfloat16. Requests arrive by a Poisson process,
whatever became of those before (an open loop), with prompts of 100 to 2,000 random tokens, and write 32 to 128 tokens.
A server runs 8 or 32 sequences at once; more wait in it. Rates are above what either server sustains, so tokens a
second are its capacity, and the time to a first token holds the wait. Another work reads a prompt of 16,384 tokens
while one stream runs, and compares the longest gap of the stream with its median gap before. Ratios are Sash by vLLM,
round by round. Last line JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import describe_machine
from rival_engines import random_model
from rival_engines.environments import RIVALS, installed_release
from serving_load.client import play, play_beside, stall, summary
from serving_load.model import ascii_model
from serving_load.servers import Running, ServerFailed, command_of, free_port
from serving_load.trace import Asked, poisson

ENGINES = ("sash", "vllm")
WORKS = ("load", "stall")
RATES = {8: (1.0, 40), 32: (1.5, 96)}
"""Requests a second and how many, by sequences at once."""

TARGETS = {"tokens_per_second": ">= 1.3", "first_p99": "<= 0.7", "longest_over_median": "<= 4"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda choices: lambda text: [name for name in choices if str(name) in text.split(",")]  # noqa: E731
    parser.add_argument("--only", type=names(ENGINES), default=list(ENGINES), metavar="ENGINE,...")
    parser.add_argument("--works", type=names(WORKS), default=list(WORKS), metavar="WORK,...", help="load, stall")
    parser.add_argument("--streams", type=names(RATES), default=list(RATES), metavar="N,...", help="8, 32")
    parser.add_argument("--rate", type=float, help="requests a second, instead of the usual rate")
    parser.add_argument("--requests", type=int, help="requests of a trace, instead of the usual number")
    parser.add_argument("--long", type=int, default=16_384, help="tokens of the long prompt; 0 leaves that work out")
    parser.add_argument("--weights", default="bf16", help="what Sash keeps weights as: bf16, int8 or int4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sash" / "rivals")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.long = 1, min(options.long, 2048)
        options.rate, options.requests = options.rate or 8.0, options.requests or 12
    return options


def measure(engine: str, model: Path, options: argparse.Namespace, round_number: int) -> dict[str, Any]:
    """One round of one server: every work, and how long it took to start."""
    found: dict[str, Any] = {}
    for streams in options.streams if "load" in options.works else options.streams[:1]:
        port = free_port()
        command = command_of(
            engine, model, port, streams=streams, context=max(options.long, 2000) + 256, threads=options.threads,
            folder=options.folder, weights=options.weights,
        )  # fmt: skip
        log = options.folder / "logs" / f"serving-{engine}-{streams}.log"
        with Running(command, port, log, threads=options.threads) as server:
            found["ready_seconds"] = server.ready_seconds
            asyncio.run(play(server.url, "served", warm_up(options)))
            if "load" in options.works:
                trace = trace_of(options, streams, round_number)
                found[f"{streams} streams"] = summary(asyncio.run(play(server.url, "served", trace)))
            if "stall" in options.works and options.long and streams == options.streams[0]:
                found["stall"] = stall(*asyncio.run(play_beside(server.url, "served", *beside(options), after=24)))
    return found


def warm_up(options: argparse.Namespace) -> list[Asked]:
    """A few requests that nobody counts."""
    return poisson(
        rate=4, count=4, prompts=(100, 600), writes=(8, 8), vocab_size=random_model.CONFIG["vocab_size"], seed=999
    )


def trace_of(options: argparse.Namespace, streams: int, round_number: int) -> list[Asked]:
    """The trace of a round, the same for every engine."""
    rate, count = RATES[streams]
    return poisson(
        rate=options.rate or rate,
        count=options.requests or count,
        prompts=(100, 2000),
        writes=(4, 16) if options.quick else (32, 128),
        vocab_size=random_model.CONFIG["vocab_size"],
        seed=options.seed + 1000 * round_number + streams,
    )


def beside(options: argparse.Namespace) -> tuple[Asked, Asked]:
    """A short prompt whose stream outlasts the reading of the long one."""
    draw, size = random.Random(options.seed), random_model.CONFIG["vocab_size"]
    ids = lambda count: tuple(draw.randrange(3, size) for _ in range(count))  # noqa: E731
    # A step reads more than 8 tokens of the prompt for each token of the stream, or the stream was not held up.
    n_write = 64 + options.long // 8
    return Asked(at=0, prompt=ids(100), n_write=n_write), Asked(at=0, prompt=ids(options.long), n_write=1)


def ratios(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Sash by vLLM: the median over the rounds of each figure."""
    found: dict[str, dict[str, float]] = {}
    for work in rounds[0].get("sash", {}):
        for figure in ("tokens_per_second", "first_p50", "first_p99", "gap_p50", "gap_p99"):
            pairs = [(one["sash"].get(work), one["vllm"].get(work)) for one in rounds if {"sash", "vllm"} <= set(one)]
            values = [
                ours[figure] / theirs[figure]
                for ours, theirs in pairs
                if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get(figure) and theirs.get(figure)
            ]
            if values:
                found.setdefault(work, {})[figure] = statistics.median(values)
    return found


def show(engine: str, round_number: int, found: dict[str, Any]) -> None:
    print(f"\n{engine}, round {round_number + 1} (ready in {found['ready_seconds']:.1f} s)")
    for work, figures in found.items():
        if isinstance(figures, dict):
            words = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in figures.items() if value is not None]  # fmt: skip
            print(f"  {work:<11}{'   '.join(words)}")


def main() -> None:
    options = parse()
    engines = list(options.only)
    skipped: dict[str, str] = {}
    if "vllm" in engines and installed_release(options.folder, RIVALS["vllm"]) is None:
        skipped["vllm"] = "not installed: python benchmarks/rivals.py --install --only vllm"
        engines.remove("vllm")
        print(f"vllm: {skipped['vllm']}", file=sys.stderr)
    model = ascii_model(options.folder, quick=options.quick)
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        rounds.append({})
        for engine in engines if number % 2 == 0 else reversed(engines):
            try:
                rounds[-1][engine] = measure(engine, model, options, number)
            except ServerFailed as error:
                skipped[engine] = str(error)
                print(f"{engine}: {error}", file=sys.stderr)
                continue
            show(engine, number, rounds[-1][engine])
    result = {
        "benchmark": "serving",
        "quick": options.quick,
        "model": str(model.name),
        "rounds": rounds,
        "ratios": ratios(rounds),
        "targets": TARGETS,
        "skipped": skipped,
        **describe_machine(),
        "threads": options.threads,
    }
    for work, figures in result["ratios"].items():
        print(f"sash by vllm, {work}: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
