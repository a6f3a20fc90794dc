"""`run`: listen, load the model meanwhile, serve, and end without losing an answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from sash.engine.service import Service
from sash.engine.snapshots import Snapshots
from sash.errors import SashError, UsageError
from sash.memory import available_memory
from sash.network.fingerprint import fingerprint
from sash.server.app import create_app
from sash.server.connection import connection_type
from sash.server.limits import MAX_HEADER_BYTES
from sash.server.place import Place
from sash.server.settings import Settings
from sash.text.grammar import warm

if TYPE_CHECKING:
    from fastapi import FastAPI

    from sash.lm import LM
    from sash.network.packed import Network

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5
"""How long clients may take to read the end of their answers once all are written."""

SWITCH_SECONDS = 0.0005
"""How long a thread may keep Python for itself: one that tokenises a long text must not hold up the engine's steps."""

MEMORY_PART = 0.5
"""Part of the memory that is free after loading which keys and values get, where nothing was said."""


class Server(uvicorn.Server):
    """uvicorn, told to end: it first lets the engine finish what was accepted, and refuses the rest with 503.

    Attributes:
        loading: loads the model and starts the engine, once the server listens.
        failure: what made loading fail.
        port: the port it listens on.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, loading: Callable[[], tuple[LM, Service]] | None = None
    ) -> None:
        super().__init__(uvicorn_config(app, settings))
        self.place: Place = app.state.place
        self.loading = loading
        self.failure: BaseException | None = None
        self.on_ready: Callable[[Server], None] | None = None
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port it listens on, chosen by the system where the settings say 0."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Where people find it."""
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, and begin to load."""
        await super().startup()
        self._loop = asyncio.get_running_loop()
        if self.loading is not None:
            threading.Thread(target=self._load, name="sash-load", daemon=True).start()
        elif self.on_ready is not None:
            self.on_ready(self)

    def _load(self) -> None:
        """On a thread of its own, so that /health can answer meanwhile."""
        try:
            if self.loading is None:
                return
            lm, service = self.loading()
        except BaseException as error:
            self.failure = error
            self.should_exit = True
            return
        if self._loop is not None:
            self._open(self._loop, lm, service)

    def _open(self, loop: asyncio.AbstractEventLoop, lm: LM, service: Service) -> None:
        """Have the event loop take requests, and tell of it on this thread, for that may take its time."""
        opened = threading.Event()

        def open_doors() -> None:
            self.place.open(lm, service)
            opened.set()

        with contextlib.suppress(RuntimeError):  # a signal has ended the loop meanwhile
            loop.call_soon_threadsafe(open_doors)
            opened.wait()
            if self.on_ready is not None:
                self.on_ready(self)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server once it has answered; the second at once."""
        if self._loop is None or self._ending is not None or not self.place.loaded:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """Refuse new requests, finish those that were accepted, and end; from the event loop only."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        service, seconds = self.place.service, self._settings.drain_seconds
        logger.info("ending: accepted requests have %g s", seconds)
        finished = asyncio.Event()
        loop = asyncio.get_running_loop()

        def drain() -> None:
            if not service.drain(seconds):
                logger.warning("requests that did not finish in time are ended with an error")
                service.stop()
            with contextlib.suppress(RuntimeError):  # a second signal has ended the loop meanwhile
                loop.call_soon_threadsafe(finished.set)

        threading.Thread(target=drain, name="sash-drain", daemon=True).start()
        await finished.wait()
        self.should_exit = True


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application: h11 with our limits, no logs and headers of its own."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=connection_type(settings),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]
        timeout_graceful_shutdown=FLUSH_SECONDS,
        backlog=2048,
    )


def run(
    settings: Settings,
    load: Callable[[], LM] | None = None,
    on_ready: Callable[[Server], None] | None = None,
) -> None:
    """Serve until a signal ends it.

    Args:
        settings: how to serve.
        load: loads the model; by default `settings.model` as it is. It runs while the server answers 503 already.
        on_ready: called once requests are taken, on the thread that loaded the model.

    Raises:
        SashError: the model could not be loaded, or the address is taken.
    """
    app = create_app(None, None, settings)
    services: list[SnapshotService] = []

    def loading() -> tuple[LM, Service]:
        gc.freeze()  # Modules stay as well, and need no look now.
        lm = load() if load is not None else _load_by_name(settings)
        service = make_service(lm, settings)
        services.append(service)
        warm(lm.tokenizer)  # Else the first grammar would hold up all others' tokens for as long as its tables take.
        service.start()
        # What is loaded stays. Looking through it for garbage would hold up everybody's tokens, for 0.2 s each time.
        gc.collect()
        gc.freeze()
        return lm, service

    sys.setswitchinterval(SWITCH_SECONDS)
    server = Server(app, settings, loading)
    server.on_ready = on_ready
    try:
        server.run()
    except SystemExit as error:
        raise UsageError(f"cannot listen on {settings.host}:{settings.port}: is something else there?") from error
    finally:
        for service in services:
            service.stop()
        server.place.close()
    if isinstance(server.failure, SashError):
        raise server.failure
    if server.failure is not None:
        raise SashError(f"the model could not be loaded: {server.failure}") from server.failure


def _load_by_name(settings: Settings) -> LM:
    from sash.loading import load_decoder

    return load_decoder(settings.model)


def make_service(lm: LM, settings: Settings) -> SnapshotService:
    """An engine for a model, not started yet.

    Raises:
        DoesNotFitError: the memory for keys and values does not hold one sequence.
        InputNotFoundError: the folder of snapshots cannot be made or read.
    """
    size = settings.kv_memory
    if size is None:
        size = int(MEMORY_PART * (available_memory() or 8 << 30))
    return SnapshotService(
        lm.decoder,
        kv=lm.kv,
        kv_memory=size,
        max_rows=settings.max_rows,
        chunk=lm.chunk,
        max_waiting=settings.max_waiting,
        snapshots=_snapshots(lm, settings) if settings.snapshot_memory and not _fills_annexes(lm) else None,
        speculation=lm.speculation,
        recall=lm.recall,
    )


def _fills_annexes(lm: LM) -> bool:
    """Whether rows hold what no snapshot has: what was brought back, or summed up."""
    return lm.recall is not None or lm.config.hierarchy is not None


def _snapshots(lm: LM, settings: Settings) -> Snapshots:
    return Snapshots(
        settings.snapshot_memory,
        folder=settings.snapshot_dir,
        fingerprint=fingerprint(lm.decoder, lm.kv) if settings.snapshot_dir is not None else "",
    )


class SnapshotService(Service):
    """An engine that owns its snapshots: it writes them out when it stops, and can say what became of them."""

    def __init__(self, decoder: Network, *, snapshots: Snapshots | None = None, **options: Any) -> None:
        super().__init__(decoder, snapshots=snapshots, **options)
        self.snapshots = snapshots

    def settle(self, seconds: float) -> bool:
        """Wait until what was read before is on disk, or so long; whether it is."""
        return self.snapshots is None or self.snapshots.settle(seconds)

    def stop(self) -> None:
        """End now; what was kept is on disk afterwards."""
        super().stop()
        if self.snapshots is not None:
            self.snapshots.close()
