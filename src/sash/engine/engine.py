"""Submit, step, cancel: scheduler and runner put together. One thread at a time."""

from __future__ import annotations

from sash.engine.request import Event, FinishReason, Request, Sequence
from sash.engine.runner import Runner
from sash.engine.scheduler import Scheduler
from sash.network.cache import KVCache
from sash.network.packed import Network


class Engine:
    """Continuous batching over the rows of a rolling buffer cache."""

    def __init__(self, decoder: Network, cache: KVCache, *, chunk: int = 512, rows: list[int] | None = None) -> None:
        """`rows` are the cache rows it may give out; by default it takes all that are free."""
        if rows is None:
            rows = [cache.allocate() for _ in range(cache.n_free)]
        self._runner = Runner(decoder, cache)
        self._scheduler = Scheduler(rows, chunk)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler.idle

    def submit(self, request: Request) -> Sequence:
        """Queue a request."""
        return self._scheduler.submit(request)

    def cancel(self, sequence: Sequence, reason: FinishReason = "cancelled") -> None:
        """End a sequence; its row is free before the next step."""
        self._scheduler.cancel(sequence, reason)
        self._clear(sequence)

    def step(self) -> list[Event]:
        """Run one step of all that can run."""
        events = self._scheduler.commit(self._runner.run(self._scheduler.schedule()))
        for event in events:
            if event.sequence.finish_reason is not None:
                self._clear(event.sequence)
        return events

    def _clear(self, sequence: Sequence) -> None:
        self._runner.forget(sequence)
        for row in self._scheduler.released():
            self._runner.cache.wipe(row)
