"""A real server on loopback: in a thread of this process, or as `sash serve` in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from sash.engine.service import Service
from sash.lm import LM
from sash.server.app import create_app
from sash.server.running import Server, make_service
from sash.server.settings import Settings

NAME = "small"
PATIENCE = 240.0
"""Seconds after which what has to come never will: nothing that passes depends on them, however slow the machine."""


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
    """`sash serve` in a process of its own, on a port that the system chose; it takes requests.

    Attributes:
        url, port: where it is.
        said: the lines of its standard error so far.
    """

    def __init__(self, model: Path, *flags: str, nursery: Nursery | None = None) -> None:
        """`nursery` forks it from a process that has imported all it needs, instead of starting it anew."""
        arguments = ["serve", str(model), "--port", "0", "--alias", NAME, "--kv-memory", "64M", *flags]
        reader, writer = os.pipe()
        self._child: Child = _start(arguments, writer) if nursery is None else nursery.fork(arguments, writer)
        os.close(writer)
        self.url, self.said = "", list[str]()
        self._serves = threading.Event()
        self._reading = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reading.start()
        assert self._serves.wait(PATIENCE), self.said
        assert self.url, self.said
        self.port = int(self.url.rsplit(":", 1)[1])

    def _read(self, reader: int) -> None:
        with open(reader, encoding="utf-8") as lines:
            for line in lines:
                self.said.append(line.rstrip("\n"))
                if line.startswith("serving  http"):
                    self.url = line.split()[1]
                    self._serves.set()
        self._serves.set()

    def get(self, path: str) -> tuple[int, str]:
        """The status of an answer, and its text."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._child.pid, number)

    def wait(self) -> tuple[int, str]:
        """The exit code, and what was said on standard error."""
        code = self._child.wait()
        self._reading.join(PATIENCE)
        return code, "\n".join(self.said)

    def close(self) -> None:
        """Whatever it does, it ends."""
        self._child.kill()
        self.wait()


class Child(Protocol):
    """A process that can be waited for, again and again."""

    pid: int

    def wait(self) -> int:
        """The exit code; a signal that ended it as a negative number."""
        ...

    def kill(self) -> None:
        """End it, unless it has ended."""


def _start(arguments: list[str], errors: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "sash", *arguments], stderr=errors, env=environment)


class Nursery:
    """Forks `sash serve` again and again from one process that has imported everything and has no threads.

    A server that starts takes seconds of a processor, nearly all of it for imports: much, fifty times over.
    """

    CODE = """if True:
        import json, os, socket, sys
        import uvicorn, sash.cli.serve, sash.loading, sash.server.app, sash.server.running, sash.text.huggingface
        from sash import cli
        channel = socket.socket(fileno=int(sys.argv[1]))
        while True:
            line, files, _, _ = socket.recv_fds(channel, 65536, 1)
            if not line:
                break
            child = os.fork()
            if child == 0:
                channel.close()
                os.dup2(files[0], 2)
                os.close(files[0])
                sys.exit(cli.execute(json.loads(line)))
            os.close(files[0])
            channel.sendall(f"{child}\\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            channel.sendall(f"{code}\\n".encode())
    """

    def __init__(self) -> None:
        self._channel, other = socket.socketpair()
        self._answers = self._channel.makefile("r")
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(other.fileno())],
            pass_fds=[other.fileno()], env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        other.close()

    def fork(self, arguments: list[str], errors: int) -> Forked:
        """A server; the one before has to have been waited for."""
        socket.send_fds(self._channel, [json.dumps(arguments).encode()], [errors])
        return Forked(int(self._answers.readline()), self._answers)

    def close(self) -> None:
        self._channel.shutdown(socket.SHUT_RDWR)
        self._answers.close()
        self._channel.close()
        self.process.wait()


class Forked:
    """A child of the nursery."""

    def __init__(self, pid: int, answers: IO[str]) -> None:
        self.pid, self._answers = pid, answers
        self._code: int | None = None

    def wait(self) -> int:
        if self._code is None:
            self._code = int(self._answers.readline())
        return self._code

    def kill(self) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)


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
