"""One HTTP request's sequences in the engine: submitted together, read from one box, cancelled together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import Receive

from sash.engine.request import Request, Sequence
from sash.errors import SashError
from sash.server.errors import ApiError, from_sash, internal_error
from sash.server.mail import Box
from sash.server.writing import Part, Writer

if TYPE_CHECKING:
    from sash.engine.lanes import Lane
    from sash.engine.service import Service, Ticket
    from sash.server.metrics import Metrics


class ClientGoneError(Exception):
    """The client closed its connection: there is nobody to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One sequence to come: what to ask the engine for, and who takes what it writes.

    `leader` is the place of the job that reads the same prompt, for this one too.
    """

    request: Request
    writer: Writer
    lane: Lane
    leader: int | None = None


class Call:
    """The sequences of one request under way.

    Attributes:
        gone: whether the client has left.
        sequences: those that are over, by their index.
    """

    def __init__(self, service: Service, metrics: Metrics, box: Box[Part], jobs: list[Job]) -> None:
        self._service, self._metrics, self._box, self._jobs = service, metrics, box, jobs
        self._tickets: list[Ticket] = []
        self._watcher: asyncio.Task[None] | None = None
        self._early: list[Part] = []
        self._failure: ApiError | None = None
        self.gone = False
        self.sequences: dict[int, Sequence] = {}

    def submit(self) -> None:
        """Submit all of them, or none; from any thread.

        Raises:
            ApiError: the engine refused.
        """
        try:
            for job in self._jobs:
                after = None if job.leader is None else self._tickets[job.leader]
                self._tickets.append(self._service.submit(job.request, job.writer, job.lane, after=after))
        except SashError as error:
            self.cancel()
            raise from_sash(error, self._metrics.retry_after()) from error

    def watch(self, receive: Receive) -> None:
        """From now on cancel all of them as soon as the client leaves."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch(receive))

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.cancel()
        self._box.wake()

    def cancel(self) -> None:
        """End whatever still runs."""
        for ticket in self._tickets:
            self._service.cancel(ticket)
        self._tickets.clear()

    def close(self) -> None:
        """End whatever still runs, and stop watching."""
        self.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    @property
    def done(self) -> bool:
        """Whether every sequence is over, and all that it wrote was given out by `parts`."""
        return not self._early and self._failure is None and len(self.sequences) == len(self._jobs)

    async def begun(self, seconds: float) -> None:
        """Wait until the engine has taken up the first sequence, or for some time at most.

        Raises:
            ApiError: a sequence has failed already.
            ClientGoneError: the client left.
        """
        timer = asyncio.get_running_loop().call_later(seconds, self._box.wake)
        until = time.monotonic() + seconds
        try:
            while not self._early and time.monotonic() < until:
                self._early = await self.parts()
        finally:
            timer.cancel()
        if self._failure is not None:
            raise self._failure

    async def parts(self) -> list[Part]:
        """What has come since the last call; perhaps nothing, where `Box.wake` rang.

        Raises:
            ApiError: a sequence failed, and all that came before it was given out; or the client reads too slowly.
            ClientGoneError: the client left.
        """
        if self._early:
            parts, self._early = self._early, []
            return parts
        if self._failure is not None:
            raise self._failure
        parts = await self._box.take()
        if self.gone:
            raise ClientGoneError
        for place, part in enumerate(parts):
            try:
                if part.ended is not None:
                    self._end(part.index, part.ended, part.reason)
            except ApiError as error:
                self._failure = error
                if not place:
                    raise
                return parts[:place]
        if self._box.overflowed:
            message = "the answer was ended: the client did not read it as fast as it was written"
            raise ApiError(408, message, code="client_too_slow", kind="timeout_error")
        return parts

    def _end(self, index: int, sequence: Sequence, reason: str) -> None:
        self.sequences[index] = sequence
        if sequence.error is not None:
            raise from_sash(sequence.error)
        if reason == "error":
            raise internal_error()
        if reason == "cancelled":
            raise ApiError(503, "the server ended this answer: it is shutting down", code="draining")
