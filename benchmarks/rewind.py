"""Rewinds of a long conversation: are the logits those of a cold read, and what does a rewind cost?

A text of 100,000 tokens is read once, from its beginning, and the logits at random positions are noted: the cold read.
Its row is kept (a log behind the ring of every windowed layer), and taken back to each of those positions in random
order; the token there is read again, and its logits are held against the noted ones. Then the same in another process,
which has nothing but the folder that the log was written to, and a memory far smaller than the log.

What is timed is all that stands between asking for a position and being able to read the token there: cutting the row
back, or finding and checking its pieces on disk; against the time in which the cold read had come to that position.

Targets: logits within 1e-4 in float32 (bit for bit natively); 3% of the cold time, after a restart too.

    python benchmarks/rewind.py --model smollm2-135m-instruct --window 1024 [--text FILE]
    python benchmarks/rewind.py --dtype float32 --tokens 8192 --positions 100
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe_machine

from sash.engine.snapshots import Snapshots
from sash.lm import LM
from sash.loading import load_decoder
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.fingerprint import fingerprint
from sash.network.snapshot import RowState

TARGET = 0.03
TEXT = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
LANE = "rewind"


def ids_of(lm: LM, text: str, n_tokens: int) -> list[int]:
    """So many tokens of a text, which is repeated if it is too short."""
    ids = lm.tokenizer.encode(text)
    while len(ids) < n_tokens:
        ids += lm.tokenizer.encode("\n\n" + text)[1:]
    return ids[:n_tokens]


@torch.inference_mode()
def cold_read(lm: LM, ids: list[int], positions: list[int]) -> tuple[RowState, dict[int, torch.Tensor], list[float]]:
    """Read all; the row, the logits after each of the positions, and when each chunk was read."""
    cache = lm.cache(log=True)
    row, wanted, noted = cache.allocate(), set(positions), {}
    seconds = [0.0]
    for start in range(0, len(ids), lm.chunk):
        began = time.perf_counter()
        batch = Batch.pack([ids[start : start + lm.chunk]], [start], [row], device=cache.device)
        hidden_CD = lm.decoder(batch, cache)
        seconds.append(seconds[-1] + time.perf_counter() - began)
        for at in sorted(wanted.intersection(range(start, start + len(hidden_CD)))):
            noted[at] = lm.decoder.logits(hidden_CD[at - start : at - start + 1])[0].clone()
    return cache.capture(row), noted, seconds


@torch.inference_mode()
def token_after(lm: LM, cache: KVCache, row: int, token_id: int) -> torch.Tensor:
    """Logits after one more token of a row."""
    batch = Batch.pack([[token_id]], [cache.lengths[row]], [row], device=cache.device)
    return lm.decoder.logits(lm.decoder(batch, cache))[0]


class Tally:
    """How far off, how often not at all, and how long."""

    def __init__(self, cold: list[float], chunk: int) -> None:
        self._cold, self._chunk = cold, chunk
        self.differences: list[float] = []
        self.seconds: list[float] = []
        self.shares: list[float] = []
        self.refused = 0

    def add(self, at: int, seconds: float, got: torch.Tensor, expected: torch.Tensor) -> None:
        """One position, in so many seconds."""
        before, after = self._cold[at // self._chunk], self._cold[at // self._chunk + 1]
        cold = before + (after - before) * (at % self._chunk) / self._chunk
        self.seconds.append(seconds)
        self.shares.append(seconds / cold if cold else float("inf"))
        self.differences.append(0.0 if torch.equal(got, expected) else float((got - expected).abs().max()))

    def result(self, name: str) -> dict[str, Any]:
        """All of it."""
        return {
            f"{name}_max_difference": max(self.differences, default=float("nan")),
            f"{name}_bitwise": sum(difference == 0 for difference in self.differences),
            f"{name}_seconds_median": statistics.median(self.seconds or [float("nan")]),
            f"{name}_against_cold_median": statistics.median(self.shares or [float("nan")]),
            f"{name}_within_target": sum(share <= TARGET for share in self.shares),
            f"{name}_refused": self.refused,
        }


def rewound(lm: LM, state: RowState, ids: list[int], noted: dict[int, torch.Tensor], tally: Tally) -> None:
    """Take one row back and forth."""
    cache = lm.cache(log=True)
    row = cache.allocate()
    for at, expected in noted.items():
        began = time.perf_counter()
        cache.restore(row, state, at)
        seconds = time.perf_counter() - began
        tally.add(at, seconds, token_after(lm, cache, row, ids[at]), expected)


def restarted(options: argparse.Namespace) -> None:
    """The second process: find every position in the folder."""
    lm = load(options)
    work = Path(options.restarted)
    told = json.loads((work / "told.json").read_text())
    ids, positions = told["ids"], told["positions"]
    logits = np.load(work / "logits.npy", mmap_mode="r")
    began = time.perf_counter()
    snapshots = Snapshots(options.memory, folder=work / "log", disk=1 << 50, fingerprint=fingerprint(lm.decoder, lm.kv))
    opened = time.perf_counter() - began
    tally = Tally(told["cold"], lm.chunk)
    cache = lm.cache(log=True)
    row = cache.allocate()
    for index, at in enumerate(positions):
        began = time.perf_counter()
        found = snapshots.find(ids[: at + 1], LANE)
        if found is None or found.length != at:
            tally.refused += 1
            continue
        cache.restore(row, found.state, at)
        seconds = time.perf_counter() - began
        tally.add(at, seconds, token_after(lm, cache, row, ids[at]), torch.from_numpy(logits[index].copy()))
    snapshots.close()
    print(json.dumps({**tally.result("restarted"), "folder_opened_seconds": opened}))


def load(options: argparse.Namespace) -> LM:
    more = {"window": options.window} if options.window else {}
    more |= {"dtype": options.dtype} if options.dtype else {}
    return load_decoder(options.model, kv=options.kv, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, default=TEXT, help="UTF-8 file; repeated if it is too short")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--window", type=int, default=1024, help="0 for the model's own")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--memory", type=int, default=256 << 20, help="bytes of the second process's snapshots")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the log is written; a temporary one by default"
    )
    parser.add_argument("--restarted", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.restarted:
        restarted(options)
        return

    lm = load(options)
    ids = ids_of(lm, options.text.read_text(encoding="utf-8"), options.tokens)
    positions = random.Random(1).sample(range(1, len(ids)), options.positions)
    state, noted, cold = cold_read(lm, ids, positions)
    noted = {at: noted[at] for at in positions}
    tally = Tally(cold, lm.chunk)
    rewound(lm, state, ids, noted, tally)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        work = Path(name)
        (work / "told.json").write_text(json.dumps({"ids": ids, "positions": positions, "cold": cold}))
        np.save(work / "logits.npy", torch.stack([noted[at] for at in positions]).float().numpy())
        began = time.perf_counter()
        snapshots = Snapshots(1 << 50, folder=work / "log", disk=1 << 50, fingerprint=fingerprint(lm.decoder, lm.kv))
        snapshots.keep(ids, LANE, state)
        snapshots.close()
        written, on_disk = time.perf_counter() - began, snapshots.figures().disk
        answer = subprocess.run(
            [sys.executable, *sys.argv, "--restarted", name], stdout=subprocess.PIPE, text=True, check=True
        )
        after = json.loads(answer.stdout.splitlines()[-1])
    result = {
        "benchmark": "rewind",
        "model": options.model,
        "network": type(lm.decoder).__name__,
        "kv": lm.kv_dtype,
        "window": options.window,
        "tokens": len(ids),
        "positions": len(positions),
        "cold_seconds": cold[-1],
        "log_bytes": state.nbytes,
        **tally.result("rewound"),
        **after,
        "written_seconds": written,
        "files": on_disk.files if on_disk else 0,
        "file_bytes": on_disk.bytes if on_disk else 0,
        "target": TARGET,
        **describe_machine(),
    }
    for name in ("rewound", "restarted"):
        print(
            f"{name}: {result[f'{name}_bitwise']} of {len(positions)} bit for bit, the others within "
            f"{result[f'{name}_max_difference']:.2g}; {result[f'{name}_seconds_median'] * 1e3:.1f} ms, "
            f"{result[f'{name}_against_cold_median']:.2%} of the cold time"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
