"""The scheduler alone, without a network: fair, bounded, and every row given back."""

from __future__ import annotations

import sys
from subprocess import run

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.engine.request import Request, Token
from sash.engine.scheduler import Scheduler
from sash.errors import EmptyPromptError, SashError, UsageError
from sash.sampling import SamplingParams


def request(n: int, max_tokens: int = 3, stop: frozenset[int] = frozenset()) -> Request:
    return Request(prompt_ids=tuple(range(n)), params=SamplingParams(max_tokens=max_tokens), stop_ids=stop)


def step_of(scheduler: Scheduler):  # type: ignore[no-untyped-def]
    scheduler.admit()
    return scheduler.schedule()


def answer(works, token: int = 7):  # type: ignore[no-untyped-def]
    return [(work, Token(token, -1.0) if work.writes else None) for work in works]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=8),
    rows=st.integers(1, 3),
    chunk=st.integers(1, 9),
    budget=st.integers(1, 30),
    data=st.data(),
)
def test_every_request_ends_once_and_every_row_comes_back(lengths, rows, chunk, budget, data) -> None:  # type: ignore[no-untyped-def]
    scheduler = Scheduler(list(range(rows)), chunk, budget)
    sequences = [scheduler.submit(request(n, m)) for n, m in lengths]
    free = set(range(rows))
    for _ in range(2000):
        if scheduler.idle:
            break
        works = step_of(scheduler)
        assert works
        taken = [work.sequence.row for work in works]
        assert len(set(taken)) == len(taken) <= rows
        free -= set(taken)
        reading = [work for work in works if work.sequence.reading]
        assert sum(work.n_tokens for work in reading) <= max(chunk, budget)
        for work in reading:  # chunks lie where they lie for a request alone
            assert work.sequence.n_read % chunk == 0
            assert work.n_tokens == min(chunk, len(work.sequence.request.prompt_ids) - work.sequence.n_read)
        scheduler.commit(answer(works))
        if data.draw(st.integers(0, 15)) == 0:
            scheduler.cancel(data.draw(st.sampled_from(sequences)))
        free |= set(scheduler.released())
    assert scheduler.idle
    assert free == set(range(rows))
    for sequence, (_, max_tokens) in zip(sequences, lengths, strict=True):
        assert sequence.finish_reason in ("length", "cancelled")
        if sequence.finish_reason == "length":
            assert len(sequence.output_ids) == max_tokens


def test_first_come_first_served() -> None:
    scheduler = Scheduler([0], chunk=4)
    one, two = scheduler.submit(request(6, 1)), scheduler.submit(request(2, 1))
    order = []
    while not scheduler.idle:
        works = step_of(scheduler)
        order += [work.sequence for work in works]
        scheduler.commit(answer(works))
        scheduler.released()
    assert order == [one, one, two]


def test_a_stop_token_ends_and_an_error_ends_only_its_own() -> None:
    scheduler = Scheduler([0, 1], chunk=8, token_budget=16)
    one, two = scheduler.submit(request(2, 9, frozenset({7}))), scheduler.submit(request(2, 2))
    works = step_of(scheduler)
    scheduler.commit([(works[0], Token(7, 0.0)), (works[1], Token(7, 0.0))])
    assert one.finish_reason == "stop"
    assert two.finish_reason is None
    works = step_of(scheduler)
    scheduler.commit([(works[0], SashError("not a number"))])
    assert two.finish_reason == "error"
    assert str(two.error) == "not a number"
    assert sorted(scheduler.released()) == [0, 1]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(EmptyPromptError):
        request(0)
    with pytest.raises(UsageError, match="chunk"):
        Scheduler([0], chunk=0)


def test_the_scheduler_knows_no_torch() -> None:
    code = "import sys, sash.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
