"""`sash rm`: remove models from the store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sash import hub
from sash.errors import SashError, UsageError


def command(
    models: Annotated[list[str], typer.Argument(metavar="MODEL", help="Names as `sash ls` shows them.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove models from the store, and what unfinished pulls of them left."""
    for name in models:
        hub.check_removable(name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask on: add -y to remove without a question")
        # typer.confirm would write a blank to standard output, which is for results.
        typer.echo(f"Remove {', '.join(models)}? [y/N] ", err=True, nl=False)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise SashError("nothing was removed")
    for name in models:
        typer.echo(f"{name}: {hub.size_text(hub.remove(name))} freed", err=True)
