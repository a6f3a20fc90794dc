"""Guessing tokens ahead against plain decoding: the same model, prompts and run, token for token.

Three works. "copy" asks for a passage that stands in the prompt, word by word. "free" goes on a passage of a novel,
likeliest tokens only; small models soon repeat themselves there, which is easy to guess. "drawn" does so at temperature
1 by a seed, which repeats little: it shows what guessing costs where it does not help. Every prompt is answered plainly
and with guesses, one after the other in turn; every answer must be the same, token for token, in all three works.
Ratios are plain seconds of writing by those with guesses, a median over the prompts; the reading of prompts is not
counted.

Targets: copy >= 1.5, drawn and free >= 0.97, identical greedy tokens on 10,000 tokens or more.

    python benchmarks/speculation.py --model smollm2-135m-instruct
    python benchmarks/speculation.py --model gemma-3-270m --weights int8 --speculate 5
    python benchmarks/speculation.py --quick
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine

from sash.completion import Completion
from sash.lm import LM
from sash.loading import load_decoder

TEXT = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
TARGETS = {"copy": 1.5, "free": 0.97, "drawn": 0.97}


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt's answers."""

    plain: Completion
    quick: Completion

    @property
    def ratio(self) -> float:
        """How many times as fast the answer with guesses was written."""
        return self.plain.stats.write_seconds / self.quick.stats.write_seconds

    @property
    def identical(self) -> bool:
        """Whether both wrote the same tokens."""
        return self.plain.token_ids == self.quick.token_ids


def passages(lm: LM, text: str, count: int, n_tokens: int) -> list[str]:
    """Stretches of a text that do not overlap."""
    ids = lm.tokenizer.encode(text)[1:]
    every = len(ids) // count
    return [lm.tokenizer.decode(ids[at * every : at * every + n_tokens]).strip() for at in range(count)]


def copying(lm: LM, passage: str) -> list[int]:
    """A prompt whose answer is its own text: a question for a chat model, a beginning for a base model."""
    if lm.tokenizer.has_chat and "gemma" not in lm.name:
        question = f"Repeat the following text word by word, from its beginning to its end:\n\n{passage}"
        return lm.tokenizer.encode_chat([{"role": "user", "content": question}])
    return lm.tokenizer.encode(f"Text:\n{passage}\n\nThe same text again:\n{passage}\n\nThe same text again:\n")


def measure(lm: LM, quick: LM, prompts: list[list[int]], **sampling: Any) -> list[Pair]:
    """Every prompt plainly and with guesses; who goes first changes each time."""
    pairs = []
    for number, prompt in enumerate(prompts):
        order = (lm, quick) if number % 2 == 0 else (quick, lm)
        one, two = (model.generate(prompt, ignore_eos=True, seed=number, **sampling) for model in order)
        pairs.append(Pair(one, two) if number % 2 == 0 else Pair(two, one))
    return pairs


def account(name: str, pairs: list[Pair]) -> dict[str, Any]:
    """What one work came to."""
    ratios = [pair.ratio for pair in pairs]
    drafted = sum(pair.quick.stats.drafted_tokens for pair in pairs)
    accepted = sum(pair.quick.stats.accepted_tokens for pair in pairs)
    written = sum(len(pair.quick.token_ids) for pair in pairs)
    told = {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "plain_tokens_per_second": statistics.median(pair.plain.stats.write_speed for pair in pairs),
        "tokens_per_second": statistics.median(pair.quick.stats.write_speed for pair in pairs),
        "tokens": written,
        "drafted": drafted,
        "accepted": accepted,
        "acceptance": accepted / drafted if drafted else None,
        "tokens_per_forward": written / (written - accepted),
        "identical": all(pair.identical for pair in pairs),
        "target": TARGETS[name],
    }
    print(
        f"{name:6} {told['plain_tokens_per_second']:7.1f} -> {told['tokens_per_second']:7.1f} tok/s, ratio"
        f" {told['ratio']:.2f} ({told['least']:.2f} to {told['most']:.2f}); {accepted:,} of {drafted:,} guesses right,"
        f" {told['tokens_per_forward']:.2f} tokens a forward; {written:,} tokens"
        f" {'identical' if told['identical'] else 'NOT IDENTICAL'}",
        flush=True,
    )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--window", type=int, help="force a window, smaller than the texts")
    parser.add_argument("--speculate", default="lookup", help="lookup, a number of guesses, or a smaller model")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--prompts", type=int, default=12, help="of each work")
    parser.add_argument("--passage", type=int, default=300, help="tokens of a passage")
    parser.add_argument("--answer", type=int, default=450, help="tokens of an answer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a few short answers, to see that all of it works")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.answer = 2, 48

    how = {"weights": options.weights, "kv": options.kv, "window": options.window, "threads": options.threads}
    lm = load_decoder(options.model, **how)
    wanted: object = options.speculate
    if options.speculate.isdecimal():
        wanted = int(options.speculate)
    elif options.speculate != "lookup":
        wanted = load_decoder(options.speculate, threads=options.threads)
    quick = lm.with_speculation(wanted)
    texts = passages(lm, options.text.read_text(encoding="utf-8"), options.prompts, options.passage)
    copies, frees = [copying(lm, text) for text in texts], [lm.tokenizer.encode(text) for text in texts]
    lm.generate(frees[0], max_tokens=8, ignore_eos=True)
    works = {
        "copy": measure(lm, quick, copies, temperature=0.0, max_tokens=options.answer),
        "free": measure(lm, quick, frees, temperature=0.0, max_tokens=options.answer),
        "drawn": measure(lm, quick, frees, temperature=1.0, max_tokens=options.answer),
    }
    told = {name: account(name, pairs) for name, pairs in works.items()}
    result = {
        "benchmark": "speculation",
        "model": options.model,
        "network": type(lm.decoder).__name__,
        "weights": options.weights,
        "kv": lm.kv_dtype,
        "window": options.window,
        "speculate": options.speculate,
        "greedy_tokens_compared": told["copy"]["tokens"] + told["free"]["tokens"],
        "greedy_identical": told["copy"]["identical"] and told["free"]["identical"],
        "works": told,
        **describe_machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
