"""`sash version`: the version of Sash, and of what its results depend on most."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from sash import __version__


def versions() -> dict[str, str | None]:
    """Versions of Sash, Python and torch; None for a package that is not installed. Imports none of them."""
    try:
        torch_version: str | None = version_of("torch")
    except PackageNotFoundError:
        torch_version = None
    return {"sash": __version__, "python": platform.python_version(), "torch": torch_version}


def command(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> None:
    """Print the version."""
    found = versions()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"sash {found['sash']} (Python {found['python']}, torch {found['torch'] or 'not installed'})")
