"""The command line: one file a verb, results on standard output, all else on standard error.

A verb is a line of `VERBS` and a module `sash.cli.NAME`, imported when the verb is called and not before. The module
holds either a function `command`, annotated for typer, or, for a verb with verbs of its own, `app`, made by
`sash.cli.group.verb_app`. It may import torch inside the command only. What a command returns, if it is an integer,
is the exit code.

Importing this module imports neither typer nor torch, so that `sash --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sash.errors import DiskFullError, DoesNotFitError, InputNotFoundError, SashError, UsageError, is_disk_full

__all__ = ["VERBS", "Verb", "execute", "main", "overview"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb of the command line: its name, its group in the overview, and one line of help."""

    name: str
    group: str
    help: str

    @property
    def module(self) -> str:
        """The module that holds it."""
        return f"sash.cli.{self.name}"


VERBS = (
    Verb(name="pull", group="Models", help="Fetch a model: a name of `sash ls`, or org/name[@rev] from the hub."),
    Verb(name="ls", group="Models", help="List the models that are here, and those of the catalogue."),
    Verb(name="rm", group="Models", help="Remove models from the store."),
    Verb(name="show", group="Models", help="Show a model: architecture, the window of every layer, reach, KV bytes."),
    Verb(name="plan", group="Models", help="Tell whether a model fits: weights and KV, full against rolling."),
    Verb(name="quantize", group="Models", help="Write a model with int8 or int4 weights, which loads at once."),
    Verb(name="run", group="Reading", help="Read a prompt or files through the window and write on."),
    Verb(name="chat", group="Reading", help="Talk with a model, or a server, in the terminal."),
    Verb(name="serve", group="Reading", help="Serve a model over the OpenAI and Mistral APIs, with a page."),
    Verb(name="tokenize", group="Reading", help="Show the tokens of a text."),
    Verb(name="eval", group="Insight", help="Measure a model: perplexity, parity with transformers."),
    Verb(name="bench", group="Insight", help="Measure speed and memory, beside the limits of this machine."),
    Verb(name="explain", group="Insight", help="Draw who sees whom: mask, reach, cache, budget."),
    Verb(name="doctor", group="This machine", help="Check the installation and what it can do."),
    Verb(name="version", group="This machine", help="Print the version."),
)
"""Every verb, in the order of the overview."""


def main() -> None:
    """Entry point of the `sash` command: run it with the process's arguments, and exit."""
    sys.exit(_without_output() if sys.stdout is None else execute(sys.argv[1:]))


def _without_output() -> int:
    """What a process that was started with its standard output closed comes to, before any work is done for nothing."""
    if sys.stderr is not None:
        sys.stderr.write("error: standard output is closed: give it a file, or /dev/null\n")
    return UsageError.exit_code


def execute(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; an error becomes one line on standard error.

    The exit codes are those of `sash.errors`; 130 stands for Ctrl-C.
    """
    try:
        if not arguments or arguments[0] in ("--help", "-h", "help"):
            sys.stdout.write(overview())
            code = 0
        else:
            from sash.cli.group import invoke

            code = invoke(arguments)
        sys.stdout.flush()
        return code
    except SashError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads our output has gone. Python flushes it once more at exit, which must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        return _fail(DoesNotFitError("out of memory: `sash plan MODEL` shows what a model needs"))
    except OSError as error:
        return _fail(_from_os_error(error))


def overview() -> str:
    """The text of `sash --help`."""
    width = max(len(verb.name) for verb in VERBS)
    lines = [
        "Usage: sash [-v] VERB ...",
        "",
        "Run and explain sliding-window language models: read without end, in constant memory.",
    ]
    for group in dict.fromkeys(verb.group for verb in VERBS):
        lines += ["", f"{group}:"]
        lines += [f"  {verb.name:<{width}}  {verb.help}" for verb in VERBS if verb.group == group]
    lines += [
        "",
        "Options:",
        "  -v, --verbose         Say on standard error what is chosen, and why.",
        "  --version             Print the version.",
        "  --install-completion  Complete verbs and options in this shell.",
        "",
        "`sash VERB --help` tells more. Results go to standard output, all else to standard error.",
    ]
    return "\n".join(lines) + "\n"


def _from_os_error(error: OSError) -> SashError:
    """The Sash error that says what the operating system said, in one line."""
    where = f" ({error.filename})" if error.filename else ""
    if is_disk_full(error):
        return DiskFullError(f"the disk is full{where}: make room and try again")
    reason = error.strerror or str(error)
    store = _store_of(error)
    if store is not None:
        return InputNotFoundError(
            f"the model store {store} cannot be used ({error.filename}: {reason}): set SASH_HOME to a folder that can"
        )
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError):
        return InputNotFoundError(f"{error.filename or 'a file'}: {reason}")
    return SashError(f"{reason}{where}")


def _store_of(error: OSError) -> Path | None:
    """The folder of models, if an error is about something in it or on the way to it."""
    from sash.hub.store import models_root

    if not isinstance(error.filename, str):
        return None
    path, store = Path(error.filename), models_root()
    return store if path == store or store in path.parents or path in store.parents else None


def _fail(error: SashError) -> int:
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code
