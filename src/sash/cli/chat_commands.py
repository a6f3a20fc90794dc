"""The slash commands of `sash chat`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import typer

from sash.cli import chat_file
from sash.cli.kept_session import conversation_of, is_saved
from sash.cli.remote_talk import RemoteTalk
from sash.cli.sizes import parse_window
from sash.cli.talk import Talk
from sash.errors import DiskFullError, SashError, UsageError, is_disk_full

SESSION = ".session"
"""What files of keys and values end with; others are JSON."""

AnyTalk = Talk | RemoteTalk
"""With a model here, or with one that a server runs."""


class Leave(Exception):
    """The user says goodbye."""


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: what may follow it, what it does in one line, and the function that does it."""

    arguments: str
    help: str
    do: Callable[[AnyTalk, str], None]


def run_command(talk: AnyTalk, line: str) -> None:
    """Do what a line that begins with a slash says.

    Raises:
        Leave: the user wants to go.
        SashError: there is no such command, or it cannot be done.
    """
    name, _, argument = line.partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"there is no command {name}: /help lists them")
    command.do(talk, argument.strip())


def _help(talk: AnyTalk, argument: str) -> None:
    width = max(len(f"{name} {command.arguments}") for name, command in COMMANDS.items())
    lines = [f"{f'{name} {command.arguments}':<{width}}  {command.help}" for name, command in COMMANDS.items()]
    lines += ["", 'Alt-Enter begins a new line, """ a block of lines. Ctrl-C ends the answer, Ctrl-D the chat.']
    typer.echo("\n".join(lines), err=True)


def _retry(talk: AnyTalk, argument: str) -> None:
    talk.say(talk.conversation.undo())


def _undo(talk: AnyTalk, argument: str) -> None:
    question = talk.conversation.undo()
    shown = question if len(question) <= 60 else question[:59] + "…"
    typer.echo(f"taken back: {' '.join(shown.split())}", err=True)


def _system(talk: AnyTalk, argument: str) -> None:
    if not argument:
        typer.echo(talk.conversation.system or "there is no system prompt", err=True)
        return
    talk.conversation.set_system(None if argument == "-" else argument)
    typer.echo("no system prompt" if argument == "-" else "the next turn reads all of it again", err=True)


def _window(talk: AnyTalk, argument: str) -> None:
    if argument:
        talk.look_through(parse_window(argument, "/window"))
    typer.echo("\n".join(talk.window_lines()), err=True)


def _stats(talk: AnyTalk, argument: str) -> None:
    if argument in ("on", "off"):
        talk.show_stats = argument == "on"
    elif argument:
        raise UsageError("/stats takes on or off; alone it tells of the last answer")
    else:
        typer.echo(talk.account or "there was no answer yet", err=True)


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs a file: {command} chat.jsonl")
    return Path(os.path.expanduser(argument))


def _local(talk: AnyTalk, path: Path) -> Talk:
    if isinstance(talk, RemoteTalk):
        raise UsageError(f"{path} is for what a model here has read: /save FILE.jsonl keeps what was said")
    return talk


def _save(talk: AnyTalk, argument: str) -> None:
    path = _path(argument, "/save")
    if path.suffix == SESSION:
        typer.echo(_local(talk, path).save(path), err=True)
        return
    try:
        chat_file.save(path, talk.conversation.messages)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError(f"the disk is full: {path} was not written; make room and save again") from error
        raise SashError(f"cannot write {path}: {error.strerror or error}") from error
    typer.echo(f"{len(talk.conversation.messages)} messages in {path}", err=True)


def _load(talk: AnyTalk, argument: str) -> None:
    path = _path(argument, "/load")
    if is_saved(path):
        local = _local(talk, path)
        local.resume(conversation_of(path, local.lm))
        typer.echo(f"{len(talk.conversation.messages)} messages from {path}; they need not be read again", err=True)
        return
    messages, count = chat_file.load(path)
    talk.begin_anew(messages)
    which = "" if count == 1 else f", the last of {count} conversations"
    typer.echo(f"{len(messages)} messages from {path}{which}; the next turn reads them", err=True)


def _set(talk: AnyTalk, argument: str) -> None:
    name, _, text = argument.partition(" ")
    names = [field.name for field in fields(talk.params) if field.name != "logprobs"]
    if not argument:
        typer.echo("\n".join(f"{known} {getattr(talk.params, known)}" for known in names), err=True)
        return
    if name not in names:
        raise UsageError(f"there is no {name} to set: {', '.join(names)}")
    if not text.strip():
        raise UsageError(f"/set {name} needs a value; it is {getattr(talk.params, name)}")
    talk.params = replace(talk.params, **{name: _value(name, text.strip(), getattr(talk.params, name))})


def _value(name: str, text: str, now: Any) -> Any:
    """A value of the kind that the field has now."""
    if name == "stop":
        return () if text == "-" else (text,)
    if isinstance(now, bool):
        if text not in ("on", "off"):
            raise UsageError(f"/set {name} takes on or off; got {text!r:.40}")
        return text == "on"
    try:
        return float(text) if isinstance(now, float) else int(text)
    except ValueError:
        raise UsageError(f"/set {name} takes a number; got {text!r:.40}") from None


def _bye(talk: AnyTalk, argument: str) -> None:
    raise Leave


COMMANDS = {
    "/help": Command("", "List the commands.", _help),
    "/retry": Command("", "Answer the last message again, with other draws.", _retry),
    "/undo": Command("", "Take the last message and its answer back.", _undo),
    "/system": Command("[TEXT]", "Show or change the system prompt; - removes it.", _system),
    "/window": Command("[N|full|auto]", "Show or force the window; auto is the model's own.", _window),
    "/stats": Command("[on|off]", "Tell speeds, window and cache of the last answer, or of every one.", _stats),
    "/save": Command("FILE", "Write what was said as a line of JSON; to NAME.session also what was read of it.", _save),
    "/load": Command("FILE", "Go on with the last conversation of a file, or with a .session.", _load),
    "/set": Command("[NAME VALUE]", "Show or change how answers are sampled.", _set),
    "/bye": Command("", "Leave.", _bye),
}
"""Every slash command."""
