"""A small model behind a real server on a loopback socket, and clients that say exactly what is on the wire."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.engine.service import Service
from sash.engine.snapshots import Snapshots
from sash.lm import LM
from sash.server.app import create_app
from sash.server.running import Server
from sash.server.settings import Settings
from tests.server.live import PATIENCE
from tests.server.live import until as wait

_spec = importlib.util.spec_from_file_location("small_models", Path(__file__).parents[1] / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_small_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_small_models)

WINDOW = 24
VOCABULARY = 259


def small_lm(patterns: list[AttentionPattern] | None = None, **changes: Any) -> LM:
    """Random weights over bytes; most of what it writes is no UTF-8."""
    patterns = patterns or [AttentionPattern(window=WINDOW)] * 2
    config = _small_models.small_config(patterns, vocab_size=VOCABULARY, **changes)
    return LM(_small_models.small_decoder(config), _small_models.ByteTokenizer(), name="small-file", chunk=16)


class Client:
    """Requests to one server, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> Reply:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            sent = raw if raw is not None else None if body is None else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} if sent is not None else {}
            connection.request(method, path, sent, {**given, **(headers or {})})
            return Reply.of(connection.getresponse())

    def post(self, path: str, body: Any = None, **options: Any) -> Reply:
        return self.request("POST", path, body, **options)

    def get(self, path: str, **options: Any) -> Reply:
        return self.request("GET", path, **options)

    def chat(self, content: str = "hello", **fields: Any) -> Reply:
        fields = {"max_tokens": 8, "messages": [{"role": "user", "content": content}], **fields}
        return self.post("/v1/chat/completions", fields)

    @contextmanager
    def begun(self, content: str = "hello", **fields: Any) -> Iterator[http.client.HTTPResponse]:
        """A chat as a stream that has begun: its status is there, and nothing of it was read."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            fields = {"messages": [{"role": "user", "content": content}], "stream": True, **fields}
            connection.request("POST", "/v1/chat/completions", json.dumps(fields), {"Content-Type": "application/json"})
            yield connection.getresponse()

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)


class Reply:
    """A response that was read to its end."""

    def __init__(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.status, self.headers, self.content = status, headers, content

    @classmethod
    def of(cls, response: http.client.HTTPResponse, before: bytes = b"") -> Reply:
        """The rest of a response, of which some was read."""
        return cls(response.status, {k.lower(): v for k, v in response.getheaders()}, before + response.read())

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> dict[str, Any]:
        """The error, of which the shape is checked."""
        error = self.json["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        assert set(self.json) == {"error"}
        return error

    @property
    def events(self) -> list[Any]:
        """What a stream held; its last event is checked to be [DONE]."""
        lines = [line for line in self.content.decode().split("\n\n") if line and not line.startswith(":")]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Running:
    """A server under test."""

    def __init__(self, lm: LM, service: Service, server: Server) -> None:
        self.lm, self.service, self.server = lm, service, server
        self.client = Client(server.port)

    def busy(self) -> tuple[int, int]:
        """Requests with a row, and those that wait for one."""
        figures = self.service.figures()
        return figures.running, figures.waiting

    def wait_busy(self, running: int, waiting: int = 0) -> None:
        """Until so many run and wait: of those that do not end by themselves."""
        wait(lambda: self.busy() == (running, waiting))

    def wait_idle(self) -> None:
        """Until no row is taken."""
        wait(lambda: self.busy() == (0, 0) and not self.service.figures().rows_used)


@contextmanager
def serving(lm: LM | None = None, *, snapshots: bool = False, **settings: Any) -> Iterator[Running]:
    """A server on a free port of the loopback interface."""
    lm = lm or small_lm()
    torch.set_num_threads(1)
    settings = {"model": "small", "port": 0, "max_rows": 8, "max_waiting": 16, "default_max_tokens": 64, **settings}
    chosen = Settings(**settings)
    service = Service(
        lm.decoder, kv_memory=1 << 28, max_rows=chosen.max_rows, chunk=16, token_budget=64,
        max_waiting=chosen.max_waiting,
        snapshots=Snapshots(1 << 24) if snapshots else None, recall=lm.recall,
    )  # fmt: skip
    service.start()
    app = create_app(lm, service, chosen)
    server = Server(app, chosen)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait(lambda: server.started)
    try:
        yield Running(lm, service, server)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(PATIENCE)
        service.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One server for the tests of a module."""
    with serving() as server:
        yield server


@pytest.fixture
def client(running: Running) -> Client:
    return running.client


@pytest.fixture(scope="session")
def serve() -> Any:
    """Starts a server with other settings: `with serve(max_body=100) as running`."""
    return serving


@pytest.fixture(scope="session")
def lm() -> LM:
    return small_lm()


@pytest.fixture(scope="session")
def until() -> Any:
    """Waits for a condition that has to come."""
    return wait


@pytest.fixture(scope="session")
def rest_of() -> Any:
    """The reply of a response that was begun."""
    return Reply.of


@pytest.fixture(scope="session")
def client_of() -> Any:
    """A client of the server on a port."""
    return Client


@pytest.fixture(scope="session")
def small_models() -> Any:
    """What makes small models: `small_config` and `small_decoder`."""
    return _small_models
