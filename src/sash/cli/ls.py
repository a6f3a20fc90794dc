"""`sash ls`: the models that are here, and those that the catalogue offers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sash import hub


def listing() -> list[dict[str, Any]]:
    """Every model of the store and of the catalogue as plain values, sorted by name; sizes in bytes."""
    here = {
        model.name: {
            "name": model.name,
            "pulled": True,
            "size": model.size,
            "licence": model.licence,
            "path": str(model.path),
            "source": model.source,
            "pulled_at": model.pulled_at,
        }
        for model in hub.installed()
    }
    offered = {
        entry.name: {
            "name": entry.name,
            "pulled": False,
            "size": entry.size,
            "licence": entry.licence,
            "path": None,
            "source": entry.source,
            "pulled_at": None,
        }
        for entry in hub.catalogue().values()
    }
    every = offered | here
    return [every[name] for name in sorted(every)]


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, sizes in bytes.")] = False,
) -> None:
    """List the models that are here, and those of the catalogue that are not pulled yet."""
    rows = listing()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = [("NAME", "SIZE", "LICENCE", "PATH")]
    table += [
        (row["name"], hub.size_text(row["size"]), row["licence"], row["path"] or f"(sash pull {row['name']})")
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    for line in table:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        typer.echo("  ".join([*cells, line[3]]))
