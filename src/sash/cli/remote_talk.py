"""A conversation in the terminal with a model that a server runs: the look of `Talk`, and no torch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import typer

from sash.cli.interrupt import Interrupt
from sash.cli.pin_options import Watched
from sash.cli.remote_account import (
    Clock,
    cached_tokens,
    draw,
    leaving_note,
    overflow_note,
    prompt_tokens,
    view_words,
)
from sash.cli.server_client import Answer, Server, fields_of
from sash.cli.window_words import tell_note
from sash.errors import UnsupportedError, WindowError
from sash.text.turns import Turns

if TYPE_CHECKING:
    from sash.sampling import SamplingParams

CHAT = "/v1/chat/completions"


def show(pieces: Iterator[str], clock: Clock, *, quiet: bool = False) -> bool:
    """Write an answer to standard output as it comes, and end its last line; whether Ctrl-C ended it before its end.

    Raises:
        SashError: as `Server.stream` does; the line is ended before.
    """
    ends_line = True
    # A wait for the network is broken off at once: there is nothing here that could be left half-done.
    with Interrupt() as interrupt, contextlib.closing(pieces):  # type: ignore[type-var]
        try:
            with interrupt.waiting():
                for piece in pieces:
                    clock.began = clock.began or time.perf_counter()
                    if quiet:
                        continue
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    ends_line = piece.endswith("\n")
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        finally:
            clock.ended = time.perf_counter()
            if not ends_line:
                sys.stdout.write("\n")
                sys.stdout.flush()
    return stopped


class RemoteTalk:
    """Who talks, how answers are sampled, and what was said.

    Attributes:
        server: who answers.
        conversation: what was said.
        params: how to sample; each answer draws with a seed of its own, the first with this one.
        show_stats: whether every answer is followed by its account.
        account: of the last answer; None before it.
    """

    def __init__(
        self,
        server: Server,
        params: SamplingParams,
        *,
        window: int | Literal["full"] | None = None,
        pins: int = 0,
        system: str | None = None,
        safe_prompt: bool = False,
        show_stats: bool = False,
        watched: Watched | None = None,
    ) -> None:
        """Begins a conversation; asks the server which model it has. `watched` says what stays in sight in all turns.

        Raises:
            UnsupportedError: its model has no chat format, or it knows nothing of pins.
            WindowError: a window that cannot be asked for.
            SashError: as `Server.card` does.
        """
        self.server, self._pins = server, pins
        if not server.has_chat:
            raise UnsupportedError(
                f"{server.model} has no chat template, so it was not taught to answer: "
                f"use `sash run --server {server.url} PROMPT`"
            )
        self._watched = watched or Watched()
        self._window = self._field(window)
        self._safe_prompt = safe_prompt
        self.params, self.show_stats = params, show_stats
        self.conversation = Turns(system)
        self.account: str | None = None
        self._last: Answer | None = None
        self._answers = 0
        self._warned = False

    def look_through(self, window: int | Literal["full"] | None) -> None:
        """Ask for another window from the next turn on.

        Raises:
            WindowError: a window that cannot be asked for.
        """
        self._window = self._field(window)
        self._warned = False

    def _field(self, window: int | Literal["full"] | None) -> dict[str, Any]:
        return self._watched.fields(self.server, window_field(window, self._pins))

    def window_lines(self) -> list[str]:
        """The window that is asked for, and what the last answer saw."""
        asked = self._window.get("size")
        lines = [f"window  {f'{asked:,} is asked for' if asked else 'the one of the server'}"]
        words = view_words(self._last) if self._last is not None else ""
        return lines + ([f"        {words}"] if words else [])

    def begin_anew(self, messages: list[dict[str, str]]) -> None:
        """Go on with another conversation."""
        self.conversation.replace(messages)
        self._warned = False

    def say(self, text: str) -> None:
        """Say something and show the answer as it comes; Ctrl-C ends it there, and what was written stays.

        Raises:
            SashError: as `Server.stream` does; the conversation is as before.
        """
        params = replace(self.params, seed=((self.params.seed or 0) + self._answers) % 2**63)
        self._answers += 1
        turn = [*self.conversation.messages, {"role": "user", "content": text}]
        body: dict[str, Any] = {"model": self.server.model, "messages": turn, **fields_of(params)}
        body |= {"safe_prompt": True} if self._safe_prompt else {}
        body |= {"window": self._window} if self._window else {}
        answer, clock = Answer(), Clock(time.perf_counter())
        stopped = show(self.server.stream(CHAT, body, answer), clock)
        if answer.text:
            self.conversation.messages = [*turn, {"role": "assistant", "content": answer.text}]
        self._report(answer, clock, stopped)

    def _report(self, answer: Answer, clock: Clock, stopped: bool) -> None:
        self._last = answer
        if stopped:
            # What the server counted went with the rest of the answer.
            typer.echo("stopped", err=True)
            return
        new = prompt_tokens(answer) - cached_tokens(answer)
        length = answer.usage.get("total_tokens", 0)
        self.account = f"turn    {new:,} new tokens read, {length:,} in the conversation\n{draw(answer, clock)}"
        if self.show_stats:
            typer.echo(self.account, err=True)
        # A server that was asked for the instruction tells of what matters; others only count.
        noted = leaving_note if "watch" in self._window else overflow_note
        note = None if self._warned else noted(answer)
        self._warned |= tell_note(note)


def window_field(window: int | Literal["full"] | None, pins: int, *, may_slide: bool = True) -> dict[str, Any]:
    """The field `window` of a request; empty where nothing is asked for.

    Raises:
        WindowError: windows of a server's model can be made smaller only.

    >>> window_field(256, 4), window_field(None, 0)
    ({'size': 256, 'pins': {'first': 4}}, {})
    """
    if window == "full":
        raise WindowError("a server makes windows smaller only: `full` cannot be asked of it")
    field: dict[str, Any] = {} if window is None else {"size": window}
    field |= {"pins": {"first": pins}} if pins else {}
    return field if may_slide else field | {"overflow": "error"}
