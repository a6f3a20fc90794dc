"""What every route needs: the model, the engine, the settings, and a few threads for what would hold up the loop."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from sash.errors import SashError
from sash.server.errors import UNAVAILABLE, ApiError, from_sash
from sash.server.mail import MAX_HELD, Box, Post
from sash.server.metrics import Metrics
from sash.server.sessions import Sessions
from sash.server.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request

    from sash.engine.service import Service
    from sash.lm import LM

T = TypeVar("T")

THREADS = 2
"""Threads that read bodies, render templates, tokenise and compile grammars."""


class Place:
    """A server's state. Only the event loop changes it.

    Attributes:
        settings: how to serve.
        metrics: what is counted.
        sessions: named prefixes.
        started: when it was made, in seconds since 1970.
    """

    def __init__(self, lm: LM | None, service: Service | None, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.name)
        self.sessions = Sessions(settings.snapshot_dir)
        self.started = int(time.time())
        self._lm: LM | None = None
        self._service: Service | None = None
        self._post: tuple[asyncio.AbstractEventLoop, Post] | None = None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sash-prepare")
        self._preparing = 0
        if lm is not None and service is not None:
            self.open(lm, service)

    def open(self, lm: LM, service: Service) -> None:
        """The model is loaded: serve it."""
        self._lm, self._service = lm, service
        self.metrics.watch(service)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def loaded(self) -> bool:
        """Whether there is a model."""
        return self._service is not None

    @property
    def lm(self) -> LM:
        """The model.

        Raises:
            ApiError: 503, it is still being loaded.
        """
        if self._lm is None:
            raise _loading()
        return self._lm

    @property
    def service(self) -> Service:
        """The engine.

        Raises:
            ApiError: 503, the model is still being loaded, or the engine is dead.
        """
        if self._service is None:
            raise _loading()
        return self._service

    def box(self, limit: float = MAX_HELD) -> Box[Any]:
        """An empty box whose bell rings on this event loop."""
        loop = asyncio.get_running_loop()
        if self._post is None or self._post[0] is not loop:
            self._post = loop, Post(loop)
        return Box(self._post[1], limit)

    async def prepare(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work` on one of the threads, not on the event loop.

        Raises:
            ApiError: 429, too many requests are being prepared already; or what an error of `work` means.
        """
        if self._preparing >= self.settings.max_waiting + self.settings.max_rows:
            headers = {"retry-after": "1"}
            raise ApiError(
                429, "too many requests at once", code="queue_full", kind="rate_limit_error", headers=headers
            )
        self._preparing += 1
        try:
            return await self.aside(work, *args)
        except SashError as error:
            raise from_sash(error) from error
        finally:
            self._preparing -= 1

    async def aside(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work` on one of the threads, whatever waits for them already: for what was accepted before."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not this one.

        Raises:
            ApiError: 404.
        """
        if name is not None and name not in self.settings.names:
            loaded = ", ".join(self.settings.names)
            message = f"the model {name[:100]!r} is not loaded; this server has {loaded}"
            raise ApiError(404, message, code="model_not_found", param="model")

    @property
    def fingerprint(self) -> str:
        """Changes with whatever could change the tokens of a seeded answer: version, numbers, window."""
        from sash import __version__

        lm = self.lm
        window = lm.config.window or "full"
        return f"sash-{__version__}+{str(lm.dtype).removeprefix('torch.')}+kv-{lm.kv_dtype}+w{window}"


def owner_of(request: Request) -> str:
    """Whose request it is, as a digest of the key that it carries."""
    key = request.scope.get("sash.key", "")
    return hashlib.sha256(str(key).encode()).hexdigest()[:16]


def salt_of(request: Request) -> bytes:
    """What separates snapshots of this request's key from those of others; nothing where the server has no keys.

    Whoever has a key of their own learns nothing from the time of an answer of what the others have asked.
    """
    return bytes.fromhex(str(request.scope.get("sash.key", "")))


def _loading() -> ApiError:
    headers = {"retry-after": "2"}
    return ApiError(503, "the model is still being loaded", code="loading", kind=UNAVAILABLE, headers=headers)
