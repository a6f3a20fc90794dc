"""A conversation in the terminal: one turn after the other, each streamed, each with its account."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from sash.cli.answer_account import draw_account
from sash.cli.instruction_words import leaving_note
from sash.cli.interrupt import Interrupt
from sash.cli.kept_session import noted, save_to
from sash.cli.reading_bar import ReadingBar
from sash.cli.remembering import Remembering
from sash.cli.window_words import ablation_note, slid_out, tell_note, view_words, windows_by_layer
from sash.errors import SashError, UnsupportedError, UsageError
from sash.explain.instruction import of_messages
from sash.text.pins import Contract
from sash.text.sight import Sight

if TYPE_CHECKING:
    from sash.answer import Stream
    from sash.completion import Completion
    from sash.conversation import Conversation
    from sash.lm import LM
    from sash.sampling import SamplingParams


def show(stream: Stream) -> None:
    """Write an answer to standard output as it is written, and end its last line.

    Raises:
        OSError: nobody takes it; what was written until then counts.
    """
    ends_line = True
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
            ends_line = piece.endswith("\n")
    finally:
        stream.close()
    if not ends_line:
        sys.stdout.write("\n")
        sys.stdout.flush()


class Talk:
    """Who talks, how answers are sampled, and what was said.

    Attributes:
        lm: the model, with the window that is in force.
        conversation: what was said.
        params: how to sample; each answer draws with a seed of its own, the first with this one.
        show_stats: whether every answer is followed by its account.
        account: of the last answer; None before it.
        window, pins: what is forced on the model; None and 0 for its own.
        answers: given so far.
    """

    def __init__(
        self,
        lm: LM,
        params: SamplingParams,
        *,
        window: int | Literal["full"] | None = None,
        pins: int = 0,
        system: str | None = None,
        safe_prompt: bool = False,
        show_stats: bool = False,
        contract: Contract | None = None,
        sight: Sight | None = None,
        ways: Remembering | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins with an `lm` as it was trained, and looks at it through `window` and `pins`.

        `contract` says which messages and passages stay in sight through all turns, `sight` which see all that was
        read, `ways` how what left the window is remembered, `loading` how `lm` was loaded.

        Raises:
            UnsupportedError: the model has no chat template.
            SashError: a window, pins, or a way to remember that cannot be.
        """
        if not lm.tokenizer.has_chat:
            raise UnsupportedError(
                f"{lm.name} has no chat template, so it was not taught to answer: use `sash run {lm.name} PROMPT`"
            )
        self._trained, self.pins, self._contract, self._sight = lm, pins, contract or Contract(), sight or Sight()
        self.window, self._loading, self._ways = window, loading or {}, ways or Remembering()
        self.lm = self._ways.over(lm.with_window(window, pins))
        self.params, self.show_stats = params, show_stats
        self.conversation = self._begin(self._contract, self._sight, safe_prompt, system)
        self.account: str | None = None
        self.answers = 0
        self._warned = False

    def look_through(self, window: int | Literal["full"] | None) -> None:
        """Go on with another window over the same weights; the next turn reads the conversation again.

        Raises:
            WindowError, PinsError: a window that cannot be, or that is smaller than the pins.
            UsageError: one that loses nothing, where what is lost is remembered.
        """
        if window == "full" and self._ways:
            raise UsageError(f"this chat has {self._ways.option}, and without a window nothing is lost: begin another")
        pins, contract, sight = self.pins, self._contract, self._sight
        if window == "full":
            pins, contract, sight = 0, Contract(), Sight()
        trained, lm, before = self.lm, self._ways.over(self._trained.with_window(window, pins)), self.conversation
        self.lm = lm
        try:
            self.conversation = self._begin(contract, sight, before.safe_prompt)
        except SashError:
            self.lm = trained
            raise
        self.window = window
        self.conversation.replace(before.messages)
        self._warned = False

    def _begin(self, contract: Contract, sight: Sight, safe_prompt: bool, system: str | None = None) -> Conversation:
        """An empty conversation that keeps what `contract` says in sight, and lets what `sight` says see all."""
        return self.lm.conversation(
            system,
            safe_prompt=safe_prompt,
            pins=[pin.words for pin in contract.pins],
            pin_budget=contract.budget,
            pin_overflow=contract.overflow,
            global_=sight.words,
        )

    def window_lines(self) -> list[str]:
        """The window of every layer, what the conversation shows through it, and its label if it is forced."""
        session, note = self.conversation.session, ablation_note(self.lm.config)
        lines = [f"window  {windows_by_layer(self.lm.config)}"]
        lines += [f"        {view_words(self.lm.config, session.view)}"] if session is not None else []
        return lines + ([note.replace("--window", "/window")] if note is not None else [])

    def save(self, path: Path) -> str:
        """Keep what was read and said in a file; a line that says so.

        Raises:
            SashError: as `LM.save_session` does.
        """
        more = {"seed": self.params.seed, "answers": self.answers, "overlap": self._ways.overlap}
        notes = noted(self._loading, self.window, self.pins, **more)
        return save_to(path, self.lm, self.conversation, notes)

    def resume(self, conversation: Conversation, answers: int = 0) -> None:
        """Go on with a conversation of this model, whose session has read it, after so many answers."""
        self.conversation, self.answers = conversation, answers
        self._contract, self._sight = conversation.contract, conversation.sight
        self._warned = False

    def begin_anew(self, messages: list[dict[str, str]]) -> None:
        """Go on with another conversation, if the model's chat format takes it.

        Raises:
            TokenizerError: it does not.
        """
        self.lm.tokenizer.encode_chat([*messages, {"role": "user", "content": "?"}])
        self.conversation.replace(messages)
        self._warned = False

    def say(self, text: str) -> None:
        """Say something and show the answer as it is written; Ctrl-C ends it there, and what was written stays.

        Raises:
            SashError: the message cannot be taken; the conversation is as before.
        """
        params = replace(self.params, seed=((self.params.seed or 0) + self.answers) % 2**63)
        self.answers += 1
        start = time.perf_counter()
        try:
            with Interrupt() as interrupt:
                stream = self._read(text, params, interrupt)
                read_seconds = time.perf_counter() - start
                show(stream)
        except KeyboardInterrupt:
            session = self.conversation.session
            if session is not None and not session.intact:  # pressed twice, in the midst of a step
                self.conversation.session = None
            typer.echo("stopped", err=True)
            return
        self._report(stream.completion, read_seconds)

    def _read(self, text: str, params: SamplingParams, interrupt: Interrupt) -> Stream:
        with ReadingBar(None, None) as bar:

            def progress(count: int) -> None:
                bar.total = self.conversation.read_anew
                bar.advance(count)
                interrupt.raise_if_requested()

            return self.conversation.say(text, params, progress, interrupt)

    def _report(self, completion: Completion, read_seconds: float) -> None:
        stats = completion.stats
        stats = replace(
            stats,
            prompt_tokens=self.conversation.read_anew,
            read_seconds=read_seconds + stats.read_seconds,
            first_token_seconds=read_seconds + stats.first_token_seconds,
        )
        words = f"turn    {stats.prompt_tokens:,} new tokens read, {stats.view.length:,} in the conversation"
        self.account = f"{words}\n{draw_account(self.lm.config, stats, completion.finish_reason)}"
        if self.show_stats:
            typer.echo(self.account, err=True)
        if completion.finish_reason == "cancelled":
            typer.echo("stopped", err=True)
        note = None if self._warned else self._instruction_note(stats.view.length)
        self._warned |= tell_note(note)

    def _instruction_note(self, length: int) -> str | None:
        """One line once the system prompt, or else the first message, begins to slide out of direct sight."""
        talk, tokenizer = self.conversation, self.lm.tokenizer
        config = self.lm.config if talk.session is None else talk.session.config
        if not slid_out(config, length) or not talk.messages:
            return None
        ids = tokenizer.encode_chat(talk.messages, safe_prompt=talk.safe_prompt)
        instruction = of_messages(tokenizer, ids, talk.messages, safe_prompt=talk.safe_prompt)
        if instruction is None:
            return None
        if talk.session is None:
            return leaving_note(config, instruction, length)
        return leaving_note(config, instruction, length, talk.session.pinned, talk.session.audit)
