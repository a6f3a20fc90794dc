"""Whole lives of schedulers, drawn from a seed: who starves, what leaks, what is exceeded. No network, no clock.

`SASH_SIMULATION_SEEDS=10000` (make test-simulation) is a million requests.
"""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from collections.abc import Hashable
from collections.abc import Sequence as Many

import pytest

from sash.engine.admission import Room
from sash.engine.proposer import CHEAP_ROWS, with_drafts
from sash.engine.request import Lost, Request, Result, Sequence, Token, Work
from sash.engine.scheduler import Pace, Scheduler
from sash.engine.tempo import Tempo
from sash.errors import DoesNotFitError, NumericalError
from sash.sampling import SamplingParams

SEEDS = int(os.environ.get("SASH_SIMULATION_SEEDS", "60"))
REQUESTS = 100
PART = 250
STATES = {
    "refused", "waiting", "reading", "writing", "resumed", "lost", "stop", "length", "error",
    "cancelled while waiting", "cancelled while reading", "cancelled while writing",
    "drafted", "ahead", "cancelled ahead",
    "held back by memory", "held back by rows", "held back by lanes", "shared step", "slice", "overtaken",
    "measured",
}  # fmt: skip
END = 0


class Guesses:
    """Guesses one of the tokens that are written, or one that never is."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.tokens: list[int] = []

    def extend(self, ids: Many[int]) -> None:
        self.tokens += ids

    def cut(self, length: int) -> None:
        raise AssertionError("nobody takes anything back")

    def propose(self, limit: int) -> list[int]:
        assert limit > 0
        return [self.draw.choice([7, 7, 7, 5]) for _ in range(self.draw.randint(0, limit + 1))]


class World:
    """A scheduler and all that happens to it, decided by a seed."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.n_rows = draw.randint(1, 6)
        self.chunk = draw.randint(1, 12)
        self.saturates = draw.choice([None, 10, 40])
        self.first = draw.choice([0, 16])
        memory = draw.choice([None, self.cost(None, 60), 3 * self.cost(None, 40) + 7])
        self.room = Room(memory=memory, max_lanes=draw.choice([None, 1, 2]))
        self.pace = Pace(
            chunk=self.chunk,
            budget=draw.randint(1, 24),
            slice=draw.choice([None, draw.randint(1, 12)]),
            anywhere=draw.choice([None, lambda lane: True, lambda lane: lane is None]),
        )
        self.tempo = draw.choice([None, Tempo(), Tempo(1.5, 9.0)])
        self.scheduler = Scheduler(
            range(self.n_rows), pace=self.pace, room=self.room, cost=self.cost, tempo=self.tempo
        )  # fmt: skip
        self.accepted: list[Sequence] = []
        self.place: dict[Sequence, int] = {}
        self.queue: deque[Sequence] = deque()
        self.rows: dict[Sequence, int] = {}
        self.unserved: Counter[Sequence] = Counter()
        self.seen: Counter[str] = Counter()
        self.trace: list[object] = []
        self.measured = False

    def cost(self, lane: Hashable, length: int) -> int:
        """Bytes of a sequence: rings that hold at most so many tokens, or blocks that grow."""
        held = length if self.saturates is None else self.saturates
        return self.first + held * (1 if lane is None else 2)

    def run(self) -> None:
        left, idle_for = REQUESTS, self.draw.random()
        while left or not self.scheduler.idle:
            while left and (self.scheduler.idle or self.draw.random() < idle_for):
                left -= 1
                self.arrive()
            self.cancel_some()
            self.step()
        assert not self.scheduler.running
        assert self.scheduler.n_waiting == 0
        assert self.scheduler.admission.n_free == self.n_rows
        assert self.scheduler.admission.reserved == 0
        assert not self.scheduler.admission.lanes
        assert all(sequence.finish_reason is not None for sequence in self.accepted)

    def arrive(self) -> None:
        draw = self.draw
        longest = draw.choice([3, 20, 90])
        params = SamplingParams(max_tokens=draw.choice([1, 3, 12]))
        request = Request(
            prompt_ids=tuple(range(1, 1 + draw.randint(1, longest))),
            params=params,
            stop_ids=frozenset({END}),
            proposer=Guesses(draw) if draw.random() < 0.4 else None,
        )
        lane = draw.choice([None, None, None, "a", "b", "c"])
        try:
            sequence = self.scheduler.submit(request, lane)
        except DoesNotFitError:
            assert self.room.memory is not None
            assert self.cost(lane, request.longest) > self.room.memory
            self.seen["refused"] += 1
            return
        self.place[sequence] = len(self.accepted)
        self.accepted.append(sequence)
        self.queue.append(sequence)

    def cancel_some(self) -> None:
        if not self.accepted or self.draw.random() > 0.05:
            return
        sequence = self.draw.choice(self.accepted)
        if sequence.finish_reason is None:
            state = "waiting" if sequence.row is None else "reading" if sequence.reading else "writing"
            self.seen["cancelled ahead"] += sequence.ahead
            self.scheduler.cancel(sequence)
            assert not sequence.ahead
            self.seen[f"cancelled while {state}"] += 1
            self.give_back([sequence])
            assert sequence not in self.scheduler.running

    def give_back(self, ended: list[Sequence]) -> None:
        rows = [self.rows.pop(sequence) for sequence in ended if sequence in self.rows]
        assert sorted(self.scheduler.released()) == sorted(rows)

    def step(self) -> None:
        self.admit()
        running = self.scheduler.running
        works = self.scheduler.schedule()
        self.check_step(works, running)
        works = self.guess(works)
        results = [(work, self.result(work)) for work in works]
        if self.tempo is not None and self.draw.random() < 0.9:
            self.tempo.note(works, self.draw.choice([0.0, 0.01, 0.02, 3.0]))
        events = self.scheduler.commit(results)
        for work, result in results:
            if isinstance(result, Lost):
                assert work.sequence.n_read == 0
        ended = [event.sequence for event in events if event.sequence.finish_reason is not None]
        for sequence in ended:
            self.seen[str(sequence.finish_reason)] += 1
        self.give_back(ended)
        self.trace.append([(work.sequence.row, work.n_tokens, work.writes) for work in works])

    def guess(self, works: list[Work]) -> list[Work]:
        """The same step with guesses, few enough, and for those that write only."""
        drafted = with_drafts(works)
        assert [(work.sequence, work.n_tokens, work.ahead) for work in drafted] == [
            (work.sequence, work.n_tokens, work.ahead) for work in works
        ]
        writing = [work for work in drafted if not work.sequence.reading]
        if any(work.drafts for work in drafted):
            assert sum(work.n_rows for work in writing) <= CHEAP_ROWS
            self.seen["drafted"] += 1
        for work in drafted:
            sequence, proposer = work.sequence, work.sequence.request.proposer
            if work.drafts:
                assert proposer is not None
                assert not sequence.reading
                assert proposer.tokens == [*sequence.request.prompt_ids, *sequence.output_ids]
                assert len(sequence.output_ids) + len(work.drafts) < sequence.request.params.max_tokens
        return drafted

    def admit(self) -> None:
        for sequence in self.scheduler.admit():
            assert sequence.row not in self.rows.values()
            assert sequence.row in range(self.n_rows)
            self.rows[sequence] = sequence.row
            if self.draw.random() < 0.2 and sequence.n_known > 1:
                self.scheduler.resume(sequence, self.draw.randint(1, sequence.n_known - 1))
                self.seen["resumed"] += 1
        # First come, first served: whoever started came after all that started before.
        places = [self.place[sequence] for sequence in self.rows]
        assert places == sorted(places)
        while self.queue and (self.queue[0].row is not None or self.queue[0].finish_reason is not None):
            self.queue.popleft()
        assert bool(self.queue) == bool(self.scheduler.n_waiting)
        if self.queue:
            assert self.place[self.queue[0]] > max(places, default=-1)
            self.seen["waiting"] += 1
            self.check_held_back(self.queue[0])
        reserved = sum(self.cost(sequence.lane, sequence.request.longest) for sequence in self.rows)
        assert reserved == self.scheduler.admission.reserved
        assert self.room.memory is None or reserved <= self.room.memory

    def check_held_back(self, head: Sequence) -> None:
        """Whoever waits at the head does so for want of something."""
        lanes = {sequence.lane for sequence in self.rows} - {None}
        reserved = self.scheduler.admission.reserved
        if len(self.rows) == self.n_rows:
            self.seen["held back by rows"] += 1
        elif self.room.memory is not None and reserved + self.cost(head.lane, head.request.longest) > self.room.memory:
            self.seen["held back by memory"] += 1
        else:
            assert self.room.max_lanes is not None
            assert head.lane not in {*lanes, None}
            assert len(lanes) >= self.room.max_lanes
            self.seen["held back by lanes"] += 1

    def check_step(self, works: list[Work], running: tuple[Sequence, ...]) -> None:
        assert works or not running
        sequences = [work.sequence for work in works]
        assert len(set(sequences)) == len(sequences)
        ahead = [sequence for sequence in running if sequence.ahead]
        if ahead:
            # Nothing is computed for them, so nobody has to wait, and they wait for nobody.
            assert works == [Work(sequence, 1, True, ahead=True) for sequence in ahead]
            self.seen["ahead"] += 1
            return
        writing = [work for work in works if not work.sequence.reading]
        reading = [work for work in works if work.sequence.reading]
        # Whoever writes goes in every step, by one token, and comes first.
        assert [work.sequence for work in writing] == [s for s in running if not s.reading] == sequences[: len(writing)]
        assert all(work.n_tokens == 1 and work.writes for work in writing)
        n_read = sum(work.n_tokens for work in reading)
        assert n_read <= max(self.pace.allowance(len(writing)), reading[0].n_tokens if reading else 0)
        assert n_read + len(writing) <= max(self.pace.budget, len(writing) + 1, len(writing) + self.chunk)
        for work in reading:
            self.check_chunk(work, bool(writing))
        readers = [sequence for sequence in running if sequence.reading]
        if readers:
            # The one that came first is read in every second step at least, whoever else there is; but for those that
            # are measured without anybody that reads, of which no two follow each other.
            first, others = readers[0], [s for s in readers[1:] if s in sequences]
            self.measured = not reading and not self.measured
            assert reading or (self.measured and self.tempo is not None and writing)
            self.seen["measured"] += self.measured
            self.unserved[first] = 0 if first in sequences else self.unserved[first] + (not self.measured)
            assert self.unserved[first] < 2
            self.seen["overtaken"] += first not in sequences and bool(others)
        self.seen["shared step"] += bool(writing and reading)
        self.seen["reading"] += bool(reading)
        self.seen["writing"] += bool(writing)

    def check_chunk(self, work: Work, company: bool) -> None:
        """Chunks lie where they lie for a request alone, or are as small as the slice that company asks for."""
        position, count, unread = work.sequence.position, work.n_tokens, work.sequence.n_unread
        assert 1 <= count <= min(self.chunk, unread)
        assert work.writes == (count == unread)
        if self.pace.anywhere is None or not self.pace.anywhere(work.sequence.lane):
            assert count == min(self.chunk - position % self.chunk, unread)
        elif company and self.pace.slice is not None:
            assert count <= self.pace.slice
            self.seen["slice"] += 1

    def result(self, work: Work) -> Result:
        fate = self.draw.random()
        if fate < 0.01:
            return NumericalError("drawn")
        if fate < 0.02 and work.sequence.reading:
            self.seen["lost"] += 1
            return Lost()
        return Token(END if self.draw.random() < 0.1 else 7, -1.0) if work.writes else None


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_nobody_starves_and_nothing_leaks(first: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(first, min(first + PART, SEEDS)):
        world = World(seed)
        try:
            world.run()
        except BaseException as error:
            error.add_note(f"replay: World({seed}).run()")
            raise
        seen.update(world.seen)
    assert {state for state in STATES if seen[state]} == STATES


def test_a_seed_replays() -> None:
    one, two = World(7), World(7)
    one.run()
    two.run()
    assert one.trace
    assert one.trace == two.trace
    assert [s.output_ids for s in one.accepted] == [s.output_ids for s in two.accepted]
