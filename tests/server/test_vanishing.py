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
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest

from sash.lm import LM
from sash.loading import load_decoder
from tests.cli.conftest import write_model
from tests.server.live import NAME, PATIENCE, Live, connect, request_bytes, reset, serving, until

CHAOS = os.environ.get("SASH_CHAOS") == "1"
pytestmark = pytest.mark.timeout(7200 if CHAOS else 900)
N_VANISH = 2000 if CHAOS else 24
N_SLOW = 200 if CHAOS else 2
N_LORIS = 500 if CHAOS else 12
ROWS = 8
SHORT = 2.0 if CHAOS else 0.5
"""Seconds that a hasty server gives its clients."""
ENDLESS = {"model": NAME, "prompt": "x", "max_tokens": 1_000_000, "ignore_eos": True}
HEALTHY = {"model": NAME, "prompt": "How do you do?", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load_decoder(write_model(tmp_path_factory.mktemp("models") / NAME))


def server(lm: LM, seconds: float) -> AbstractContextManager[Live]:
    limits = {"read_timeout": seconds, "write_timeout": seconds, "keep_alive": seconds, "max_cost": 1 << 40}
    return serving(lm, max_rows=ROWS, max_waiting=4096, max_body=1 << 16, **limits)


@pytest.fixture(scope="module")
def live(lm: LM) -> Iterator[Live]:
    """A server with patience: nobody is cut off for being slow, on the slowest machine."""
    with server(lm, PATIENCE) as live:
        yield live


@pytest.fixture(scope="module")
def hasty(lm: LM) -> Iterator[Live]:
    """A server without any."""
    with server(lm, SHORT) as live:
        yield live


class Healthy:
    """A client that asks the same thing again and again while others misbehave; every answer has to be right.

    Each time on a connection of its own, and in one breath. Where even that took it as long as a hasty server gives a
    client (it shares a process with all the others), it was cut off rightly, and asks again.

    Attributes:
        seconds: how long each answer took.
    """

    def __init__(self, live: Live) -> None:
        self._port, self._raw = (
            live.port,
            request_bytes("/v1/completions", json.dumps(HEALTHY).encode(), extra="Connection: close\r\n"),
        )
        self._expected = live.lm.generate(str(HEALTHY["prompt"]), max_tokens=8, temperature=0.0).text
        self._over = threading.Event()
        self._wrong: list[str] = []
        self.seconds: list[float] = []
        self._thread = threading.Thread(target=self._ask_on, daemon=True)

    def _ask_on(self) -> None:
        while not self._over.is_set():
            start = time.monotonic()
            try:
                text = self._ask()
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
            self.seconds.append(time.monotonic() - start)
            if text != self._expected:
                self._wrong.append(text)
            self._over.wait(0.01)

    def _ask(self) -> str:
        while True:
            start, spoke = time.monotonic(), False
            with connect(self._port) as one:
                with contextlib.suppress(OSError):
                    one.sendall(self._raw)
                    spoke = time.monotonic() - start < SHORT
                got = answers(one)
            head, _, body = got.partition(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200"):
                return str(json.loads(body)["choices"][0]["text"])
            if spoke or got:
                return repr(got[:500])

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
            jobs = [pool.submit(httpx2.post, f"{live.url}/v1/completions", json=asked, timeout=999) for _ in range(70)]
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
            until(lambda: live.service.figures().running <= 1 and not live.service.figures().waiting)
    until(live.free)
    assert live.service.health.state == "ready"


def test_clients_that_do_not_read_are_ended(hasty: Live):
    """What they do not read is kept for them only so far, and then they have lost their row."""
    body = json.dumps({**ENDLESS, "stream": True, "logprobs": 5}).encode()
    raw = request_bytes("/v1/completions", body)
    with undisturbed(hasty):
        for start in range(0, N_SLOW, ROWS - 1):
            count = min(ROWS - 1, N_SLOW - start)
            lost = cancelled(hasty) + count
            slow = [slow_reader(hasty, raw) for _ in range(count)]
            # Each lost its row; a count of the rows at work could not tell them from the healthy client's.
            until(lambda lost=lost: cancelled(hasty) >= lost)
            for one in slow:
                read_some(one, 1 << 30)  # ends: the connection was cut off
                one.close()
    until(hasty.free)


def slow_reader(live: Live, raw: bytes) -> socket.socket:
    """A client that has asked for something and does not read; one that was cut off before it had asked tries again."""
    while True:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(PATIENCE)
        one.connect(("127.0.0.1", live.port))
        with contextlib.suppress(OSError):
            one.sendall(raw)
            if one.recv(1, socket.MSG_PEEK):
                return one
        one.close()


def test_clients_that_never_finish_to_speak_are_cut_off(hasty: Live):
    """Half of them stop in their head, half in their body."""
    raw = request_bytes("/v1/completions", json.dumps({**HEALTHY, "prompt": "x" * 9000}).encode())
    begins = [20 if number % 2 else raw.index(b"\r\n\r\n") + 10 for number in range(N_LORIS)]
    with undisturbed(hasty):
        talking = [(connect(hasty.port), begin) for begin in begins]
        for one, begin in talking:
            with contextlib.suppress(OSError):
                one.sendall(raw[:begin])
        count = 0
        while talking:
            time.sleep(SHORT / 5)  # a byte now and then; how often, is theirs to choose
            talking = [(one, at) for one, at in talking if _still_open(one, raw[at + count : at + count + 1])]
            count += 1
            assert max(begins) + count < len(raw), f"{len(talking)} of {N_LORIS} said all they had to say"
    until(hasty.free)


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
    live: Live, raw: bytes, statuses: tuple[int, ...], get: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sash.server.limits.LINGER_SECONDS", 0.1)  # else each waits for bodies that never end
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
    return lambda: httpx2.get(f"{live.url}/health", trust_env=False, timeout=PATIENCE)
