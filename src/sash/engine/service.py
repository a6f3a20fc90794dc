"""The one thread that owns the model, and the door to it: any thread may submit and cancel.

The thread sleeps while there is nothing to do. Whatever goes wrong in one request ends that request; what goes wrong
in the loop itself ends them all, each with an error, and the engine says so from then on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sash.engine.assembly import assemble
from sash.engine.figures import Capacity, Figures, Health, State
from sash.engine.lanes import Lane
from sash.engine.proposer import Speculation
from sash.engine.request import Event, Request, Sequence
from sash.engine.snapshots import Snapshots
from sash.errors import DrainingError, PinsError, QueueFullError, SashError, UsageError
from sash.network.packed import Network
from sash.network.recall_points import RecallSettings

logger = logging.getLogger(__name__)

Take = Callable[[Event], bool | None]
"""What a request's events are handed to, on the engine's thread: it has to be quick, and must not wait."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was accepted.

    Attributes:
        sequence: how far it has got; only the engine's thread changes it.
        take: what its events are handed to.
        ended: whether its last event was handed over.
    """

    sequence: Sequence
    take: Take
    ended: bool = False


class Service:
    """Serves requests of many threads on one thread of its own."""

    def __init__(
        self,
        decoder: Network,
        *,
        kv: str = "auto",
        kv_memory: int,
        max_rows: int = 32,
        chunk: int = 512,
        token_budget: int = 512,
        max_waiting: int = 128,
        snapshots: Snapshots | None = None,
        read_slice: int | None = None,
        speculation: Speculation | None = None,
        recall: RecallSettings | None = None,
    ) -> None:
        """Make room for the sequences; nothing runs before `start`.

        Args:
            decoder: the network.
            kv: what keys and values are kept as; see `sash.network.cache.KVCache`.
            kv_memory: bytes for keys and values of all sequences.
            max_rows: sequences that run at once, if the memory is enough for them.
            chunk: tokens of a prompt that are read at once.
            token_budget: tokens of a step, of all sequences.
            max_waiting: requests that may wait for a row.
            snapshots: what was read before; None reads every prompt from its beginning. Only used by the engine's
                thread.
            read_slice: prompt tokens of a step while somebody writes, where chunks change no numbers; None for as many
                as keep it within a few times what it takes without; see `sash.engine.tempo`.
            speculation: what guesses tokens to come, where little else is to be computed; answers stay as they are.
            recall: how what left the windows is brought back, where the model has room for it.

        Raises:
            UsageError: numbers that cannot be.
            DoesNotFitError: `kv_memory` does not hold one sequence.
        """
        if max_waiting < 0:
            raise UsageError(f"those that wait are counted from 0; got {max_waiting}")
        self._config, self._max_waiting = decoder.config, max_waiting
        self._steps, self._gauges = assemble(
            decoder,
            kv=kv,
            kv_memory=kv_memory,
            max_rows=max_rows,
            chunk=chunk,
            token_budget=token_budget,
            read_slice=read_slice,
            snapshots=snapshots,
            speculates=speculation is not None,
            recall=recall,
        )
        self._speculation = speculation
        self._state: State = "loading"
        self._error: str | None = None
        self._changed = threading.Condition()
        self._arrived: list[Ticket] = []
        self._cancelled: list[Ticket] = []
        self._open: dict[Sequence, Ticket] = {}
        self._n_open = 0
        self._stopping = False
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None

    # Any thread.

    def start(self) -> None:
        """Begin to serve.

        Raises:
            UsageError: it was started before.
        """
        with self._changed:
            if self._state != "loading":
                raise UsageError("a service starts once")
            n_threads = torch.get_num_threads()
            self._thread = threading.Thread(target=self._run, args=(n_threads,), name="sash-engine", daemon=True)
            self._state = "ready"
        self._thread.start()

    def submit(self, request: Request, take: Take, lane: Lane | None = None, *, after: Ticket | None = None) -> Ticket:
        """Queue a request.

        Args:
            request: what to do.
            take: called on the engine's thread for every event. Where it returns True, the request ends there, with
                the reason "stop"; what it raises ends this request only. The last event of every request, and only
                that, has a finish reason, whatever ended it; errors are in `Sequence.error`.
            lane: a smaller window than the model's own, and room for pins.
            after: a request with the same prompt: it is read once, where snapshots are kept, and this one waits for it.

        Raises:
            QueueFullError: as many requests wait as may.
            DrainingError: nothing is taken any more.
            DoesNotFitError: the request takes more memory than there is for all.
            WindowError, PinsError, UsageError: it cannot be.
        """
        key, needs = self._check(request, lane or Lane())
        sequence = Sequence(self._guessed(request), key, needs=needs)
        if after is not None and self._steps.shares(request):
            sequence.leader = after.sequence
        sequence.arrived = time.monotonic()
        ticket = Ticket(sequence, take)
        with self._changed:
            if self._state in ("draining", "dead"):
                raise DrainingError(self._error or "the server is finishing what it has: try again later")
            # In this order: the engine's thread may give rows meanwhile, and nobody is refused for whom there is one.
            free = 0 if self._steps.scheduler.short else self._steps.scheduler.admission.n_free
            waiting = self._steps.scheduler.n_waiting + len(self._arrived)
            if waiting >= self._max_waiting + free:
                raise QueueFullError(f"{waiting} requests wait already: try again later")
            self._arrived.append(ticket)
            self._n_open += 1
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request; its row is free before the next step. Nothing happens if it has ended."""
        with self._changed:
            if not ticket.ended:
                self._cancelled.append(ticket)
                self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for those that were accepted; whether all of them ended in time."""
        with self._changed:
            if self._state in ("loading", "ready"):
                self._state = "draining"
            return self._changed.wait_for(lambda: not self._n_open or self._state == "dead", timeout=seconds)

    def settle(self, seconds: float) -> bool:
        """Wait until what was read before is on disk, or so long; whether it is. Here nothing goes there."""
        return True

    def stop(self) -> None:
        """End now: what still runs ends with an error. Returns once the thread has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            self._finish(None)  # it was never started
        elif self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def health(self) -> Health:
        """Whether it runs, and how long its present step has taken."""
        since = self._busy_since
        seconds = 0.0 if since is None else max(0.0, time.monotonic() - since)
        return Health(state=self._state, heartbeat_seconds=seconds, error=self._error)

    def figures(self) -> Figures:
        """What it does at this moment."""
        return self._gauges.figures(len(self._arrived))

    def capacity(self) -> Capacity:
        """How many sequences fit."""
        return self._gauges.capacity()

    def _check(self, request: Request, lane: Lane) -> tuple[Lane | None, int]:
        """The lane of a request that can be served, and the bytes that it takes at the very most."""
        if request.row is not None or request.keep_row or request.position:
            raise UsageError("a service gives out its rows itself")
        vocab_size = self._config.vocab_size
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
            raise UsageError(f"token ids lie between 0 and {vocab_size - 1}")
        for token_id, _ in request.params.logit_bias:
            if not 0 <= token_id < vocab_size:
                raise UsageError(f"logit_bias names token {token_id}: ids lie between 0 and {vocab_size - 1}")
        if request.n_pins > lane.pins:
            raise PinsError(f"{request.n_pins} tokens are pinned, and there is room for {lane.pins}: pin fewer")
        key = None if lane.own else lane
        return key, self._steps.scheduler.admission.check(key, request.longest)

    def _guessed(self, request: Request) -> Request:
        """The request with what guesses its tokens, which looks at the prompt here, not on the engine's thread."""
        if self._speculation is None or request.proposer is not None or request.held is not None or request.seers:
            return request
        proposer = self._speculation.open()
        proposer.extend(request.prompt_ids)
        return replace(request, proposer=proposer)

    # The engine's thread.

    def _run(self, n_threads: int) -> None:
        error: BaseException | None = None
        try:
            torch.set_num_threads(n_threads)
            while self._turn():
                pass
        except BaseException as failure:
            error = failure
            logger.critical("the engine failed", exc_info=failure)
        self._finish(error)

    def _turn(self) -> bool:
        """Wait for something to do, and do one step of it; False once it is to stop."""
        with self._changed:
            while not (self._arrived or self._cancelled or self._stopping) and self._steps.idle:
                self._busy_since = None
                self._changed.wait()
            self._busy_since = time.monotonic()
            if self._stopping:
                return False
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            self._open.update((ticket.sequence, ticket) for ticket in arrived)
            for ticket in arrived:
                self._steps.scheduler.enqueue(ticket.sequence)
        for ticket in cancelled:
            if not ticket.ended:
                self._steps.cancel(ticket.sequence)
                self._hand(Event(ticket.sequence, 0, None))
        self._hand_all(self._steps.admit())
        now = time.monotonic()
        for sequence in self._steps.scheduler.running:
            sequence.admitted = sequence.admitted or now
        if self._steps.scheduler.running:
            self._hand_all(self._steps.compute())
            self._gauges.step()
        return True

    def _hand_all(self, events: list[Event]) -> None:
        for event in events:
            self._hand(event)

    def _hand(self, event: Event) -> None:
        """Hand an event to whom it is for, and mind what becomes of that."""
        sequence = event.sequence
        ticket = self._open.get(sequence)
        if ticket is None:
            return
        self._gauges.count(event)
        if event.token is not None and sequence.first_token is None:
            sequence.first_token = time.monotonic()
        if sequence.finish_reason is not None:
            sequence.finished = time.monotonic()
            self._hand_last(ticket, event)
            return
        try:
            stops = ticket.take(event) is True
        except Exception as error:
            logger.exception("the receiver of a request's events failed")
            self._steps.fail(sequence, SashError(f"the answer could not be handed over: {type(error).__name__}"))
            stops = True
        if stops:
            self._steps.cancel(sequence, "stop")  # nothing happens if it has just failed
            self._hand(Event(sequence, 0, None))

    def _hand_last(self, ticket: Ticket, event: Event) -> None:
        """Hand over the last event of a request, which is forgotten then."""
        del self._open[ticket.sequence]
        ticket.ended = True
        try:
            ticket.take(event)
        except Exception:
            logger.exception("the receiver of a request's last event failed")
        with self._changed:
            self._n_open -= 1
            self._changed.notify_all()

    def _finish(self, error: BaseException | None) -> None:
        """Give everybody who still waits the last event, and end."""
        said = "the engine was stopped" if error is None else f"the engine failed: {type(error).__name__}: {error}"
        with self._changed:
            self._state, self._error, self._busy_since = "dead", self._error or said, None
            for ticket in self._arrived:
                self._open[ticket.sequence] = ticket
            self._arrived.clear()
            self._cancelled.clear()
        told = DrainingError(f"{said} before the answer was complete")
        for sequence in list(self._open):
            try:
                self._steps.fail(sequence, told)
            except Exception:
                logger.exception("a row could not be freed")
            sequence.finish_reason, sequence.error = "error", sequence.error or told
            self._hand(Event(sequence, 0, None))
        self._steps.close()
