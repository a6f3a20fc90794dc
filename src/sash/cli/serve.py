"""`sash serve`: a model behind the OpenAI and Mistral APIs, with a page to chat on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sash.cli import model_options as options
from sash.cli.remembering import Remembering
from sash.cli.sizes import parse_size
from sash.cli.window_words import ablation_note, windows_by_layer
from sash.errors import InputNotFoundError, UsageError
from sash.explain.budget import binary
from sash.text.template import start_early

if TYPE_CHECKING:
    from sash.engine.figures import Capacity
    from sash.lm import LM
    from sash.server.running import Server
    from sash.server.settings import Settings

INTERRUPTED = 130
MAX_KEY_FILE = 1 << 16

Host = Annotated[str, typer.Option("--host", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option("--api-key", envvar="SASH_API_KEY", help="A key that requests must carry; repeatable."),
]
KeyFile = Annotated[
    Path | None, typer.Option("--api-key-file", metavar="FILE", help="More keys, one a line; others cannot see these.")
]
Open = Annotated[bool, typer.Option("--without-api-key", help="Let everybody in, on an address that others can reach.")]
Alias = Annotated[str | None, typer.Option("--alias", metavar="NAME", help="Another name to serve the model under.")]
KVMemory = Annotated[
    str | None, typer.Option("--kv-memory", metavar="SIZE", help="Memory for keys and values; half of what is free.")
]
MaxRows = Annotated[int, typer.Option("--max-rows", metavar="N", help="Sequences that run at once.")]
MaxWaiting = Annotated[
    int, typer.Option("--max-waiting", metavar="N", help="Sequences that may wait; more are refused with 429.")
]
SnapshotMemory = Annotated[
    str, typer.Option("--snapshot-memory", metavar="SIZE", help="Memory for prefixes that were read; 0 keeps none.")
]
SnapshotDir = Annotated[
    Path | None, typer.Option("--snapshot-dir", metavar="DIR", help="Keep prefixes here over a restart.")
]
Strict = Annotated[bool, typer.Option("--strict-fields", help="Refuse fields that are not known.")]
Origin = Annotated[
    list[str] | None, typer.Option("--origin", metavar="URL", help="A web origin whose pages may call; repeatable.")
]
Speculate = Annotated[
    str | None,
    typer.Option("--speculate", metavar="N|lookup", help="Guess N tokens ahead from the text so far (lookup: 7)."),
]
Drain = Annotated[float, typer.Option("--drain", metavar="SECONDS", help="How long accepted requests get at the end.")]


def command(
    model: options.Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKeys = None,
    api_key_file: KeyFile = None,
    without_api_key: Open = False,
    alias: Alias = None,
    kv_memory: KVMemory = None,
    max_rows: MaxRows = 32,
    max_waiting: MaxWaiting = 128,
    window: options.Window = None,
    pins: options.Pins = "0",
    overlap: Annotated[str | None, typer.Option("--overlap", hidden=True)] = None,
    hierarchy: options.Hierarchy = None,
    recall: options.Recall = None,
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    threads: options.Threads = None,
    speculate: Speculate = None,
    snapshot_memory: SnapshotMemory = "1G",
    snapshot_dir: SnapshotDir = None,
    strict_fields: Strict = False,
    origin: Origin = None,
    drain: Drain = 30.0,
) -> int:
    """Serve a model to OpenAI's and Mistral's clients, and to browsers on a page at /.

    /health answers 503 until the model is loaded. Ctrl-C, or SIGTERM, finishes the answers that were begun and refuses
    new ones; a second one ends at once, with exit code 130. `sash chat URL` talks to it from a terminal.
    """
    from sash.server.settings import Settings

    size, n_pins = options.parse_view(window, pins)
    _check_guesses(speculate)
    ways = Remembering.of(overlap, hierarchy, recall, window=size, pins=n_pins, speculate=speculate)
    _check_ways(ways, snapshot_dir)
    if not drain >= 0:
        raise UsageError(f"--drain counts seconds, so it is 0 or more; got {drain:g}")
    settings = Settings(
        model=Path(model).name,
        alias=alias,
        host=host,
        port=port,
        api_keys=keys(api_key, api_key_file),
        origins=tuple(origin or ()),
        kv_memory=None if kv_memory is None else parse_size(kv_memory, "--kv-memory"),
        max_rows=max_rows,
        max_waiting=max_waiting,
        drain_seconds=drain,
        strict_fields=strict_fields,
        snapshot_memory=parse_size(snapshot_memory, "--snapshot-memory"),
        snapshot_dir=snapshot_dir,
    )
    check_reach(settings, everybody=without_api_key)
    check_address(host, port)
    options.obtain(model)
    start_early()
    load = functools.partial(
        options.load_lm, model, window=window, pins=pins, chunk=chunk, dtype=dtype, threads=threads, kv=kv,
        weights=weights, hierarchy=hierarchy, recall=recall, speculate=speculate,
    )  # fmt: skip
    return serve(settings, load)


def _check_guesses(speculate: str | None) -> None:
    """Refuse a model that guesses: it would take memory that nobody counts."""
    if speculate is not None and options.guesses(speculate) is None:
        raise UsageError(
            f"a server guesses from the text so far: --speculate takes lookup or a number; got {speculate!r}"
        )


def _check_ways(ways: Remembering, snapshot_dir: Path | None) -> None:
    """Refuse ways to remember that no server has, and snapshots beside the others."""
    if ways.overlap is not None:
        raise UsageError("--overlap reads a window again for every few tokens, which a server does not: use --recall N")
    if ways and snapshot_dir is not None:
        raise UsageError(f"snapshots hold windows and nothing beside them: leave out {ways.option} or --snapshot-dir")


def serve(settings: Settings, load: functools.partial[LM]) -> int:
    """Serve until a signal ends it; the exit code.

    Raises:
        SashError: the model cannot be loaded, or the address is taken.
    """
    from sash.server.running import run

    opened: list[Server] = []

    def on_ready(server: Server) -> None:
        opened.append(server)
        place = server.place
        for line in greeting(place.lm, place.service.capacity(), server.url, n_keys=len(settings.api_keys)):
            typer.echo(line, err=True)
        sys.stderr.flush()

    logging.getLogger("uvicorn.error").addFilter(_is_news)
    typer.echo(f"loading  {settings.name}; {settings.host} answers 503 meanwhile", err=True)
    run(settings, load, on_ready)
    return 0 if opened and not opened[0].force_exit else INTERRUPTED


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log says more than that answers were broken off because the server had to end."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def greeting(lm: LM, capacity: Capacity, url: str, *, n_keys: int) -> list[str]:
    """What is served, how much of it at once, and where."""
    note = ablation_note(lm.config)
    lines = [f"model    {lm.name}, {str(lm.dtype).removeprefix('torch.')}, window {windows_by_layer(lm.config)}"]
    lines += [f"note: {note}"] if note is not None else []
    locked = "with an API key" if n_keys else "no API key needed"
    return [
        *lines,
        f"memory   {binary(capacity.kv_memory)} for keys and values: {capacity.words}",
        f"serving  {url} ({locked}): chat at /, the API at /v1, its fields at /docs",
    ]


def keys(given: Sequence[str] | None, file: Path | None) -> tuple[str, ...]:
    """Every key, each once.

    Raises:
        InputNotFoundError: the file cannot be read.
        UsageError: it holds no key, or something that is none.
    """
    found = list(given or ())
    if file is not None:
        try:
            with file.expanduser().open(encoding="utf-8") as lines:
                read = [line.strip() for line in lines.read(MAX_KEY_FILE).splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8"
            raise InputNotFoundError(f"cannot read {file}: {reason}") from error
        read = [line for line in read if line and not line.startswith("#")]
        if not read:
            raise UsageError(f"{file} holds no key: write one a line")
        found += read
    return tuple(dict.fromkeys(found))


def check_reach(settings: Settings, *, everybody: bool) -> None:
    """Refuse to serve without a key where others than this machine may call.

    Raises:
        UsageError: no key is asked for, and nobody said that this is meant.
    """
    if settings.api_keys or everybody or is_near(settings.host):
        return
    raise UsageError(
        f"others can reach {settings.host}: give --api-key (or SASH_API_KEY), or --without-api-key if all may come in"
    )


def is_near(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> is_near("127.0.0.1"), is_near("::1"), is_near("localhost"), is_near("0.0.0.0"), is_near("example.org")
    (True, True, True, False, False)
    """
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_address(host: str, port: int) -> None:
    """Fail now rather than after loading, if the address cannot be listened on.

    Raises:
        UsageError: it is taken, or not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port is a number from 0 to 65535; got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not a name"
        raise UsageError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host") from error
