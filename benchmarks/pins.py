"""Does a pinned instruction survive a prompt of several windows? The same prompts, read in three ways.

Each prompt says a key at its head, goes on with a novel for `--windows` windows, and asks for the key at its end:

    python benchmarks/pins.py gemma-3-270m --window 256 --windows 4 --prompts 20

It is read with full attention, through windows alone, and through windows with the key's sentence pinned. A base model
is asked by a sentence to complete. That full attention fails is the model's wit; what it can do and a window cannot is
the mechanism.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import sash
from sash.lm import LM

NOVEL = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
QUESTION = "\n\nThe pass key that was given at the beginning, once more: the pass key is"


@dataclass(frozen=True, slots=True)
class Trial:
    """A prompt: its tokens, the sentence that says the key, and the key."""

    ids: list[int]
    sentence: str
    key: str


def trials(lm: LM, count: int, n_tokens: int, seed: int) -> list[Trial]:
    """Prompts of `n_tokens` tokens each, from different places of the novel."""
    rng = random.Random(seed)
    novel = lm.tokenizer.encode(NOVEL.read_text(encoding="utf-8"), bos=False)
    made = []
    for _ in range(count):
        key = str(rng.randint(10_000, 99_999))
        sentence = f"The pass key is {key}. Remember it: the pass key is {key}."
        head, tail = lm.tokenizer.encode(f"{sentence}\n\n"), lm.tokenizer.encode(QUESTION, bos=False)
        room = n_tokens - len(head) - len(tail)
        start = rng.randrange(len(novel) - room)
        made.append(Trial([*head, *novel[start : start + room], *tail], sentence, key))
    return made


def run(lm: LM, several: list[Trial], *, sinks: int, pinned: bool) -> dict[str, float]:
    """How many answers give the key, and the seconds that they took."""
    began, right = time.perf_counter(), 0
    for trial in several:
        pins = [range(sinks)] * (sinks > 0) + [f"text:{trial.sentence}"] * pinned
        done = lm.generate(trial.ids, pins=pins, temperature=0.0, max_tokens=12)
        right += trial.key in done.text.replace(",", "")
    return {"right": right, "of": len(several), "seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--window", type=int, default=256, help="forced in every layer")
    parser.add_argument("--windows", type=int, default=4, help="length of a prompt")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    whole = sash.load(options.model, window="full")
    window = whole.with_window(options.window)
    several = trials(whole, options.prompts, options.window * options.windows, options.seed)
    found = {
        "full attention": run(whole, several, sinks=0, pinned=False),
        f"window {options.window}": run(window, several, sinks=0, pinned=False),
        f"window {options.window}, 4 sinks": run(window, several, sinks=4, pinned=False),
        f"window {options.window}, 4 sinks and the sentence pinned": run(window, several, sinks=4, pinned=True),
    }
    print(json.dumps({"model": options.model, "tokens": options.window * options.windows, **found}, indent=2))


if __name__ == "__main__":
    main()
