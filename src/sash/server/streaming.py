"""Server-sent events: a response that ends with `[DONE]` whatever happens, and says so if something went wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sash.server.account import to_json

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def event(value: Mapping[str, Any]) -> bytes:
    """One event."""
    return f"data: {to_json(value)}\n\n".encode()


class EventStream(Response):
    """Sends what a generator yields, each piece at once. The generator itself watches for the client to leave."""

    media_type = "text/event-stream"

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], close: Callable[[], None], headers: Mapping[str, str] | None = None
    ) -> None:
        """`close` is called at the end, whatever ended it."""
        self._pieces, self._close = pieces, close
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the generator to its end."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()
