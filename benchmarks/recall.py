"""A token with recall against a token with the window alone: time, slots, and what is found again.

The same model reads the same text twice, with a forced window and with the same window and recall, and then writes
token by token, one of each in turn. What left the window is ranked after some tokens and not after others, so they are
timed by rounds; the ratio is the median of the rounds'. Then numbers are hidden in texts at several depths, and asked
for with full attention, with the window alone, and with recall.

Targets: a token <= 1.5 x, slots <= 2 W a layer, found >= 95 % of what full attention finds.

    python benchmarks/recall.py --model smollm2-135m-instruct --window 128 --tokens 4096
    python benchmarks/recall.py --layers calibrated
    python benchmarks/recall.py --model gemma-3-270m --window 256 --tokens 8192 --prompts 0
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from sash.lm import LM
from sash.loading import load_decoder
from sash.network.batch import Batch

ROUND = 32
"""Tokens of a round: as many as lie between two rankings of 32,768 tokens."""

TEXT = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
ASK = "What is the special magic number mentioned in the text?"
LEAD = "The special magic number mentioned in the text is"


def texts_of(lm: LM, n_tokens: int) -> list[int]:
    """Tokens of a novel, from its beginning again where it ends."""
    ids = lm.tokenizer.encode(TEXT.read_text())
    return (ids * (n_tokens // len(ids) + 1))[:n_tokens]


@torch.inference_mode()
def time_tokens(kinds: dict[str, LM], n_tokens: int, n_steps: int) -> dict[str, Any]:
    """Seconds of a token after so many, each kind in turn: the mean of a round's."""
    opened = {}
    for name, lm in kinds.items():
        cache = lm.cache()
        row, ids, start = cache.allocate(), texts_of(lm, n_tokens), time.perf_counter()
        cache.ask(row, n_tokens)
        for at in range(0, n_tokens, lm.chunk):
            lm.decoder(Batch.pack([ids[at : at + lm.chunk]], [at], [row]), cache)
        opened[name] = (lm, cache, row, time.perf_counter() - start)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for step in range(n_steps):
        for name, (lm, cache, row, _) in opened.items():
            start = time.perf_counter()
            lm.decoder(Batch.pack([[100 + step]], [cache.lengths[row]], [row]), cache)
            seconds[name].append(time.perf_counter() - start)
    rounds = {
        name: [statistics.mean(found[at : at + ROUND]) for at in range(0, n_steps, ROUND)]
        for name, found in seconds.items()
    }
    ratios = [b / a for a, b in zip(*rounds.values(), strict=True)]
    return {
        "token_ms": {name: round(1e3 * statistics.median(found), 3) for name, found in rounds.items()},
        "slowest_ms": {name: round(1e3 * max(found), 3) for name, found in seconds.items()},
        "read_seconds": {name: round(one[3], 2) for name, one in opened.items()},
        "ratio": round(statistics.median(ratios), 3),
        "slots": {name: max(p.capacity() or 0 for p in lm.config.patterns) for name, lm in kinds.items()},
    }


def hidden_number(lm: LM, n_tokens: int, depth: float, seed: int) -> tuple[list[int], str]:
    """A prompt of about so many tokens with a number at a depth of 0 to 1 in it, and the number."""
    drawn = random.Random(seed)
    number, ids = str(drawn.randrange(10_000, 99_999)), texts_of(lm, 4 * n_tokens)
    start = drawn.randrange(len(ids) - n_tokens)
    text = lm.tokenizer.decode(ids[start : start + n_tokens - 90])
    at = text.find(". ", int(depth * len(text)))
    cut = 0 if depth == 0 else len(text) if at < 0 else at + 2
    told = "A special magic number is hidden within the following text. Memorize it. I will quiz you about it."
    body = f"{told}\n\n{text[:cut]} The special magic number is {number}. {text[cut:]}\n\n{ASK}"
    if lm.tokenizer.has_chat:
        prompt = lm.tokenizer.encode_chat([{"role": "user", "content": body}])
        return [*prompt, *lm.tokenizer.encode(LEAD, bos=False)], number
    return list(lm.tokenizer.encode(f"{body} {LEAD}")), number


def found(lm: LM, n_tokens: int, n_prompts: int) -> float:
    """Of so many numbers at depths from 0 to 1, how many were said."""
    said = 0
    for at in range(n_prompts):
        ids, number = hidden_number(lm, n_tokens, at / max(1, n_prompts - 1), at)
        said += number in lm.generate(ids, max_tokens=8, temperature=0).text
    return said / n_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=11)
    parser.add_argument("--layers", default=None, help="1,4,...; or calibrated; by default as with_recall chooses")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--weights", default="auto")
    asked = parser.parse_args()
    full = load_decoder(asked.model, kv=asked.kv, weights=asked.weights)
    told = asked.layers and asked.layers != "calibrated"
    layers = [int(part) for part in asked.layers.split(",")] if told else None
    if asked.layers == "calibrated":
        layers = list(full.calibrate_recall(keep=False))
    recalls = full.with_window(asked.window).with_recall(layers=layers)
    pins = max(pattern.pins for pattern in recalls.config.patterns)
    kinds = {"window": full.with_window(asked.window, pins), "recall": recalls}
    figures = {**vars(asked), **time_tokens(kinds, asked.tokens, asked.steps), "machine": describe_machine()}
    figures["recalling"] = [at for at, pattern in enumerate(recalls.config.patterns) if pattern.annex]
    print(f"{len(figures['recalling'])} of {full.config.n_layers} layers recall")
    print(f"a token: {figures['token_ms']} ms, {figures['ratio']} x; the slowest: {figures['slowest_ms']} ms")
    print(f"slots a layer: {figures['slots']}")
    print(f"the text before: {figures['read_seconds']} s")
    if asked.prompts:
        figures["found"] = {
            name: found(lm, asked.tokens, asked.prompts) for name, lm in {"full": full, **kinds}.items()
        }
        print(f"found: {figures['found']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
