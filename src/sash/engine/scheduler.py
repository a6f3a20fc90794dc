"""Who runs in the next step: a pure state machine. No torch, no clock; it alone changes the state of sequences.

First come, first served. Sequences that write take one token each a step; of those that read, as many as the token
budget holds take a chunk. A request's chunks always lie at the same places, whoever else is running, so that its
numbers cannot depend on its neighbours' prompts.
"""

from __future__ import annotations

from collections import deque

from sash.engine.request import Event, FinishReason, Request, Sequence, Token, Work
from sash.errors import SashError, UsageError


class Scheduler:
    """Sequences that wait, those that run, and the cache rows between them."""

    def __init__(self, rows: list[int], chunk: int = 512, token_budget: int | None = None) -> None:
        """`rows` are the free cache rows; a prompt is read by `chunk` tokens, all prompts by `token_budget` a step."""
        if chunk < 1:
            raise UsageError(f"a chunk is 1 token or more; got {chunk}")
        self._free = deque(rows)
        self._chunk = chunk
        self._budget = max(chunk, token_budget or chunk)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._released: list[int] = []

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def submit(self, request: Request) -> Sequence:
        """Queue a request."""
        sequence = Sequence(request)
        self._waiting.append(sequence)
        return sequence

    def schedule(self) -> list[Work]:
        """The next step: those that write first, in the order they came, then chunks of those that read."""
        self._admit()
        writing = [Work(sequence, 1, True) for sequence in self._running if not sequence.reading]
        reading, budget = [], self._budget
        for sequence in self._running:
            if not sequence.reading:
                continue
            count = min(self._chunk, sequence.n_unread)
            if count > budget:
                break
            budget -= count
            reading.append(Work(sequence, count, count == sequence.n_unread))
        return writing + reading

    def commit(self, results: list[tuple[Work, Token | SashError | None]]) -> list[Event]:
        """Take over what a step computed.

        Args:
            results: of each work of the step, the token that was sampled, an error that ends the sequence, or None
                where only a part of a prompt was read.
        """
        events = []
        for work, result in results:
            sequence = work.sequence
            if sequence.finish_reason is not None:
                continue
            read = work.n_tokens if sequence.reading else 0
            sequence.n_read += work.n_tokens
            if isinstance(result, SashError):
                sequence.error = result
                self._finish(sequence, "error")
                events.append(Event(sequence, read, None))
                continue
            if result is not None:
                self._write(sequence, result)
            events.append(Event(sequence, read, result))
        return events

    def cancel(self, sequence: Sequence, reason: FinishReason = "cancelled") -> None:
        """End a sequence now, waiting or running."""
        if sequence.finish_reason is None:
            self._finish(sequence, reason)

    def released(self) -> list[int]:
        """Rows that ended sequences gave back since the last call; they are free again once this returns them."""
        rows, self._released = self._released, []
        self._free.extend(rows)
        return rows

    def _admit(self) -> None:
        while self._waiting:
            sequence = self._waiting[0]
            if sequence.request.row is not None:
                sequence.row = sequence.request.row
            elif self._free:
                sequence.row = self._free.popleft()
            else:
                return
            self._running.append(self._waiting.popleft())

    def _write(self, sequence: Sequence, token: Token) -> None:
        sequence.output_ids.append(token.token_id)
        sequence.seen.extend((token.token_id,))
        if token.token_id in sequence.request.stop_ids and not sequence.request.params.ignore_eos:
            self._finish(sequence, "stop")
        elif len(sequence.output_ids) >= sequence.request.params.max_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finish_reason = reason
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence.row is not None and not sequence.request.keep_row:
            self._released.append(sequence.row)
