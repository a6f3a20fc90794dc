"""Clients of a server with OpenAI's protocol: each notes when every piece of its answer came."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

from serving_load.trace import Asked, percentile


@dataclass(slots=True)
class Heard:
    """What became of one request; times are those of `time.perf_counter`.

    Attributes:
        sent: when it was sent.
        pieces: when each piece of text came.
        ended: when the answer was over.
        n_prompt, n_written: tokens, as the server counts them.
        error: what went wrong; None where nothing did.
    """

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    n_prompt: int = 0
    n_written: int = 0
    error: str | None = None

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between two pieces."""
        return [later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)]


def body_of(asked: Asked, model: str) -> dict[str, Any]:
    """The request as every such server takes it."""
    return {
        "model": model, "prompt": list(asked.prompt), "max_tokens": asked.n_write, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


async def ask(client: httpx2.AsyncClient, asked: Asked, model: str, heard: Heard) -> None:
    """Send a request and fill `heard`."""
    heard.sent = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body_of(asked, model)) as response:
            if response.status_code != 200:
                heard.error = f"{response.status_code}: {(await response.aread()).decode(errors='replace')[:200]}"
                return
            held = b""
            async for block in response.aiter_raw():
                now = time.perf_counter()
                *lines, held = (held + block).split(b"\n")
                for line in lines:
                    _take(line.strip(), now, heard)
    except httpx2.HTTPError as error:
        heard.error = f"{type(error).__name__}: {error}"
    heard.ended = time.perf_counter()
    if heard.error is None and heard.n_written != asked.n_write:
        heard.error = f"{asked.n_write} tokens were asked for, and {heard.n_written} were written"


def _take(line: bytes, now: float, heard: Heard) -> None:
    if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
        return
    chunk = json.loads(line[5:])
    if chunk.get("error"):
        heard.error = str(chunk["error"])[:200]
        return
    if chunk.get("choices") and chunk["choices"][0].get("text"):
        heard.pieces.append(now)
    if chunk.get("usage"):
        heard.n_prompt = chunk["usage"]["prompt_tokens"]
        heard.n_written = chunk["usage"]["completion_tokens"]


def open_client(url: str) -> httpx2.AsyncClient:
    """A client with as many connections as it likes, and no bound on waiting."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    return httpx2.AsyncClient(base_url=url, timeout=httpx2.Timeout(None, connect=30), limits=limits, trust_env=False)


async def play(url: str, model: str, trace: list[Asked]) -> list[Heard]:
    """Send every request of a trace at its time, answered or not what was sent before: an open loop."""
    heard = [Heard() for _ in trace]
    async with open_client(url) as client:
        start = time.perf_counter()
        tasks = []
        for asked, one in zip(trace, heard, strict=True):
            await asyncio.sleep(max(0.0, start + asked.at - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(client, asked, model, one)))
        await asyncio.gather(*tasks)
    return heard


async def play_beside(url: str, model: str, stream: Asked, long: Asked, after: int) -> tuple[Heard, Heard]:
    """A running stream, and once it has written `after` pieces a long prompt beside it; then the stream is left."""
    running, reading = Heard(), Heard()
    async with open_client(url) as client:
        task = asyncio.create_task(ask(client, stream, model, running))
        while len(running.pieces) < after and not task.done():
            await asyncio.sleep(0.01)
        await ask(client, long, model, reading)
        until = len(running.pieces) + 2
        while len(running.pieces) < until and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    return running, reading


def summary(heard: list[Heard]) -> dict[str, Any]:
    """Figures of a played trace."""
    fine = [one for one in heard if one.error is None]
    if not fine:
        return {"requests": len(heard), "failed": len(heard), "reason": heard[0].error if heard else None}
    seconds = max(one.ended for one in fine) - min(one.sent for one in heard)
    firsts, gaps = [one.first for one in fine], [gap for one in fine for gap in one.gaps]
    read, written = sum(one.n_prompt for one in fine), sum(one.n_written for one in fine)
    return {
        "requests": len(heard),
        "failed": len(heard) - len(fine),
        "reason": next((one.error for one in heard if one.error), None),
        "seconds": seconds,
        "tokens_per_second": (read + written) / seconds,
        "written_per_second": written / seconds,
        "first_p50": percentile(firsts, 0.5),
        "first_p99": percentile(firsts, 0.99),
        "gap_p50": percentile(gaps, 0.5),
        "gap_p99": percentile(gaps, 0.99),
        "gap_longest": max(gaps, default=0.0),
    }


def stall(running: Heard, reading: Heard) -> dict[str, Any]:
    """How much a long prompt holds up a stream: its longest gap while that is read, by its median gap before."""
    error = running.error or reading.error
    if error is not None:
        return {"reason": error}
    until = reading.pieces[0]
    pairs = list(zip(running.pieces, running.pieces[1:], strict=False))
    before = [b - a for a, b in pairs if b <= reading.sent]
    # A gap counts if any of it lies in the time in which the prompt is read.
    during = [b - a for a, b in pairs if b > reading.sent and a < until]
    if not before or not during or running.pieces[-1] < until:
        return {"reason": "the stream did not last as long as the reading of the prompt"}
    median = percentile(before, 0.5)
    return {
        "read_seconds": reading.first,
        "median_gap": median,
        "median_gap_while_reading": percentile(during, 0.5),
        "gap_p90_over_median": percentile(during, 0.9) / median,
        "gap_p99_over_median": percentile(during, 0.99) / median,
        "longest_gap": max(during),
        "longest_over_median": max(during) / median,
    }
