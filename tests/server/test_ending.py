"""`sash serve` in a process: what it says, how it ends, and how it begins again after it was killed.

SASH_CHAOS=1 (`make test-chaos`) ends it 50 times under load, and kills it 50 times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.conftest import write_model
from tests.server.live import NAME, PATIENCE, Nursery, Process, connect, request_bytes, until

CHAOS = os.environ.get("SASH_CHAOS") == "1"
ROUNDS = 50 if CHAOS else 1
pytestmark = pytest.mark.timeout(7200 if CHAOS else 900)
ENDLESS = 500_000
Start = Callable[..., Process]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "windowed")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def start(model: Path, nursery: Nursery) -> Iterator[Start]:
    """Starts a server; the first as users do, unless told, and those that follow from the nursery."""
    started: list[Process] = []

    def begin(*flags: str, forked: bool = False) -> Process:
        started.append(Process(model, *flags, nursery=nursery if forked or started else None))
        return started[-1]

    yield begin
    for one in started:
        one.close()


@contextmanager
def client_of(server: Process) -> Iterator[httpx2.Client]:
    """A client for many threads; each request on a connection of its own, which nobody keeps open."""
    headers = {"connection": "close"}
    with httpx2.Client(base_url=server.url, headers=headers, trust_env=False, timeout=PATIENCE) as client:
        yield client


def ask(client: httpx2.Client, *, stream: bool, n_tokens: int) -> tuple[int, int, str]:
    """The status of a request, how many tokens were written, and why it ended."""
    body = {"model": NAME, "prompt": "Once", "max_tokens": n_tokens, "ignore_eos": True, "stream": stream}
    body |= {"stream_options": {"include_usage": True}} if stream else {}
    if not stream:
        answer = client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 1
            return answer.status_code, 0, ""
        found = answer.json()
        return 200, found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]
    with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            return answer.status_code, 0, ""
        count, reason, done = 0, "", False
        for line in answer.iter_lines():
            done = done or line == "data: [DONE]"
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk
                count = (chunk.get("usage") or {}).get("completion_tokens", count)
                reason = next((c["finish_reason"] for c in chunk["choices"] if c["finish_reason"]), reason)
        assert done
        return 200, count, reason


def busy(server: Process) -> tuple[int, int]:
    """Requests with a row, and those that wait for one."""
    page = server.get("/metrics")[1].splitlines()
    found = {name: line.rsplit(" ", 1)[1] for line in page for name in ("running", "waiting")
             if line.startswith(f"sash_num_requests_{name}{{")}  # fmt: skip
    return int(float(found["running"])), int(float(found["waiting"]))


def hold(server: Process) -> socket.socket:
    """Ask for something endless, which ends when the socket is closed."""
    body = {"model": NAME, "prompt": "Once", "max_tokens": ENDLESS, "ignore_eos": True}
    one = connect(server.port)
    one.sendall(request_bytes("/v1/completions", json.dumps(body).encode()))
    return one


def test_it_says_what_it_serves_and_answers_all_that_was_accepted_before_its_end(start: Start):
    """All rows are held until what is asked waits for them, and one until the server says that it is ending."""
    draw, n_tokens = random.Random(0), 300
    for number in range(ROUNDS):
        server = start("--max-rows", "4", "--window", "8", "--drain", "6000")
        with ThreadPoolExecutor(8) as pool, client_of(server) as client:
            holders = [hold(server) for _ in range(4)]
            until(lambda server=server: busy(server) == (4, 0))
            accepted = [pool.submit(ask, client, stream=i % 2 == 0, n_tokens=n_tokens) for i in range(8)]
            until(lambda server=server: busy(server) == (4, 8))
            for holder in holders[: draw.randint(0, 3)]:
                holder.close()
            time.sleep(draw.random() * 0.3)  # any moment will do: some wait, some run, some are done
            server.signal(signal.SIGTERM if number % 2 == 0 else signal.SIGINT)
            until(lambda server=server: server.get("/health")[0] == 503)
            assert ask(client, stream=number % 2 == 1, n_tokens=1)[0] == 503
            for holder in holders:
                holder.close()
            assert [job.result() for job in accepted] == [(200, n_tokens, "length")] * 8
        code, said = server.wait()
        assert code == 0, said
        assert "Traceback" not in said
    lines = said.splitlines()
    assert lines[0].startswith(f"loading  {NAME}")
    assert any("window 8 in 2 of 2 layers" in line for line in lines)
    assert any("64.0 MiB for keys and values: 4 sequences of any length at once" in line for line in lines)
    assert any(f"serving  {server.url}" in line for line in lines)
    assert any("ablation" in line for line in lines)


def chat(client: httpx2.Client, messages: list[dict[str, str]]) -> str:
    body = {"model": NAME, "messages": messages, "max_tokens": 12, "temperature": 0}
    return str(client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])


def half_written(folder: Path) -> int:
    return len(list(folder.glob(".*.tmp")))


def test_a_killed_server_begins_again_and_two_signals_end_it_at_once(start: Start, tmp_path: Path):
    """No snapshot that was being written when it was killed is ever taken for a whole one."""
    folder, draw, torn = tmp_path / "snapshots", random.Random(1), 0
    first = [{"role": "user", "content": "Hello " * 40}]
    expected: tuple[str, str] | None = None

    def answers(client: httpx2.Client) -> tuple[str, str]:
        text = chat(client, first)
        return text, chat(client, [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "And?"}])

    for number in range(ROUNDS):
        server = start("--snapshot-dir", str(folder), "--snapshot-memory", "32M", forked=True)
        with ThreadPoolExecutor(4) as pool, client_of(server) as client:
            found = answers(client)
            expected = expected or found
            assert found == expected
            asked = [[{"role": "user", "content": f"{number} {i} " * draw.randint(1, 400)}] for i in range(12)]
            jobs = [pool.submit(chat, client, messages) for messages in asked]
            # It is killed soon after it began to write a file, however slow the machine; or once there is no more.
            until(lambda jobs=jobs: half_written(folder) or all(job.done() for job in jobs), pause=0)
            time.sleep(draw.random() * 0.003)
            server.signal(signal.SIGKILL)
            for job in jobs:
                job.exception()
        assert server.wait()[0] == -signal.SIGKILL
        torn += half_written(folder)
    assert torn > ROUNDS // 10 or not CHAOS  # in the midst of writing, not between two files
    last = start("--drain", "6000", "--snapshot-dir", str(folder), "--snapshot-memory", "32M")
    with client_of(last) as client:
        assert answers(client) == expected
        assert half_written(folder) == 0
        end_at_once(last, client)


def end_at_once(server: Process, client: httpx2.Client) -> None:
    """A first signal begins the end of a server that still answers; a second one ends it."""
    gone: list[Any] = []

    def endless() -> None:
        try:
            gone.append(ask(client, stream=True, n_tokens=ENDLESS))
        except (httpx2.HTTPError, AssertionError) as error:
            gone.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    until(lambda: busy(server) == (1, 0))
    server.signal(signal.SIGINT)
    until(lambda: server.get("/health")[0] == 503)
    server.signal(signal.SIGINT)
    code, said = server.wait()
    thread.join()
    assert code == 130
    assert "Traceback" not in said
    assert not isinstance(gone[0], tuple)
