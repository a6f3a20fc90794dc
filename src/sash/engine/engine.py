"""Submit, step, cancel: scheduler, lanes and runner put together. One thread at a time."""

from __future__ import annotations

import time
from collections.abc import Hashable

from sash.engine.lanes import Lanes
from sash.engine.proposer import with_drafts
from sash.engine.request import Event, FinishReason, Request, Sequence
from sash.engine.reuse import Reuse
from sash.engine.runner import Runner
from sash.engine.scheduler import Scheduler
from sash.engine.snapshots import Snapshots
from sash.errors import SashError
from sash.network.cache import KVCache
from sash.network.packed import Network


class Steps:
    """Continuous batching over the rows of rolling buffer caches, one cache a lane.

    Attributes:
        scheduler: who runs.
        lanes: where.
    """

    def __init__(
        self, lanes: Lanes, scheduler: Scheduler, snapshots: Snapshots | None = None, *, n_threads: int = 1
    ) -> None:
        """`n_threads` choose tokens at once; `close` ends them."""
        self.lanes, self.scheduler = lanes, scheduler
        self._reuse = Reuse(lanes, snapshots, scheduler.pace.chunk)
        self._runner = Runner(lanes, n_threads)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.scheduler.idle

    def submit(self, request: Request, lane: Hashable = None) -> Sequence:
        """Queue a request.

        Raises:
            DoesNotFitError: it could not run even if it were alone.
        """
        return self.scheduler.submit(request, lane)

    def cancel(self, sequence: Sequence, reason: FinishReason = "cancelled") -> None:
        """End a sequence; its row is free before the next step."""
        if sequence.finish_reason is None:
            self.scheduler.cancel(sequence, reason)
            self._reuse.keep(sequence)
            self._clear(sequence)

    def fail(self, sequence: Sequence, error: SashError) -> None:
        """End a sequence by an error; its row is free before the next step."""
        if sequence.finish_reason is None:
            self.scheduler.fail(sequence, error)
            self._clear(sequence)

    def step(self) -> list[Event]:
        """Admit who can start, and run one step of all that can run."""
        return self.admit() + self.compute()

    def admit(self) -> list[Event]:
        """Give rows to those that wait, as far as there is room; the ends of those that could not start."""
        return self._settled([event for sequence in self.scheduler.admit() if (event := self._start(sequence))])

    def compute(self) -> list[Event]:
        """Run one step of all that have a row."""
        works, began = with_drafts(self.scheduler.schedule()), time.perf_counter()
        results = self._runner.run(works)
        if self.scheduler.tempo is not None:
            self.scheduler.tempo.note(works, time.perf_counter() - began)
        events = self.scheduler.commit(results)
        for event in events:
            self._reuse.keep(event.sequence)
        return self._settled(events)

    def shares(self, request: Request) -> bool:
        """Whether what is read for a request can serve another."""
        return self._reuse.serves(request)

    def close(self) -> None:
        """End its threads; it can do nothing afterwards."""
        self._runner.close()

    def _start(self, sequence: Sequence) -> Event | None:
        """Make ready what an admitted sequence needs; the event of its end, where that cannot be."""
        try:
            self.lanes.open(sequence.lane, self.scheduler.admission.lanes)
        except SashError as error:
            return self.scheduler.fail(sequence, error)
        n_found = self._reuse.find(sequence)
        if n_found:
            self.scheduler.resume(sequence, n_found)
        return None

    def _settled(self, events: list[Event]) -> list[Event]:
        """The events, once the rows of those that ended are empty and free."""
        for event in events:
            if event.sequence.finish_reason is not None:
                self._clear(event.sequence)
        return events

    def _clear(self, sequence: Sequence) -> None:
        self._runner.forget(sequence)
        if sequence.row is not None and not sequence.request.keep_row and sequence.lane in self.lanes:
            self.lanes.of(sequence.lane).cache.wipe(sequence.row)
        self.scheduler.released()


class Engine(Steps):
    """Continuous batching over the rows of one cache."""

    def __init__(self, decoder: Network, cache: KVCache, *, chunk: int = 512, rows: list[int] | None = None) -> None:
        """`rows` are the cache rows it may give out; by default it takes all that are free."""
        if rows is None:
            rows = [cache.allocate() for _ in range(cache.n_free)]
        super().__init__(Lanes.single(decoder, cache), Scheduler(rows, chunk))
