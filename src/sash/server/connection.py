"""uvicorn's connection, with the times that it does not watch: slow headers, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sash.server.settings import Settings

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

logger = logging.getLogger(__name__)

SEND_BUFFER = 64 << 10
"""Bytes that the kernel holds for a client; what it cannot take shows that the client does not read."""

KEPT_FILES = 128
"""File descriptors that are not given to clients."""


class Connection(H11Protocol):
    """One client's connection; made by `connection_type`, which knows the settings."""

    settings: Settings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come: it has to say what it wants within the time for reading."""
        super().connection_made(transport)
        if len(self.connections) > most_connections(self.settings.max_connections):
            logger.warning("too many connections: one is turned away")
            transport.abort()
            return
        carrier = transport.get_extra_info("socket")
        if carrier is not None:
            carrier.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._head_timer = _cancelled(self._head_timer)
        self._stall_timer = _cancelled(self._stall_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; a request that begins has to have its headers complete in time."""
        between = self.cycle is None or self.cycle.response_complete
        if between and self._head_timer is None:
            self._await_head()
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._head_timer = _cancelled(self._head_timer)

    def on_response_complete(self) -> None:
        """An answer is out; the next request of this connection may have come already."""
        before = self.cycle
        if self.transport.is_closing():
            self._await_reader()
        super().on_response_complete()
        if self.cycle is not before:
            self._head_timer = _cancelled(self._head_timer)

    def pause_writing(self) -> None:
        """The client has not read what was sent: it gets some time for that."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client has read on."""
        if not self.transport.is_closing():
            self._stall_timer = _cancelled(self._stall_timer)
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for some time: the connection ends, however much of it is still unread."""
        super().timeout_keep_alive_handler()
        self._await_reader()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all errors."""
        error = {"message": "this is no valid HTTP request", "type": "invalid_request_error", "param": None}
        body = json.dumps({"error": {**error, "code": "invalid_http"}}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        try:
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body)):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError:
            logger.debug("a client sent no HTTP in the middle of an answer")
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.read_timeout, self._give_up, "sends no request")

    def _await_reader(self) -> None:
        """Give the client its time to read what was sent."""
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.settings.write_timeout, self._give_up, "reads too slowly")

    def _give_up(self, reason: str) -> None:
        logger.info("a connection was cut off: the client %s", reason)
        self.transport.abort()


def connection_type(settings: Settings) -> type[Connection]:
    """The class of connections of a server with these settings."""
    return type("Connection", (Connection,), {"settings": settings})


def most_connections(wanted: int) -> int:
    """Connections that may be open, within what the system lets a process open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(16, soft - KEPT_FILES))


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """No timer, in the place of one that is not to ring."""
    if timer is not None:
        timer.cancel()
    return None
