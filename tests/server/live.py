"""A real server on loopback: in a thread of this process, or as `sash serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from sash.engine.service import Service
from sash.lm import LM
from sash.server.app import create_app
from sash.server.running import Server, make_service
from sash.server.settings import Settings

NAME = "small"
PATIENCE = 60.0


def until(done: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.005) -> None:
    """Wait for something that has to come."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)


@dataclass(frozen=True)
class Live:
    """A server in a thread."""

    lm: LM
    service: Service
    server: Server
    thread: threading.Thread

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def port(self) -> int:
        return self.server.port

    def free(self) -> bool:
        """Whether nothing runs or waits."""
        figures = self.service.figures()
        return not (figures.running or figures.waiting or figures.rows_used)

    def end(self) -> None:
        loop = self.server._loop
        assert loop is not None
        loop.call_soon_threadsafe(self.server.end)


@contextmanager
def serving(lm: LM, **settings: Any) -> Iterator[Live]:
    """Serve a model under the name `NAME` on a free port."""
    given = Settings(**{"model": NAME, "port": 0, "kv_memory": 1 << 26, "drain_seconds": 5.0, **settings})
    service = make_service(lm, given)
    service.start()
    server = Server(create_app(lm, service, given), given)
    ready = threading.Event()
    server.on_ready = lambda _: ready.set()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE), "the server did not start"
    live = Live(lm, service, server, thread)
    try:
        yield live
    finally:
        if thread.is_alive():
            live.end()
            thread.join(PATIENCE)
        service.stop()


class Process:
    """`sash serve` in a process of its own."""

    def __init__(self, model: Path, *flags: str, wait: bool = True) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = ["serve", str(model), "--port", str(self.port), "--alias", NAME, "--kv-memory", "64M", *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sash", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if wait:
            until(lambda: self.status() == 200, pause=0.05)

    def status(self) -> int | None:
        """The status of /health; None while nobody listens."""
        assert self.process.poll() is None, self.process.communicate()[1]
        try:
            return httpx2.get(f"{self.url}/health", trust_env=False, timeout=5).status_code
        except httpx2.HTTPError:
            return None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """The exit code, and what was said on standard error."""
        _, said = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def request_bytes(path: str, body: bytes, *, host: str = "127.0.0.1", extra: str = "") -> bytes:
    """A POST as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{extra}\r\n".encode() + body


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def reset(one: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
