"""An hour of mixed load on `sash serve`: does memory stay where it is, and does every row and descriptor come back?

    python benchmarks/soak.py                     # an hour, as `make soak`
    python benchmarks/soak.py --minutes 1
    python benchmarks/soak.py --model smollm2-135m-instruct

Chats of several turns, completions, streams that are left midway, clients that vanish before they read, requests that
are refused, and windows of their own, eight at a time, on a small random model unless one is named. Resident memory,
file descriptors and rows are read every ten seconds. Memory is compared between the end of the first sixth, when every
path was walked, and the end. Exits 1 if anything leaks. Last line JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from machine import describe_machine
from serving_load.client import open_client
from serving_load.model import ascii_model
from serving_load.servers import Running, free_port

AT_ONCE = 8
ALLOWED_GROWTH = 0.01
PROBE_SECONDS = 10.0
WARM_SECONDS = 8.0
IDLE_SECONDS = 3.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="what is served: a folder or a name of the catalogue")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sash" / "rivals")
    return parser.parse_args()


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def words(draw: random.Random, count: int) -> str:
    """So many words of a few letters."""
    return " ".join("".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(count))


class Load:
    """Clients of every kind, until the time is over.

    Attributes:
        outcomes: what became of requests, by kind and status.
    """

    def __init__(self, url: str, seed: int) -> None:
        self._url, self._draw = url, random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        """Keep so many clients at work."""
        async with open_client(self._url) as client:
            await asyncio.gather(*(self._client(client, until) for _ in range(AT_ONCE)))

    async def _client(self, client: httpx2.AsyncClient, until: float) -> None:
        kinds = (self._chat, self._chat, self._complete, self._leave, self._vanish, self._refused, self._window)
        while time.monotonic() < until:
            kind = self._draw.choice(kinds)
            try:
                outcome = await kind(client)
            except httpx2.HTTPError as error:
                outcome = type(error).__name__
            self.outcomes[f"{kind.__name__[1:]} {outcome}"] += 1

    async def _chat(self, client: httpx2.AsyncClient) -> int:
        messages: list[dict[str, str]] = []
        status = 0
        for _ in range(self._draw.randint(1, 4)):
            messages.append({"role": "user", "content": words(self._draw, self._draw.randint(5, 120))})
            body = {"model": "served", "messages": messages, "max_tokens": 24, "seed": self._draw.randint(0, 99)}
            answer = await client.post("/v1/chat/completions", json=body)
            status = answer.status_code
            if status != 200:
                break
            text = answer.json()["choices"][0]["message"]["content"] or ""
            messages.append({"role": "assistant", "content": text})
        return status

    async def _complete(self, client: httpx2.AsyncClient) -> int:
        body = {"model": "served", "prompt": words(self._draw, 40), "max_tokens": 32, "n": 2, "logprobs": 2}
        return (await client.post("/v1/completions", json=body)).status_code

    async def _leave(self, client: httpx2.AsyncClient) -> int:
        body = {"model": "served", "prompt": words(self._draw, 40), "max_tokens": 500, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            count = 0
            async for _ in answer.aiter_raw():
                count += 1
                if count > 3:
                    break
            return answer.status_code

    async def _vanish(self, client: httpx2.AsyncClient) -> str:
        place = urlsplit(self._url)
        body = json.dumps({"model": "served", "prompt": words(self._draw, 200), "max_tokens": 500}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {len(body)}\r\n"
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        await writer.drain()
        await asyncio.sleep(self._draw.random() * 0.05)
        if self._draw.random() < 0.5:  # a reset instead of an orderly end
            carrier = writer.get_extra_info("socket")
            carrier.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.close()
        return "gone"

    async def _refused(self, client: httpx2.AsyncClient) -> int:
        bodies = ({"model": "nobody"}, {"model": "served", "messages": []}, {"prompt": "x", "temperature": -3})
        return (await client.post("/v1/chat/completions", json=self._draw.choice(bodies))).status_code

    async def _window(self, client: httpx2.AsyncClient) -> int:
        window = {"size": self._draw.choice((64, 128)), "pins": {"first": 4}}
        body = {"model": "served", "prompt": words(self._draw, 150), "max_tokens": 16, "window": window}
        return (await client.post("/v1/completions", json=body)).status_code


async def gauge(client: httpx2.AsyncClient, name: str) -> float | None:
    """A gauge of /metrics; None where it is not told."""
    page = (await client.get("/metrics")).text
    found = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return float(found[0].rsplit(" ", 1)[1]) if found else None


async def soak(server: Running, minutes: float, seed: int) -> dict[str, Any]:
    """Load a server and read what it holds, to the end and a little after."""
    pid = server.process.pid
    # What is opened once and kept, such as the process that renders templates, is no leak.
    await Load(server.url, seed + 1).run(time.monotonic() + WARM_SECONDS)
    await asyncio.sleep(IDLE_SECONDS)
    first_descriptors = descriptors(pid)
    start = time.monotonic()
    until = start + 60 * minutes
    load = Load(server.url, seed)
    probes: list[tuple[float, int, int]] = []
    working = asyncio.create_task(load.run(until))
    while not working.done():
        await asyncio.wait([working], timeout=min(PROBE_SECONDS, 60 * minutes / 12))
        probes.append((time.monotonic() - start, resident(pid), descriptors(pid)))
    await working
    await asyncio.sleep(IDLE_SECONDS)
    async with open_client(server.url) as client:
        running = await gauge(client, "sash_num_requests_running")
        waiting = await gauge(client, "sash_num_requests_waiting")
        healthy = (await client.get("/health")).status_code == 200
    await asyncio.sleep(IDLE_SECONDS)
    # Medians of the probes of a sixth of the time: one probe may fall on the largest prompt.
    part = max(1, len(probes) // 6)
    early = statistics.median(memory for _, memory, _ in probes[part : 2 * part] or probes[:1])
    late = statistics.median(memory for _, memory, _ in probes[-part:])
    return {
        "minutes": minutes,
        "requests": sum(load.outcomes.values()),
        "outcomes": dict(sorted(load.outcomes.items())),
        "resident_early": early,
        "resident_late": late,
        "growth": late / early - 1,
        "resident_mib": [round(memory / 2**20, 1) for _, memory, _ in probes[:: max(1, len(probes) // 24)]],
        "descriptors_first": first_descriptors,
        "descriptors_last": descriptors(pid),
        "running_last": running,
        "waiting_last": waiting,
        "healthy": healthy,
    }


def leaks(found: dict[str, Any]) -> list[str]:
    """What did not come back, in words."""
    said = []
    if found["growth"] > ALLOWED_GROWTH:
        said.append(f"resident memory grew by {found['growth']:.1%}")
    if found["descriptors_last"] > found["descriptors_first"]:
        said.append(f"{found['descriptors_last'] - found['descriptors_first']} file descriptors stay open")
    if found["running_last"] or found["waiting_last"]:
        said.append("requests still run or wait")
    if not found["healthy"]:
        said.append("the server is not healthy")
    failed = {name: count for name, count in found["outcomes"].items() if name.split()[-1].startswith("5")}
    return said + ([f"answers of 5xx: {failed}"] if failed else [])


def main() -> None:
    options = parse()
    model, port = options.model or ascii_model(options.folder, quick=True), free_port()
    command = [
        sys.executable, "-m", "sash", "serve", str(model), "--port", str(port), "--alias", "served",
        "--max-rows", "6", "--max-waiting", "64", "--kv-memory", "512M", "--snapshot-memory", "16M", "--threads", "1",
    ]  # fmt: skip
    with Running(command, port, options.folder / "logs" / "soak.log", threads=1) as server:
        found = {"model": options.model or "random", **asyncio.run(soak(server, options.minutes, options.seed))}
    wrong = leaks(found)
    for name, value in found.items():
        print(f"{name:<20}{value}")
    print("; ".join(wrong) or "nothing leaks")
    print(json.dumps({"benchmark": "soak", "leaks": wrong, **found, **describe_machine()}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
