"""Global tokens on a real checkpoint: what an answer that sees the log recalls."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sash.evaluation.prompts import Source, plant
from sash.loading import load_decoder

NOVEL = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
WINDOW = 128


@pytest.mark.models
def test_an_answer_that_is_global_recalls_what_slid_out():
    """A key near the head of 4 windows of text; what has to see it is what copies it, token by token."""
    lm = load_decoder("smollm2-135m-instruct", window=WINDOW)
    source = Source(lm.tokenizer, NOVEL.read_text(encoding="utf-8"))
    right = dict.fromkeys(("sinks", "question", "answer"), 0)
    for seed in range(2):
        rng = random.Random(seed)
        trial = source.at_depth(plant("passkey", rng), rng, 4 * WINDOW, 0.05)
        last = range(len(trial.ids) - 1, len(trial.ids))
        for name, seers in (("sinks", ()), ("question", (trial.question,)), ("answer", (last, "answer"))):
            done = lm.generate(
                list(trial.ids), pins=[range(4)], global_=seers, temperature=0.0, max_tokens=trial.n_answer
            )
            right[name] += trial.right(done.text)
    assert right == {"sinks": 0, "question": 0, "answer": 2}
