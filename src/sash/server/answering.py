"""From a plan to an answer, streamed or whole: the same for every route that writes text."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
import uuid
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from sash.engine.request import Request
from sash.server.account import timings, to_json, usage, view
from sash.server.call import Call, ClientGoneError, Job
from sash.server.errors import ApiError, internal_error
from sash.server.fields import MAX_INT
from sash.server.mail import Box
from sash.server.place import Place, owner_of, salt_of
from sash.server.plan import Answer, Plan, Shape
from sash.server.streaming import DONE, PING, EventStream, event
from sash.server.writing import Part, Writer

logger = logging.getLogger(__name__)

BEGIN_SECONDS = 10.0
"""How long a stream waits for the engine to take it up, so that what fails by then has a true status."""

LONG = 8192
"""Tokens of prompts beyond which even submitting them takes the event loop too long."""

FRAMES = 6
"""Innermost calls that the log tells of where something of ours failed."""

CLIENT_GONE = 499
"""The status, for the log only, of a request whose client has left."""


class Answering:
    """One request under way."""

    def __init__(self, place: Place, plan: Plan, shape: Shape) -> None:
        self._place, self._plan, self._shape = place, plan, shape
        self._began = time.monotonic()
        self._head = {
            "id": f"{shape.prefix}-{uuid.uuid4().hex}",
            "object": shape.chunk_kind if plan.stream else shape.whole_kind,
            "created": int(time.time()),
            "model": place.settings.name,
            "system_fingerprint": place.fingerprint,
        }

    async def respond(self, request: HttpRequest) -> Response:
        """Submit, and answer.

        Raises:
            ApiError: refused, or failed before anything of the answer was sent.
        """
        box: Box[Part] = self._place.box() if self._plan.stream else self._place.box(limit=math.inf)
        call = Call(self._place.service, self._place.metrics, box, self._jobs(box, salt_of(request)))
        try:
            if sum(map(len, self._plan.prompts)) * self._plan.n > LONG:
                await self._place.prepare(call.submit)
            else:
                call.submit()
            call.watch(request.receive)
            if self._plan.stream:
                await call.begun(BEGIN_SECONDS)
                pieces = self._frames(call, box, owner_of(request))
                return EventStream(pieces, call.close, self._plan.headers)
            answer = await self._whole(call, owner_of(request))
        except ClientGoneError:
            call.close()
            return Response(status_code=CLIENT_GONE)
        except BaseException:
            call.close()
            raise
        call.close()
        return Response(answer, media_type="application/json", headers=self._plan.headers)

    def _jobs(self, box: Box[Part], salt: bytes) -> list[Job]:
        plan, place = self._plan, self._place
        tokenizer = place.lm.tokenizer
        jobs = []
        for index in range(plan.n_answers):
            params = plan.params
            if params.seed is not None and index % plan.n:
                params = replace(params, seed=(params.seed + index % plan.n) & MAX_INT)
            request = Request(
                prompt_ids=plan.prompts[index // plan.n],
                params=params,
                stop_ids=tokenizer.eos_ids,
                grammar=plan.grammars[index] if plan.grammars else None,
                pins=plan.frame.pins,
                seers=plan.frame.seers,
                prompt_logprobs=plan.prompt_logprobs,
                salt=salt,
                audits=plan.looks.parts is not None,
            )
            writer = Writer(
                index,
                tokenizer,
                box,
                stop=params.stop,
                continues=plan.continues,
                calling=plan.calling,
                wants_tokens=params.logprobs is not None,
                on_gap=place.metrics.gap,
                on_end=place.metrics.ended,
            )
            leader = index - index % plan.n if index % plan.n else None
            jobs.append(Job(request=request, writer=writer, lane=plan.frame.lane, leader=leader))
        return jobs

    async def _whole(self, call: Call, owner: str) -> str:
        parts: list[list[Part]] = [[] for _ in range(self._plan.n_answers)]
        while not call.done:
            for part in await call.parts():
                parts[part.index].append(part)
        account = await self._account(call, owner)

        def write() -> str:
            choices = [self._shape.choice(Answer.of(own)) for own in parts]
            return to_json({**self._head, "choices": choices, **account})

        if self._plan.params.logprobs is None:
            return write()
        return await self._place.aside(write)  # there may be a million of them

    async def _account(self, call: Call, owner: str) -> dict[str, Any]:
        first, frame = call.sequences[0], self._plan.frame
        seen = view(frame, first)
        if self._plan.session is not None:
            length = len(first.request.prompt_ids) + len(first.output_ids)
            self._place.sessions.keep(owner, self._plan.session, length, seen)
        if self._plan.looks:
            told = self._place.aside(
                self._plan.looks.account,
                *(frame.config, frame.pins, frame.seers),
                len(first.output_ids),
                first.recalled,
            )
            seen = seen | await told
        return {"usage": usage(call.sequences, self._plan.n), "timings": timings(first), "window": seen}

    async def _frames(self, call: Call, box: Box[Part], owner: str) -> AsyncGenerator[bytes, None]:
        """The events of a stream, several at a time where several have come."""
        rhythm = _Rhythm(self._place.settings.ping_seconds, box)
        try:
            openings = [self._shape.opening(index) for index in range(self._plan.n_answers)]
            yield b"".join(event(self._chunk(choice)) for choice in openings if choice is not None)
            while not call.done:
                chunks = [chunk for part in await call.parts() for chunk in self._chunks(part)]
                if call.done:
                    self._close_account(chunks, await self._account(call, owner))
                if chunks:
                    yield b"".join(map(event, chunks)) + (DONE if call.done else b"")
                elif rhythm.due:
                    yield PING
                rhythm.due = False
        except ClientGoneError:
            logger.info("a client left before its answer was whole")
        except ApiError as error:
            yield event(error.body) + DONE
        except Exception as error:
            log_fault(error, str(self._head["id"]))
            yield event(internal_error(str(self._head["id"])).body) + DONE
        finally:
            rhythm.stop()
            call.close()

    def _chunks(self, part: Part) -> list[dict[str, Any]]:
        chunks = [self._chunk(choice) for choice in self._shape.pieces(part)]
        if part.n_read and self._plan.progress:
            total = len(self._plan.prompts[part.index // self._plan.n])
            progress = {"index": part.index, "total": total, "cache": part.n_cached, "processed": part.n_done}
            progress["time_ms"] = round(1000 * (time.monotonic() - self._began))
            chunks.insert(0, {**self._head, "choices": [], "prompt_progress": progress})
        return chunks

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "choices": [choice]}
        if self._plan.wants_usage:
            chunk["usage"] = None
        return chunk

    def _close_account(self, chunks: list[dict[str, Any]], account: dict[str, Any]) -> None:
        """Add the account in a chunk of its own if that was asked for, else in the last one.

        Only clients that asked expect a chunk without a choice.
        """
        if self._plan.wants_usage or not chunks:
            chunks.append({**self._head, "choices": [], **account})
        else:
            chunks[-1].update(account)


class _Rhythm:
    """Rings a box now and then, so that a stream in which nothing comes can say that it is alive."""

    def __init__(self, seconds: float, box: Box[Part]) -> None:
        self._seconds, self._box = seconds, box
        self.due = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        self.due = True
        self._box.wake()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._ring)

    def stop(self) -> None:
        self._timer.cancel()


def log_fault(error: BaseException, request_id: str) -> None:
    """Log where a fault of ours happened. Not what it says: that may quote a prompt."""
    where = "".join(traceback.format_tb(error.__traceback__)[-FRAMES:])
    logger.error("request %s failed by %s\n%s", request_id, type(error).__name__, where)
