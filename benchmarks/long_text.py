"""How well is a long text predicted by a window, and by what is done about what it lost? One text, several methods.

Each method reads the same tokens over the same weights: a window that rolls; the same with the first 4 tokens pinned
(StreamingLLM's sinks, arXiv 2309.17453); windows that overlap, read anew when half or a quarter of their tokens is new;
sinks and summaries of what left; sinks and recalled tokens; and full attention. Perplexity is told whole and by where
in the text a token stands; K/V slots are those of the layer that has the most at the end of the text.

    python benchmarks/long_text.py --text emma.txt
    python benchmarks/long_text.py --tokens 8192 --window 512 --methods window,sinks,hierarchy --figure long_text.svg

Full attention needs memory for all tokens, and time that grows with their square. What a method scored is kept in
--log, if that is given, and is not read again by the same call.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine

from sash.evaluation.figures import check_figure
from sash.evaluation.perplexity import readings
from sash.lm import LM
from sash.loading import load_decoder
from sash.network.sizing import kv_slots

NOVEL = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
SINKS = 4

Method = Callable[[LM, argparse.Namespace], LM]

METHODS: dict[str, Method] = {
    "window": lambda lm, options: lm.with_window(options.window),
    "sinks": lambda lm, options: lm.with_window(options.window, SINKS),
    "overlap-2": lambda lm, options: lm.with_window(options.window).with_overlap(options.window // 2),
    "overlap-4": lambda lm, options: lm.with_window(options.window).with_overlap(options.window // 4),
    "hierarchy": lambda lm, options: lm.with_window(options.window, SINKS).with_hierarchy(
        per_level=options.per_level, block=options.block
    ),
    "recall": lambda lm, options: lm.with_window(options.window, SINKS).with_recall(options.recall),
    "full": lambda lm, options: lm if lm.config.window is None else lm.with_window("full"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a method came to.

    Attributes:
        method: its name.
        nll: mean negative log-likelihood of a token, nats.
        buckets: the same of each part of the text, in order; parts are of equal length.
        seconds: what it took.
        tokens_per_second: tokens of the text read a second.
        tokens_read: tokens that went through the network.
        slots: keys that a layer holds at most, at the end of the text.
    """

    method: str
    nll: float
    buckets: tuple[float, ...]
    seconds: float
    tokens_per_second: float
    tokens_read: int
    slots: int


def score(name: str, lm: LM, ids: list[int], n_buckets: int) -> Scored:
    """Read the text by a method."""
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if done * 8 // len(ids) != before * 8 // len(ids):
            print(f"  {name}: {done:,} tokens, {done / (time.perf_counter() - began):,.0f} a second", flush=True)

    began = time.perf_counter()
    scores = -lm.score(ids, lm.chunk, progress).double()
    seconds = time.perf_counter() - began
    n_read = len(ids)
    if lm.overlap is not None:
        lead = int(ids[0] == lm.tokenizer.bos_id)
        own = [stop - start for start, stop in readings(len(ids), lm.overlap.window, lm.overlap.stride, lead)]
        n_read = sum(own) + lead * (len(own) - 1)
    slots = max(kv_slots(pattern, len(ids)) for pattern in lm.config.patterns)
    if lm.config.hierarchy is not None:  # of its room, what is filled by now
        summed = lm.config.hierarchy
        room = summed.n_slots - summed.bound(max(0, len(ids) - (lm.config.window or 0)) // summed.block)
        slots -= room
    return Scored(
        method=name,
        nll=float(scores.mean()),
        buckets=tuple(float(part.mean()) for part in scores.tensor_split(n_buckets)),
        seconds=seconds,
        tokens_per_second=len(ids) / seconds,
        tokens_read=n_read,
        slots=slots,
    )


def read_log(path: Path | None, kind: dict[str, Any]) -> dict[str, Scored]:
    """Methods that were scored already, by name."""
    if path is None or not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        if one["kind"] != kind:
            raise SystemExit(f"{path} is of another run: {one['kind']}")
        found[one["scored"]["method"]] = Scored(**one["scored"] | {"buckets": tuple(one["scored"]["buckets"])})
    return found


def perplexity(nll: float) -> float:
    """exp, where that is a number that says anything."""
    return math.exp(min(nll, 99.0))


def table(found: list[Scored], n_tokens: int) -> str:
    """A row a method; the buckets are headed by the token at which they end."""
    n_buckets = len(found[0].buckets)
    ends = [f"..{n_tokens * (at + 1) // n_buckets:,}" for at in range(n_buckets)]
    rows = [["method", "perplexity", "tok/s", "read", "slots", *ends]]
    for one in found:
        numbers = [f"{perplexity(one.nll):,.2f}", f"{one.tokens_per_second:,.0f}", f"{one.tokens_read:,}"]
        rows.append([one.method, *numbers, f"{one.slots:,}", *(f"{perplexity(part):,.2f}" for part in one.buckets)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def draw(found: list[Scored], n_tokens: int, title: str, path: Path) -> None:
    """Perplexity along the text, a line a method, on a logarithmic scale."""
    matplotlib, figures = importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    n_buckets = len(found[0].buckets)
    ends = [n_tokens * (at + 1) / n_buckets for at in range(n_buckets)]
    with matplotlib.rc_context({"svg.hashsalt": "sash", "font.size": 9, "svg.fonttype": "path"}):
        figure = figures.Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["cividis"].resampled(len(found) + 1)
        for index, one in enumerate(found):
            style = {"color": colours(index), "marker": "osv^D*P"[index % 7], "markersize": 4}
            axes.plot(ends, [perplexity(part) for part in one.buckets], label=one.method, **style)
        axes.set_yscale("log")
        axes.set_xlabel("tokens read")
        axes.set_ylabel("perplexity of the part that ends there")
        axes.set_title(title)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, default=NOVEL)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--buckets", type=int, default=8, help="parts of the text that perplexity is told of")
    parser.add_argument("--per-level", type=int, default=4, help="summaries of each size")
    parser.add_argument("--block", type=int, default=64, help="tokens of the smallest summaries")
    parser.add_argument("--recall", type=int, default=512, help="slots for what is recalled")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    names = options.methods.split(",")
    if unknown := [name for name in names if name not in METHODS]:
        raise SystemExit(f"{unknown[0]!r} is no method: use {', '.join(METHODS)}")
    if options.figure is not None:
        check_figure(options.figure)
    lm = load_decoder(
        options.model, dtype=options.dtype, weights=options.weights, kv=options.kv, threads=options.threads
    )  # fmt: skip
    ids = lm.tokenizer.encode(options.text.read_text(encoding="utf-8"))[: options.tokens]
    if len(ids) < options.tokens:
        raise SystemExit(f"{options.text} has {len(ids):,} tokens: give a longer --text, or fewer --tokens")
    named = ("model", "tokens", "window", "per_level", "block", "recall", "kv", "dtype", "weights", "buckets")
    kind = {name: getattr(options, name) for name in named} | {"text": options.text.name}
    done, found = read_log(options.log, kind), []
    for name in names:
        if name == "recall" and not hasattr(lm, "with_recall"):
            print("recall: this version has none", flush=True)
            continue
        if name not in done:
            done[name] = score(name, METHODS[name](lm, options), ids, options.buckets)
            if options.log is not None:
                with options.log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": kind, "scored": asdict(done[name])}) + "\n")
        found.append(done[name])
    print(table(found, len(ids)))
    if options.figure is not None:
        draw(found, len(ids), f"{options.model}, window {options.window:,}, {options.text.name}", options.figure)
    told = [asdict(one) | {"perplexity": perplexity(one.nll)} for one in found]
    print(json.dumps({"machine": describe_machine(), **kind, "methods": told}))


if __name__ == "__main__":
    main()
