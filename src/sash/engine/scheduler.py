"""Who runs in the next step: a pure state machine. No torch, no clock; it alone changes the state of sequences.

First come, first served: whoever waits at the head of the queue is the next to get a row. Sequences that write take
one token each, in every step; those that read take what is left of the token budget. Where the network's numbers
depend on chunks, a request's chunks always lie at the same places, whoever else is running, so that its tokens cannot
depend on its neighbours' prompts. Where they do not, prompts are read in small slices while somebody writes: as large
as they were told, or as a step has time for (`sash.engine.tempo`), which only changes when tokens come.

Readers take turns: in every other step the one that came first is served first, in the others the one that has least
left to read. So a short prompt need not wait for a long one, and a long one gets half of the reading at least.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from sash.engine.admission import Admission, Cost, Room
from sash.engine.request import Event, FinishReason, Lost, Request, Result, Sequence, Token, Work
from sash.engine.tempo import Tempo
from sash.errors import SashError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How prompts are read.

    Attributes:
        chunk: tokens of a prompt that are read at once.
        budget: tokens of a step, of all sequences; something is read even where it holds less.
        slice: prompt tokens of a step while somebody writes; None for as many as the budget holds.
        anywhere: the lanes whose chunks may end anywhere, since their numbers depend on no chunks. Chunks of all others
            end at multiples of `chunk` from the beginning of their sequence, even where that is more than a slice.
    """

    chunk: int = 512
    budget: int = 512
    slice: int | None = None
    anywhere: Callable[[Hashable], bool] | None = None

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise UsageError(f"a chunk is 1 token or more; got {self.chunk}")
        if self.slice is not None and self.slice < 1:
            raise UsageError(f"a slice is 1 token or more; got {self.slice}")

    def allowance(self, n_writing: int) -> int:
        """Prompt tokens of a step in which so many sequences write, but for a first chunk that is longer.

        >>> Pace(budget=512).allowance(8), Pace(slice=128).allowance(8), Pace(slice=128).allowance(0)
        (504, 128, 512)
        """
        left = max(1, self.budget - n_writing)
        return left if self.slice is None or not n_writing else min(self.slice, left)

    def count(self, sequence: Sequence, left: int, *, first: bool) -> int:
        """How many tokens a sequence reads next where `left` may be read; 0 where its chunk is longer.

        `first` says that nobody else reads in this step: then it does, whatever its chunk.
        """
        position = sequence.position
        end = position + sequence.most
        if self.free(sequence):
            return min(self.chunk, left, end - position)
        count = min(self.chunk - position % self.chunk, end - position)
        return count if first or count <= left else 0

    def free(self, sequence: Sequence) -> bool:
        """Whether a sequence's chunks may end anywhere."""
        return self.anywhere is not None and self.anywhere(sequence.lane)


class Scheduler:
    """Sequences that wait, those that run, and what they share.

    Attributes:
        pace: how prompts are read.
        admission: who may start.
        tempo: how long steps take; None where that is nobody's business.
        short: whether somebody waits for want of a row or of memory.
    """

    def __init__(
        self,
        rows: Iterable[int],
        chunk: int = 512,
        token_budget: int | None = None,
        *,
        pace: Pace | None = None,
        room: Room | None = None,
        cost: Cost | None = None,
        tempo: Tempo | None = None,
    ) -> None:
        """`rows` are the free cache rows; a prompt is read by `chunk` tokens, all prompts by `token_budget` a step.

        `pace` says more about that, and is used instead. Without `cost` only rows are counted, and no bytes. Where
        there is a `tempo`, it says how much is read while somebody writes.
        """
        self.pace = pace or Pace(chunk=chunk, budget=max(chunk, token_budget or chunk))
        self.admission = Admission(rows, room or Room(), cost)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.tempo = tempo
        self.short = False
        self._n_steps = 0
        self._measured = False

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    @property
    def n_waiting(self) -> int:
        """Sequences without a row."""
        return len(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Sequences with a row, in the order they came."""
        return tuple(self._running)

    def submit(self, request: Request, lane: Hashable = None) -> Sequence:
        """Queue a request.

        Raises:
            DoesNotFitError: it could not run even if it were alone.
        """
        return self.enqueue(Sequence(request, lane))

    def enqueue(self, sequence: Sequence) -> Sequence:
        """Queue a sequence that was made elsewhere; see `submit`."""
        if sequence.needs is None:
            sequence.needs = self.admission.check(sequence.lane, sequence.request.longest)
        self._waiting.append(sequence)
        return sequence

    def admit(self) -> list[Sequence]:
        """Give rows to those that wait, in the order they came, as far as there is room; those that got one.

        Whoever leaves the reading to another keeps its place meanwhile, and those behind it need not wait for that.
        """
        admitted, following = [], []
        while self._waiting:
            if self._waiting[0].following:
                following.append(self._waiting.popleft())
            elif self.admission.admit(self._waiting[0]):
                admitted.append(self._waiting.popleft())
            else:
                break
        self.short = bool(self._waiting)
        self._waiting.extendleft(reversed(following))
        self._running += admitted
        return admitted

    def resume(self, sequence: Sequence, n_read: int) -> None:
        """Note that a row was given the first `n_read` tokens of its sequence from elsewhere.

        Raises:
            UsageError: it has read something already, or that is all it knows.
        """
        if sequence.n_read or not 0 < n_read < sequence.n_known:
            raise UsageError(f"a sequence of {sequence.n_known} tokens cannot go on after {n_read}")
        sequence.n_read = sequence.n_reused = n_read

    def schedule(self) -> list[Work]:
        """The next step of those with a row: first those that write, in the order they came, then those that read.

        Where an earlier step has gone ahead of somebody's tokens, the step is theirs alone: it takes next to no time.
        """
        for sequence in self._running:
            sequence.settle()
        ahead = [Work(sequence, 1, True, ahead=True) for sequence in self._running if sequence.ahead]
        if ahead:
            return ahead
        writing = [Work(sequence, 1, True) for sequence in self._running if not sequence.reading]
        readers = [sequence for sequence in self._running if sequence.reading]
        if self._for_themselves(len(writing), len(readers)):
            return writing
        shortest_first = sorted(readers, key=lambda sequence: sequence.n_unread)
        if readers and self._n_steps % 2 == 0:
            shortest_first.remove(readers[0])
            shortest_first.insert(0, readers[0])
        self._n_steps += 1
        return writing + self._read(shortest_first, len(writing))

    def _for_themselves(self, n_writing: int, n_reading: int) -> bool:
        """Whether those that write have this step for themselves, to see what it takes; never twice in a row."""
        tempo = self.tempo
        both = bool(n_writing and n_reading)
        self._measured = both and not self._measured and tempo is not None and tempo.asks(n_writing)
        return self._measured

    def _read(self, readers: list[Sequence], n_writing: int) -> list[Work]:
        """What is read in a step beside so many that write, by the first of those that read."""
        left, tempo = self.pace.allowance(n_writing), self.tempo if n_writing else None
        spare = None if tempo is None else tempo.spare(n_writing, len(readers), hurry=self.short)
        n_read = 0
        reading: list[Work] = []
        for sequence in readers:
            most = left
            if tempo is not None and self.pace.free(sequence):
                fits = tempo.fits(sequence, spare, n_writing, n_read)
                most = min(left, fits if reading else max(1, fits))
            count = self.pace.count(sequence, most, first=not reading) if most > 0 else 0
            if count:
                left, n_read = left - count, n_read + count
                spare = None if tempo is None or spare is None else spare - count * (tempo.cost(sequence) or 0.0)
                reading.append(Work(sequence, count, count == sequence.n_unread))
        return reading

    def commit(self, results: Iterable[tuple[Work, Result]]) -> list[Event]:
        """Take over what a step came to."""
        events = []
        for work, result in results:
            sequence = work.sequence
            if sequence.finish_reason is not None:
                continue
            if isinstance(result, Lost):
                sequence.lose()
                sequence.drafts, sequence.ahead = (), False
                sequence.prompt_logprobs.clear()
                continue
            read = sequence.advance(work.n_tokens)
            if isinstance(result, SashError):
                events.append(self.fail(sequence, result, read))
                continue
            if work.drafts:
                sequence.drafts = work.drafts
                sequence.n_drafted += len(work.drafts)
            if result is not None:
                self._write(sequence, result)
            events.append(Event(sequence, read, result))
        return events

    def fail(self, sequence: Sequence, error: SashError, n_read: int = 0) -> Event:
        """End a sequence by an error."""
        if sequence.finish_reason is None:
            sequence.error = error
            self._finish(sequence, "error")
        return Event(sequence, n_read, None)

    def cancel(self, sequence: Sequence, reason: FinishReason = "cancelled") -> None:
        """End a sequence now, waiting or running."""
        if sequence.finish_reason is None:
            self._finish(sequence, reason)

    def released(self) -> list[int]:
        """Rows that ended sequences gave back since the last call; they are free again once this returns them."""
        return self.admission.released()

    def _write(self, sequence: Sequence, token: Token) -> None:
        request = sequence.request
        sequence.output_ids.append(token.token_id)
        sequence.seen.extend((token.token_id,))
        sequence.counts.extend((token.token_id,))
        sequence.ahead = sequence.drafts[:1] == (token.token_id,)
        sequence.drafts = sequence.drafts[1:] if sequence.ahead else ()
        sequence.n_accepted += sequence.ahead
        if token.ends or (token.token_id in request.stop_ids and not request.params.ignore_eos):
            self._finish(sequence, "stop")
        elif len(sequence.output_ids) >= request.params.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        sequence.drafts, sequence.ahead = (), False
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self.admission.release(sequence)
