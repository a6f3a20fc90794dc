"""Methods read what they say, and answers are counted as they fell."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sash.attention.pattern import AttentionPattern
from sash.engine.overlap import Overlap
from sash.errors import PinsError, UsageError, WindowError
from sash.evaluation.methods import DESCRIPTIONS, METHODS, Reading, head_and_tail, methods, window_of
from sash.evaluation.prompts import Source, Trial
from sash.evaluation.trials import Cell, Grid, ask, measure, wilson
from sash.lm import LM
from tests.conftest import ByteTokenizer, small_config, small_decoder

WINDOW = 150
TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds it. " * 12


def make_lm(*windows: int | None) -> LM:
    patterns = [AttentionPattern(window=window) for window in windows or (None, None)]
    return LM(small_decoder(small_config(patterns, vocab_size=259), seed=3), ByteTokenizer(), name="small", chunk=64)


def made(length: int = 400, depth: float = 0.3, n: int = 3) -> list[Trial]:
    grid = Grid(tasks=("passkey",), lengths=(length,), depths=(depth,), n_trials=n)
    return grid.trials(Source(ByteTokenizer(), TEXT), "passkey", length, depth)


def test_every_method_is_described():
    assert list(METHODS) == list(DESCRIPTIONS)


def test_methods_read_over_the_same_weights_what_they_say():
    lm = make_lm()
    trial = made()[0]
    by_name = {method.name: method for method in methods(lm, list(METHODS), WINDOW)}
    windows = {name: method.lm.config.windows for name, method in by_name.items()}
    assert windows["full"] == windows["own"] == (None, None)
    assert by_name["hierarchy"].lm.config.hierarchy is not None
    assert {windows[name] for name in METHODS if name not in ("full", "own")} == {(WINDOW, WINDOW)}
    weights = {method.lm.decoder.tok_embeddings.weight.data_ptr() for method in by_name.values()}  # type: ignore[union-attr]
    assert len(weights) == 1
    whole = list(trial.ids)
    assert by_name["full"].reading(trial) == by_name["window"].reading(trial) == Reading(ids=whole)
    assert by_name["sinks"].reading(trial) == Reading(ids=whole, pins=(range(4),))
    assert by_name["pins"].reading(trial) == Reading(ids=whole, pins=(range(4), trial.span))
    seers = by_name["global"].reading(trial)
    assert (seers.ids, seers.pins, seers.seers) == (whole, (range(4),), (trial.question, "answer"))
    assert by_name["overlap"].lm.overlap == Overlap(window=WINDOW, stride=WINDOW // 4)
    short = by_name["truncate"].reading(trial).ids
    assert (len(short) + trial.n_answer, by_name["truncate"].reading(trial).pins) == (WINDOW, ())
    assert short == whole[: len(short) // 2] + whole[-(len(short) - len(short) // 2) :]


def test_a_models_own_windows_are_left_to_it():
    lm = make_lm(20, None)
    full, window = methods(lm, ["full", "window"])
    assert full.lm.config.windows == (None, None)
    assert window.lm is lm
    assert window_of(lm) == 20


def test_what_fits_is_not_cut():
    trial = Trial(ids=tuple(range(10)), span=range(2, 4), question=range(8, 10), answer="x", n_answer=6)
    assert head_and_tail(trial, 16) == list(range(10))
    assert head_and_tail(trial, 15) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    with pytest.raises(UsageError, match="no room"):
        head_and_tail(trial, 7)


def test_methods_that_cannot_be_are_refused():
    lm = make_lm()
    with pytest.raises(UsageError, match="'telepathy' is no method: use full, own, window"):
        methods(lm, ["window", "telepathy"], 16)
    with pytest.raises(UsageError, match="no methods"):
        methods(lm, [], 16)
    with pytest.raises(WindowError, match="no window of its own"):
        methods(lm, ["full"])
    (pins,) = methods(lm, ["pins"], 16)
    with pytest.raises(PinsError, match="budget is 8"):
        ask(pins, made())


def test_answers_are_those_of_each_prompt_alone_however_they_are_read_together():
    lm = make_lm()
    for method in methods(lm, ["window", "pins", "overlap", "global", "hierarchy", "recall"], WINDOW):
        trials = [*made(200, 0.0, n=2), *made(200, 0.5, n=1), *made(210, 0.0, n=1)]
        alone = []
        for trial in trials:
            read = method.reading(trial)
            flags = {"pins": read.pins, "pin_budget": read.budget, "global_": read.seers}
            text = method.lm.generate(read.ids, **flags, temperature=0.0, max_tokens=trial.n_answer).text
            alone.append(" ".join(text.split())[:4])
        right = [
            replace(trial, answer=text if at % 2 else "#")
            for at, (trial, text) in enumerate(zip(trials, alone, strict=True))
        ]
        assert ask(method, right) == [at % 2 == 1 for at in range(len(trials))]


def test_a_grid_is_measured_cell_by_cell_until_it_is_cancelled():
    lm = make_lm()
    ways = methods(lm, ["full", "window"], WINDOW)
    grid = Grid(tasks=("passkey", "format"), lengths=(200, 240), depths=(0.0, 1.0), n_trials=2)
    read: list[int] = []
    cells = list(
        measure(ways, Source(lm.tokenizer, TEXT), grid, progress=read.append, cancelled=lambda: len(read) >= 9)
    )
    kinds = [(cell.length, cell.task, cell.depth, cell.method) for cell in cells]
    expected = [
        (length, task, depth, way.name)
        for length in (200, 240)
        for task in ("passkey", "format")
        for depth in (0.0, 1.0)
        for way in ways
    ]
    assert kinds == expected[: len(kinds)]
    assert 0 < len(kinds) < len(expected)
    assert all(cell.of == 2 for cell in cells)
    assert all(0 < count <= 480 for count in read)


def test_cells_of_a_distance():
    lm = make_lm()
    grid = Grid(tasks=("copying",), distances=(WINDOW - 1, WINDOW, 2 * WINDOW), before=20, n_trials=2)
    cells = list(measure(methods(lm, ["window"], WINDOW), Source(lm.tokenizer, TEXT), grid))
    assert [(cell.distance, cell.depth) for cell in cells] == [(WINDOW - 1, None), (WINDOW, None), (2 * WINDOW, None)]
    assert cells[1].to_json(WINDOW)["distance_windows"] == 1.0


def test_the_interval_of_wilson_holds_what_it_should():
    # 8 of 10: 0.4902 to 0.9433 (Wilson 1927; the score interval of any table of them).
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(500, 1000)[1] - wilson(500, 1000)[0] < 0.07


def test_cells_add_up():
    one = Cell(method="m", task="t", length=5, distance=10.0, depth=0.5, right=1, of=2, seconds=1.0)
    both = one.plus(replace(one, right=3, of=6, distance=20.0))
    assert (both.right, both.of, both.distance, both.share) == (4, 8, 17.5, 0.5)
    assert math.isnan(replace(one, right=0, of=0).share)


def test_no_trials_are_refused():
    with pytest.raises(UsageError, match="1 or more"):
        Grid(tasks=("passkey",), n_trials=0)
