"""What stands in front of every route: who may call, how much they may send, and how long they may take.

Written as plain ASGI and decided on the path that is matched (`scope["path"]`) and on raw headers: nothing here is
derived from what a client says its URL is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sash.errors import SashError
from sash.server.account import to_json
from sash.server.answering import CLIENT_GONE, log_fault
from sash.server.errors import ApiError, from_sash, internal_error
from sash.server.settings import Settings

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health"})
"""What needs no key."""

LINGER_SECONDS = 2.0
"""How long the rest of a body that is too large is read, and thrown away."""

MAX_HEADER_BYTES = 64 << 10

METHODS = "GET, POST, DELETE"

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_SAFE = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
)


class Guard:
    """The middleware.

    A request's key is put into its scope as "sash.key", so that what belongs to one key's owner stays theirs.
    """

    def __init__(self, app: ASGIApp, settings: Settings, refused: Callable[[str], None]) -> None:
        """`refused` is told the status of every error that goes out."""
        self._app, self._settings, self._refused = app, settings, refused
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._hosts = LOCAL_NAMES | {settings.host.strip("[]").lower()}
        self._hosts |= {str(urlsplit(origin).hostname) for origin in settings.origins}
        self._any_host = settings.host.strip("[]") not in LOCAL_NAMES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._settings)
        try:
            answered = self._check(scope)
            if answered is not None:
                await exchange.respond(204, answered)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            await self.fail(exchange, error)
        except SashError as error:
            await self.fail(exchange, from_sash(error))
        except Exception as error:
            log_fault(error, exchange.request_id)
            await self.fail(exchange, internal_error(exchange.request_id))
        if exchange.status >= 400:
            self._refused(str(exchange.status))
        exchange.log()

    async def fail(self, exchange: _Exchange, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun: then the connection is cut off."""
        if not exchange.status:
            body = to_json(error.body).encode()
            headers = {"content-type": "application/json", **error.headers}
            await exchange.respond(error.status, headers, body)

    def _check(self, scope: Scope) -> dict[str, str] | None:
        """Refuse who may not call; the headers of an answer to a preflight request, None for other requests.

        Raises:
            ApiError: 400, 401, 403 or 431.
        """
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self._settings.max_headers or size > MAX_HEADER_BYTES:
            raise ApiError(431, f"at most {self._settings.max_headers} headers are read", code="too_many_headers")
        if _one(headers, b"content-length") is not None and _one(headers, b"transfer-encoding") is not None:
            raise ApiError(400, "a body has either a length or chunks", code="invalid_http")
        host, origin = _one(headers, b"host"), _one(headers, b"origin")
        self._check_host(host)
        allowed = self._check_origin(host, origin)
        if allowed and scope["method"] == "OPTIONS" and _one(headers, b"access-control-request-method"):
            asked = _one(headers, b"access-control-request-headers") or ""
            return {
                "access-control-allow-methods": METHODS,
                "access-control-allow-headers": "".join(c for c in asked if c.isalnum() or c in "-, ")[:1000],
                "access-control-max-age": "600",
            }
        if self._keys and scope["path"] not in OPEN_PATHS:
            self._check_key(scope)
        return None

    def _check_host(self, host: str | None) -> None:
        """Refuse names that are not this server's: a page elsewhere may have pointed its own name here."""
        name = _host_name(host or "")
        if name is None:
            raise ApiError(400, "the Host header is missing or malformed", code="invalid_host")
        if not (self._any_host or name in self._hosts):
            raise ApiError(
                403, "this server does not answer to that Host", code="invalid_host", kind="permission_error"
            )

    def _check_origin(self, host: str | None, origin: str | None) -> bool:
        """Whether another site's page calls that may."""
        if origin is None:
            return False
        if origin in self._settings.origins:
            return True
        scheme, _, place = origin.partition("://")
        if scheme in ("http", "https") and place.lower() == (host or "").lower():
            return False
        raise ApiError(403, "pages of other origins may not call this server", code="invalid_origin",
                       kind="permission_error")  # fmt: skip

    def _check_key(self, scope: Scope) -> None:
        """Refuse a request without a right key; every known key is compared, in constant time."""
        given = _key(_one(scope["headers"], b"authorization"), _one(scope["headers"], b"x-api-key"))
        digest = hashlib.sha256(given.encode("latin-1")).digest()
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        if not given or not any(matches):
            # A browser that opens the page asks its user, and sends what it is told as the password.
            scheme = "Bearer" if scope["method"] == "POST" else 'Basic realm="API key as password", charset="UTF-8"'
            raise ApiError(
                401,
                "a right API key is needed: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                kind="authentication_error",
                headers={"www-authenticate": scheme},
            )
        scope["sash.key"] = digest.hex()


class _Exchange:
    """One request and its response: counts and times what is read, adds headers to what is sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._scope, self._receive, self._send, self._settings = scope, receive, send, settings
        self._began = time.monotonic()
        self._n_read = 0
        self._whole = False
        self.request_id = uuid.uuid4().hex
        self.status = 0
        origin = _one(scope["headers"], b"origin")
        self._origin = origin if origin in settings.origins else None
        scope["sash.request_id"] = self.request_id

    async def receive(self) -> Message:
        """The next part of the body, or the client's leaving.

        Raises:
            ApiError: 413 or 408.
        """
        if self._whole:
            return await self._receive()
        self._check_length()
        left = self._began + self._settings.read_timeout - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                message = await self._receive()
        except TimeoutError:
            seconds = f"{self._settings.read_timeout:g}"
            raise ApiError(408, f"the body did not come within {seconds} s", code="body_too_slow") from None
        self._n_read += len(message.get("body", b""))
        self._check_size(self._n_read)
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    def _check_length(self) -> None:
        stated = _one(self._scope["headers"], b"content-length")
        if stated is not None and stated.isascii() and stated.isdigit():
            self._check_size(int(stated[:20]))

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_body:
            raise ApiError(413, f"a body has at most {self._settings.max_body} bytes", code="body_too_large")

    async def send(self, message: Message) -> None:
        """Pass a part of the response on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in (*_SAFE, ("x-request-id", self.request_id)):
                headers.setdefault(name, value)
            headers.setdefault("cache-control", "no-store")
            if self._origin is not None:
                headers["access-control-allow-origin"] = self._origin
                headers["access-control-expose-headers"] = "x-request-id, x-sash-ignored, retry-after"
                headers.add_vary_header("Origin")
            if not self._whole and self.status >= 400:
                # The rest of a body that nobody reads must not be taken for the next request.
                headers["connection"] = "close"
        await self._send(message)

    async def respond(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """A whole response."""
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        raw.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        if status == 413:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            await self._discard()
            body = b""
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def _discard(self) -> None:
        """Read on for a while: a connection that is closed in the middle of a body loses the answer with it."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            return

    def log(self) -> None:
        """One line: no query, no header, nothing of a body."""
        path = "".join(c if c.isprintable() and c.isascii() else "?" for c in self._scope["path"][:200])
        seconds = time.monotonic() - self._began
        logger.info(
            "%s %s %s %.3f s %s", self._scope["method"], path, self.status or CLIENT_GONE, seconds, self.request_id
        )


def _one(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """A header's value; None if there is none, and of several the last."""
    found = [value for key, value in headers if key == name]
    return found[-1].decode("latin-1") if found else None


def _host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port; None if it is none.

    >>> _host_name("LocalHost:8000"), _host_name("[::1]:8000"), _host_name("a/b"), _host_name("")
    ('localhost', '::1', None, None)
    """
    if any(c in host for c in "/?#@\\ ,"):
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _key(authorization: str | None, plain: str | None) -> str:
    """The key that a request carries: as a bearer token, as a password, or in a header of its own; or nothing."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return plain or ""
