"""The typer application: verbs are found in `sash.cli.VERBS` and their modules imported when they are called."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup
from typer.main import get_command

from sash.cli import VERBS, overview
from sash.errors import SashError, UsageError


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error as it is when something is said.

    What it was when a verb began may be closed by then: threads outlive the call of a verb within a longer process.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; without a standard error nobody hears it."""
        self.stream = sys.stderr
        super().emit(record)


class VerbGroup(TyperGroup):
    """A group whose commands are the verbs of the table; each module is imported on its first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all verbs."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a verb.

        Raises:
            UsageError: there is no such verb.
        """
        verb = next((verb for verb in VERBS if verb.name == cmd_name), None)
        if verb is None:
            close = difflib.get_close_matches(cmd_name, self.list_commands(ctx), n=1)
            hint = f"did you mean `sash {close[0]}`? " if close else ""
            raise UsageError(f"there is no verb {cmd_name!r}; {hint}`sash --help` lists them")
        module = importlib.import_module(verb.module)
        own_app = getattr(module, "app", None)
        if own_app is None:
            own_app = verb_app()
            own_app.command(verb.name)(module.command)
        return get_command(own_app)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the overview."""
        formatter.write(overview())


def verb_app(**settings: Any) -> typer.Typer:
    """A typer application with the settings of all verbs; for a verb that has verbs of its own.

    Plain help keeps rich, which takes long to import, for the verbs that draw with it.
    """
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **settings)


app = typer.Typer(
    cls=VerbGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen, and why.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Run and explain sliding-window language models."""
    logger = logging.getLogger("sash")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    # Replaced, not added: a second call in one process must not say everything twice.
    logger.handlers[:] = [StandardError()]
    if version:
        from importlib.metadata import version as version_of

        typer.echo(version_of("sash"))
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(overview(), nl=False)


def invoke(arguments: Sequence[str]) -> int:
    """Run the application and return its exit code.

    Raises:
        UsageError: arguments that do not parse.
        SashError: whatever the verb raises; an answered "no" to a question among it.
    """
    try:
        result = get_command(app).main(list(arguments), prog_name="sash", standalone_mode=False)
    except typer.Abort:
        raise SashError("stopped; nothing was changed") from None
    except Exception as error:
        # typer raises its usage errors from a private module; they alone know how to format themselves.
        if not hasattr(error, "format_message"):
            raise
        verb = next((word for word in arguments if not word.startswith("-")), "")
        # Where the verb has verbs of its own, the error knows which of them it was.
        place = getattr(getattr(error, "ctx", None), "command_path", f"sash {verb}".strip())
        message = error.format_message().rstrip(".")
        raise UsageError(f"{message}{'' if message.endswith('?') else ':'} see `{place} --help`") from error
    return result if isinstance(result, int) else 0
