"""Options of `sash eval` about what is asked, how far back and by which ways to read; and how they are read."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from sash.cli.sizes import parse_size
from sash.errors import UsageError

IN_WINDOWS = re.compile(r"([0-9]+(?:\.[0-9]+)?)[wW]")

Text = Annotated[str, typer.Option("--text", metavar="FILE", help="What prompts are filled with; - is standard input.")]
Window = Annotated[
    str | None,
    typer.Option("--window", metavar="N", help="Force a window in every layer; without it, the model's own."),
]
Lengths = Annotated[
    str, typer.Option("-l", "--lengths", metavar="N,...", help="Lengths of prompts, in tokens or in windows (4w).")
]
Depths = Annotated[
    str,
    typer.Option("-d", "--depths", metavar="N,...", help="Where what is asked for stands: 0 the head, 100 the end."),
]
Trials = Annotated[int, typer.Option("--trials", metavar="N", help="Prompts of each kind, or stretches of the text.")]
Methods = Annotated[
    str, typer.Option("-m", "--methods", metavar="NAME,...", help="Ways to read, see `sash eval methods`.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Other seeds, other prompts.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def parse_lengths(text: str, window: int, option: str) -> tuple[int, ...]:
    """Sizes in tokens or in windows, with commas between them.

    Raises:
        UsageError: one that is no size, or none at all.

    >>> parse_lengths("100,4w,0.5w", 512, "--lengths")
    (100, 2048, 256)
    """
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = IN_WINDOWS.fullmatch(part)
        found.append(round(float(match[1]) * window) if match else parse_size(part, option))
    if not found or min(found) < 1:
        raise UsageError(f"{option} takes sizes such as 2048 or 4w (4 windows), with commas between them; got {text!r}")
    return tuple(dict.fromkeys(found))


def parse_depths(text: str) -> tuple[float, ...]:
    """Depths in percent as shares.

    Raises:
        UsageError: one that is none.

    >>> parse_depths("0,25,100")
    (0.0, 0.25, 1.0)
    """
    try:
        found = tuple(dict.fromkeys(float(part) / 100 for part in text.split(",") if part.strip()))
    except ValueError:
        found = ()
    if not found or not all(0 <= depth <= 1 for depth in found):
        raise UsageError(f"--depths takes percents from 0 (the head) to 100 (the end), such as 0,50,100; got {text!r}")
    return found


def parse_names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))
