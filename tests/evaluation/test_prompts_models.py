"""The questions on real checkpoints: full attention answers them, a window alone does not, pins do."""

from __future__ import annotations

from pathlib import Path

import pytest

from sash.evaluation.methods import methods
from sash.evaluation.prompts import Source
from sash.evaluation.trials import Grid, ask
from sash.loading import load_decoder

CHAPTERS = Path(__file__).parents[2] / "examples" / "emma_chapters_1_to_5.txt"
WINDOW, N = 64, 6


@pytest.mark.models
@pytest.mark.parametrize("model", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_what_stands_four_windows_back_is_told_where_it_is_seen_or_pinned(model: str):
    lm = load_decoder(model)
    source = Source(lm.tokenizer, CHAPTERS.read_text(encoding="utf-8"))
    right = {"full": 0, "window": 0, "pins": 0}
    for task in ("passkey", "copying", "format"):
        trials = Grid(tasks=(task,), n_trials=N).trials(source, task, 4 * WINDOW, 0.0)
        for method in methods(lm, list(right), WINDOW):
            right[method.name] += sum(ask(method, trials) or [])
    assert right["full"] >= 0.75 * 3 * N
    assert right["window"] <= 1
    assert right["pins"] >= 0.8 * right["full"]
