"""Clients that vanish, read slowly, or never finish to speak: rows come back, and others do not notice.

SASH_CHAOS=1 (`make test-chaos`) plays the full numbers: 2,000 that vanish, 200 that read slowly, 500 that never finish;
and then also compares what others wait for with what they waited for before.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from sash.loading import load_decoder
from tests.cli.conftest import write_model
from tests.server.live import NAME, Live, connect, request_bytes, reset, serving, until

CHAOS = os.environ.get("SASH_CHAOS") == "1"
pytestmark = pytest.mark.timeout(3600 if CHAOS else 300)
N_VANISH = 2000 if CHAOS else 24
N_SLOW = 200 if CHAOS else 2
N_LORIS = 500 if CHAOS else 12
ROWS = 8
READ_TIMEOUT, WRITE_TIMEOUT = (2.0, 2.0) if CHAOS else (0.7, 0.7)
ENDLESS = {"model": NAME, "prompt": "x", "max_tokens": 1_000_000, "ignore_eos": True}
HEALTHY = {"model": NAME, "prompt": "How do you do?", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    lm = load_decoder(write_model(tmp_path_factory.mktemp("models") / NAME))
    limits = {"read_timeout": READ_TIMEOUT, "write_timeout": WRITE_TIMEOUT, "keep_alive": 2.0, "max_cost": 1 << 40}
    with serving(lm, max_rows=ROWS, max_waiting=4096, max_body=1 << 16, **limits) as live:
        yield live


class Healthy:
    """A client that asks the same thing again and again while others misbehave; every answer has to be right.

    Attributes:
        seconds: how long each answer took.
    """

    def __init__(self, live: Live) -> None:
        self._url = f"{live.url}/v1/completions"
        self._expected = live.lm.generate(str(HEALTHY["prompt"]), max_tokens=8, temperature=0.0).text
        self._over = threading.Event()
        self._wrong: list[str] = []
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        with httpx2.Client(trust_env=False, timeout=60) as client:
            while not self._over.is_set():
                start = time.monotonic()
                try:
                    answer = client.post(self._url, json=HEALTHY)
                    text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
                except Exception as error:
                    text = f"{type(error).__name__}: {error}"
                self.seconds.append(time.monotonic() - start)
                if text != self._expected:
                    self._wrong.append(text)
                time.sleep(0.01)

    def __enter__(self) -> Healthy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        until(lambda: len(self.seconds) > 2)
        self._over.set()
        self._thread.join()
        assert self._wrong == []

    @property
    def worst(self) -> float:
        """The 99th percentile."""
        return sorted(self.seconds)[int(0.99 * (len(self.seconds) - 1))]


@contextlib.contextmanager
def undisturbed(live: Live) -> Iterator[None]:
    """Healthy traffic around what happens inside; with the full numbers it may wait twice as long, and no longer."""
    baseline = 0.0
    if CHAOS:
        # As many rows are at work as will be inside, for reasons that are none of a client's fault.
        with ThreadPoolExecutor(ROWS - 1) as pool, Healthy(live) as before:
            asked = {**ENDLESS, "max_tokens": 400}
            jobs = [pool.submit(httpx2.post, f"{live.url}/v1/completions", json=asked, timeout=300) for _ in range(70)]
            assert {job.result().status_code for job in jobs} == {200}
        baseline = before.worst
    with Healthy(live) as during:
        yield
    if CHAOS:
        assert during.worst <= 2 * baseline + 0.05, f"healthy p99: {baseline:.3f} s before, {during.worst:.3f} s then"


def read_some(one: socket.socket, count: int) -> None:
    with contextlib.suppress(OSError):
        while count > 0:
            block = one.recv(min(count, 4096))
            if not block:
                return
            count -= len(block)


def cancelled(live: Live) -> int:
    return live.service.figures().finished.get("cancelled", 0)


def vanish(live: Live, draw: random.Random) -> None:
    """Ask for something endless and go away at some moment in some way."""
    stream = draw.random() < 0.5
    prompt = "x" * draw.choice((1, 300, 3000))
    raw = request_bytes("/v1/completions", json.dumps({**ENDLESS, "prompt": prompt, "stream": stream}).encode())
    one = connect(live.port)
    when = draw.choice(("in the head", "in the body", "at once", "while reading", "in the midst"))
    if when == "in the head":
        one.sendall(raw[:40])
    elif when == "in the body":
        one.sendall(raw[: len(raw) - draw.randint(1, len(prompt))])
    else:
        one.sendall(raw)
    if when == "while reading":
        time.sleep(draw.random() * 0.05)
    elif when == "in the midst" and stream:
        read_some(one, draw.randint(1, 3000))
    how = draw.choice((reset, socket.socket.close, lambda one: one.shutdown(socket.SHUT_WR)))
    with contextlib.suppress(OSError):
        how(one)
    if one.fileno() >= 0:  # half closed: whoever says no more has gone, for all we know
        read_some(one, 1 << 30)
        one.close()


def test_rows_of_clients_that_vanish_come_back(live: Live):
    draws = [random.Random(seed) for seed in range(N_VANISH)]
    with undisturbed(live), ThreadPoolExecutor(6) as pool:
        for start in range(0, N_VANISH, 48):
            list(pool.map(lambda draw: vanish(live, draw), draws[start : start + 48]))
            until(lambda: live.service.figures().running <= 1 and not live.service.figures().waiting, 20)
    until(live.free, 10)
    assert live.service.health.state == "ready"


def test_clients_that_do_not_read_are_ended(live: Live):
    """What they do not read is kept for them only so far, and then they have lost their row."""
    body = json.dumps({**ENDLESS, "stream": True, "logprobs": 5}).encode()
    raw = request_bytes("/v1/completions", body)
    with undisturbed(live):
        for start in range(0, N_SLOW, ROWS - 1):
            slow, lost = [], cancelled(live)
            for _ in range(min(ROWS - 1, N_SLOW - start)):
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.settimeout(60)
                one.connect(("127.0.0.1", live.port))
                one.sendall(raw)
                slow.append(one)
            # Each lost its row; a count of the rows at work could not tell them from the healthy client's.
            lost += len(slow)
            until(lambda lost=lost: cancelled(live) >= lost)
            for one in slow:
                read_some(one, 1 << 30)  # ends: the connection was cut off
                one.close()
    until(live.free, 10)


@pytest.mark.parametrize("part", ["head", "body"])
def test_clients_that_never_finish_to_speak_are_cut_off(live: Live, part: str):
    raw = request_bytes("/v1/completions", json.dumps({**HEALTHY, "prompt": "x" * 500}).encode())
    begin = 20 if part == "head" else raw.index(b"\r\n\r\n") + 10
    count = N_LORIS // 2
    with undisturbed(live):
        talking = []
        for _ in range(count):
            one = connect(live.port)
            one.sendall(raw[:begin])
            talking.append(one)
        position, deadline = begin, time.monotonic() + 30
        while talking:
            assert time.monotonic() < deadline, f"{len(talking)} of {count} still hold their connections"
            time.sleep(READ_TIMEOUT / 5)
            position += 1
            talking = [one for one in talking if _still_open(one, raw[position - 1 : position])]
        assert position < len(raw) - 1, "they said all they had to say"
    until(live.free, 10)


def _still_open(one: socket.socket, byte: bytes) -> bool:
    """Say one byte more; False, and closed, if nobody listens any more."""
    try:
        one.sendall(byte)
        one.setblocking(False)
        try:
            gone = not one.recv(65536)
        except BlockingIOError:
            gone = False
        one.setblocking(True)
    except OSError:
        gone = True
    if gone:
        one.close()
    return not gone


def answers(one: socket.socket) -> bytes:
    """All that comes until the other side has nothing more to say."""
    got = b""
    with contextlib.suppress(OSError):
        while block := one.recv(65536):
            got += block
    return got


def test_requests_in_one_breath_are_answered_in_their_order(live: Live):
    parts = [json.dumps({**HEALTHY, "max_tokens": count}).encode() for count in (3, 1, 2)]
    raws = [request_bytes("/v1/completions", body) for body in parts[:2]]
    raws.append(request_bytes("/v1/completions", parts[2], extra="Connection: close\r\n"))
    with connect(live.port) as one:
        one.sendall(b"".join(raws))
        got = answers(one)
    counts = [int(part.split(b",")[0]) for part in got.split(b'"completion_tokens":')[1:]]
    assert counts == [3, 1, 2]


POST = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("raw", "statuses"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), (400,)),
        (b"GET / HTTP/9.9\r\n\r\n", (400, 505)),
        (b"G" * 200_000, (400, 414, 431)),
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n", (400, 414, 431)),
        (POST + b"X: " + b"a" * 200_000 + b"\r\n\r\n", (400, 431)),
        (POST + b"X: a\r\n" * 5000 + b"\r\n", (400, 431)),
        (POST + b"Content-Length: -5\r\n\r\n", (400,)),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", (400,)),
        (POST + b"Content-Length: 99999999999\r\n\r\n", (413,)),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1000\r\n" + b"a" * 4096 + b"\r\n") * 100, (413,)),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (400,)),
        (b"GET /health HTTP/1.1\r\n\r\n", (400,)),
        (b"POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}", (403,)),
        (b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", (404,)),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_what_is_no_request_is_refused_and_the_connection_ended(
    live: Live, raw: bytes, statuses: tuple[int, ...], get: Callable[[], Any]
):
    with connect(live.port) as one:
        with contextlib.suppress(OSError):  # the server may have heard enough before all is said
            one.sendall(raw)
        got = answers(one)
    # Whoever is still speaking may lose the answer with the connection, but never gets another one.
    assert got == b"" or int(got.split(b" ", 2)[1]) in statuses, got[:200]
    assert len(raw) > 100_000 or got
    assert get().status_code == 200


@pytest.fixture
def get(live: Live) -> Callable[[], Any]:
    return lambda: httpx2.get(f"{live.url}/health", trust_env=False)
