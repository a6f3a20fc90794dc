"""Write docs/cli.md: the help of every verb, as the command line prints it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sash import cli
from sash.cli.group import VerbGroup
from sash.errors import SashError

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

This page is written by `make docs` from what `sash VERB --help` prints.

"""


def printed(*arguments: str) -> str:
    """What the command line prints for these arguments."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.execute(arguments)
    if code != 0:
        raise SystemExit(f"`sash {' '.join(arguments)}` exits with {code}")
    return out.getvalue().rstrip()


def verbs() -> Iterator[tuple[str, ...]]:
    """Every verb, each followed by its own verbs."""
    for verb in cli.VERBS:
        yield (verb.name,)
        command: Any = VerbGroup(name="sash").get_command(None, verb.name)
        for name in getattr(command, "commands", {}):
            yield (verb.name, name)


def exit_codes() -> Iterator[str]:
    """A table of the exit codes, from the errors themselves."""
    yield "## Exit codes\n\n| code | meaning |\n|---|---|\n| 0 | done |"
    waiting, rows = [SashError], {}
    while waiting:
        error = waiting.pop()
        waiting.extend(error.__subclasses__())
        rows.setdefault(error.exit_code, (error.__doc__ or "").splitlines()[0])
    rows[SashError.exit_code] = "Something failed that has no code of its own."
    rows[130] = "Stopped by Ctrl-C."
    for code, meaning in sorted(rows.items()):
        yield f"| {code} | {meaning} |"


def page() -> str:
    """The whole page."""
    parts = [f"```\n{printed('--help')}\n```\n"]
    for words in verbs():
        parts.append(f"{'#' * (len(words) + 1)} sash {' '.join(words)}\n\n```\n{printed(*words, '--help')}\n```\n")
    return HEAD + "\n".join(parts) + "\n" + "\n".join(exit_codes()) + "\n"


def main() -> None:
    """Write the page; with --check, only tell whether it is up to date."""
    # The width of the terminal must not show in the page.
    os.environ["COLUMNS"] = "100"
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            raise SystemExit("docs/cli.md is out of date: run `make docs`")
        return
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
