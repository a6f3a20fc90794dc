"""Slices of prompts by what steps were measured to take, on a machine that is made up: no network, no clock."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sash.engine.request import Request, Sequence, Token, Work
from sash.engine.scheduler import Pace, Scheduler
from sash.engine.tempo import AGAIN, FIRST, ROWS, Tempo
from sash.errors import UsageError
from sash.sampling import SamplingParams

WINDOW = 4096


class Machine:
    """Seconds of a step: the weights, then each token by itself and by what it sees."""

    def __init__(self, tempo: Tempo, *, rows: int = 4) -> None:
        self.weights, self.token, self.key = 0.08, 0.002, 0.25e-6
        pace = Pace(anywhere=lambda lane: True)
        self.scheduler = Scheduler(range(rows), pace=pace, tempo=tempo)
        self.tempo = tempo

    def submit(self, n_prompt: int, n_write: int) -> Sequence:
        request = Request(prompt_ids=tuple(range(n_prompt)), params=SamplingParams(max_tokens=n_write))
        return self.scheduler.submit(request)

    def seconds(self, works: list[Work]) -> float:
        def row(work: Work) -> float:
            return self.token + self.key * min(work.sequence.n_read, WINDOW)

        return self.weights + sum(work.n_tokens * row(work) for work in works)

    def step(self) -> tuple[int, int, float]:
        """Tokens read, tokens of those that write, and what it took."""
        self.scheduler.admit()
        works = self.scheduler.schedule()
        read = sum(work.n_tokens for work in works if work.sequence.reading)
        n_writing, seconds = sum(not work.sequence.reading for work in works), self.seconds(works)
        self.tempo.note(works, seconds)
        self.scheduler.commit([(work, Token(7) if work.writes else None) for work in works])
        self.scheduler.released()
        return read, n_writing, seconds


def beside_one_stream(machine: Machine, n_prompt: int) -> list[tuple[int, float]]:
    """What each step read of a prompt beside a stream, and what it took."""
    machine.submit(100, 10_000)
    for _ in range(8):
        machine.step()
    long = machine.submit(n_prompt, 1)
    steps = []
    while long.finish_reason is None:
        read, n_writing, seconds = machine.step()
        assert n_writing == 1
        steps.append((read, seconds))
    assert sum(read for read, _ in steps) == n_prompt
    return steps


def test_a_step_beside_a_stream_takes_no_longer_than_it_may_however_deep_the_prompt() -> None:
    machine = Machine(Tempo(stretch=2.5))
    alone = machine.weights + machine.token
    steps = beside_one_stream(machine, 16_384)
    assert max(seconds for _, seconds in steps) < 2.6 * alone
    mixed = [read for read, _ in steps if read]
    shallow, deep = mixed[8:16], mixed[-17:-1]
    assert min(shallow) > 1.3 * max(deep)  # tokens that see more take longer, so there are fewer of them
    assert all((read + 1) % ROWS == 0 for read in shallow + deep)
    assert sum(deep) / len(deep) * (machine.token + machine.key * WINDOW) > 1.1 * alone  # and the time is used


def test_those_that_write_are_measured_again_and_readers_wait_for_one_step_only() -> None:
    machine = Machine(Tempo())
    steps = beside_one_stream(machine, 16_384)
    plain = [index for index, (read, _) in enumerate(steps) if not read]
    assert len(plain) >= 3
    assert all(later - earlier == AGAIN + 1 for earlier, later in pairwise(plain))


def test_one_step_that_strayed_makes_no_slice_longer() -> None:
    machine = Machine(Tempo(stretch=2.5))
    machine.submit(100, 10_000)
    machine.submit(100_000, 1)
    usual = [machine.step() for _ in range(200)][-AGAIN:]
    weights, machine.weights = machine.weights, 3 * machine.weights
    while machine.step()[0]:
        pass
    machine.weights = weights
    after = [machine.step() for _ in range(AGAIN)]
    assert all(read for read, _, _ in after)
    assert max(seconds for _, _, seconds in after) < 1.02 * max(seconds for _, _, seconds in usual)


def test_what_a_second_row_costs_is_not_the_price_of_a_token() -> None:
    """One row alone may be quicker by a way of its own: short slices must not seem dear for that."""

    class Jumping(Machine):
        def seconds(self, works: list[Work]) -> float:
            n_rows = sum(work.n_tokens for work in works)
            return self.weights if n_rows == 1 else self.weights + 0.03 + 0.0016 * (-(-n_rows // ROWS) * ROWS)

    machine = Jumping(Tempo())
    machine.submit(100, 10_000)
    machine.submit(100_000, 1)
    for _ in range(40):
        machine.step()
    for _ in range(6):  # the machine is held up, and slices become as short as can be
        works = machine.scheduler.schedule()
        machine.tempo.note(works, 1.0)
        machine.scheduler.commit([(work, Token(7) if work.writes else None) for work in works])
    taken = [machine.step() for _ in range(60)]
    assert all(read >= ROWS - 1 for read, _, _ in taken[30:] if read)
    assert any(read >= 2 * ROWS - 1 for read, _, _ in taken[30:])


def test_each_prompt_that_is_read_adds_as_much_as_those_that_write_take() -> None:
    machine = Machine(Tempo(stretch=2.0, hurry=3.5), rows=5)
    machine.submit(100, 10_000)
    longest = []
    for _ in range(4):
        machine.submit(100_000, 1)
        longest.append(max(seconds for _, _, seconds in [machine.step() for _ in range(40)][16:]))
    alone = machine.weights + machine.token
    assert [round(seconds / alone, 1) for seconds in longest] == pytest.approx([2.0, 3.0, 3.5, 3.5], abs=0.3)


def test_many_prompts_share_the_first_slice_that_nothing_is_known_of() -> None:
    machine = Machine(Tempo(stretch=2.5), rows=16)
    machine.submit(20, 10_000)
    machine.step()
    for _ in range(15):
        machine.submit(400, 1)
    steps = [machine.step() for _ in range(40)]
    alone = machine.weights + machine.token
    assert steps[0] == (0, 1, pytest.approx(alone, rel=0.01))
    assert steps[1][0] == FIRST
    assert all(seconds < 6.1 * alone for _, _, seconds in steps)


def test_slices_follow_a_machine_that_slows_down() -> None:
    machine = Machine(Tempo(stretch=2.5))
    machine.submit(100, 10_000)
    machine.submit(100_000, 1)
    for _ in range(100):
        machine.step()
    machine.token *= 2
    machine.key *= 2
    taken = [machine.step() for _ in range(60)]
    assert all(seconds < 2.6 * (machine.weights + machine.token) for _, _, seconds in taken[8:])
    assert taken[-2][0] == 15
    machine.weights *= 2
    taken = [machine.step() for _ in range(160)]
    assert taken[-2][0] == 31


def test_a_prompt_that_costs_more_has_slices_of_its_own() -> None:
    machine = Machine(Tempo(stretch=2.5))
    machine.key *= 20
    machine.submit(100, 10_000)
    machine.submit(40_000, 1)
    for _ in range(200):
        machine.step()
    machine.submit(40_000, 1)
    taken = [machine.step() for _ in range(80)]
    assert all(seconds < 4.6 * (machine.weights + machine.token) for _, _, seconds in taken[16:])
    assert len({read for read, _, _ in taken[16:]}) > 2


def test_steps_are_longer_while_others_wait_for_a_row() -> None:
    machine = Machine(Tempo(stretch=2.0, hurry=4.0), rows=2)
    machine.submit(100, 10_000)
    machine.submit(100_000, 1)
    for _ in range(40):
        machine.step()
    calm = machine.step()[2]
    machine.submit(10, 1)
    for _ in range(40):
        machine.step()
    assert machine.step()[2] > 1.6 * calm


def test_nobody_waits_for_measurements_that_never_come() -> None:
    scheduler = Scheduler(range(2), pace=Pace(anywhere=lambda lane: True), tempo=Tempo())
    scheduler.submit(Request(prompt_ids=(1,), params=SamplingParams(max_tokens=500)))
    long = scheduler.submit(Request(prompt_ids=tuple(range(640)), params=SamplingParams(max_tokens=1)))
    n_steps = 0
    while long.finish_reason is None:
        scheduler.admit()
        scheduler.commit([(work, Token(7) if work.writes else None) for work in scheduler.schedule()])
        scheduler.released()
        n_steps += 1
    assert n_steps < 60


def test_factors_that_leave_no_time_are_refused() -> None:
    for stretch, hurry in ((1.0, 2.0), (3.0, 2.0)):
        with pytest.raises(UsageError, match="more than 1"):
            Tempo(stretch, hurry)
