"""From what the user gives `run` to tokens in an open session: files, standard input as it arrives, the prompt."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sash.cli.instruction_words import leaving_note
from sash.cli.interrupt import Interrupt
from sash.cli.kept_text import Going, settled
from sash.cli.live_text import check_file, joined, read_pieces
from sash.cli.live_tokens import encode_chat_live, encode_live
from sash.cli.reading_bar import ReadingBar
from sash.cli.window_words import limit
from sash.errors import EmptyPromptError, PinsError, PromptOverflowError, UnsupportedError, UsageError
from sash.explain.instruction import HEAD, Instruction, of_marks, of_messages
from sash.explain.prompt_parts import marked_parts, prompt_parts

if TYPE_CHECKING:
    from sash.cli.pin_options import Watched
    from sash.explain.audit import Audit, Part
    from sash.lm import LM
    from sash.network.config import ModelConfig
    from sash.session import Session
    from sash.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

KNOWN_BYTES = 1 << 26
"""Files up to this size together are encoded before the first token is read, so that their number can be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is to be read.

    Attributes:
        files: names in order; "-" is standard input.
        text: what comes after them; None for nothing.
        chat: whether it is sent through the model's chat format; None decides by the model.
        system: the system prompt of a chat.
        safe_prompt: whether the guardrail is put in front of a chat.
        size: bytes of all files together; None where some arrive.
    """

    files: tuple[str, ...]
    text: str | None
    chat: bool | None = None
    system: str | None = None
    safe_prompt: bool = False
    size: int | None = 0

    @staticmethod
    def check(
        files: Sequence[str], text: str | None, *, chat: bool | None, system: str | None, safe_prompt: bool
    ) -> Prompt:
        """A prompt whose files are there and are UTF-8.

        Raises:
            UsageError: standard input is named twice, or a system prompt for raw text.
            EmptyPromptError: nothing to read.
            InputNotFoundError, TextEncodingError: a file that cannot be read.
        """
        if files.count("-") > 1:
            raise UsageError("standard input can be read once: give -f - once")
        if chat is False and (system is not None or safe_prompt):
            raise UsageError("--raw reads plain text: leave out --system and --safe-prompt")
        if not files and not text:
            raise EmptyPromptError("there is nothing to read: give a PROMPT, -f FILE, or pipe some text in")
        sizes = [check_file(name) for name in files]
        known = None if None in sizes else sum(size or 0 for size in sizes)
        if known == 0 and not text:
            raise EmptyPromptError(f"{files[0]} is empty: give some text to read")
        return Prompt(
            files=tuple(files), text=text or None, chat=chat, system=system, safe_prompt=safe_prompt, size=known
        )

    def is_chat(self, tokenizer: Tokenizer, name: str) -> bool:
        """Whether it is sent through the model's chat format.

        Raises:
            UnsupportedError: that is asked for, and the model has none.
        """
        wanted = self.chat or self.system is not None or self.safe_prompt
        if wanted and not tokenizer.has_chat:
            option = "--chat" if self.chat else "--system" if self.system is not None else "--safe-prompt"
            raise UnsupportedError(f"{name} has no chat template, so {option} means nothing to it: leave it out")
        chosen = tokenizer.has_chat if self.chat is None else self.chat
        why = "asked for" if self.chat is not None else "the model has one" if chosen else "the model has none"
        logger.info("chat template: %s (%s)", "used" if chosen else "not used, plain text is read", why)
        return chosen

    def pieces(self, *, chat: bool, interrupt: Interrupt) -> Iterator[str]:
        """The text as it arrives.

        Raises:
            EmptyPromptError: it ended, and there was none.
        """
        texts = [read_pieces(name, interrupt.waiting) for name in self.files]
        seen = False
        for piece in joined([*texts, iter([self.text or ""])], paragraphs=chat):
            seen = True
            yield piece
        if not seen:
            raise EmptyPromptError("the prompt is empty: give some text to read")

    def token_ids(self, tokenizer: Tokenizer, *, chat: bool, interrupt: Interrupt) -> Iterator[list[int]]:
        """The tokens as they arrive."""
        pieces = self.pieces(chat=chat, interrupt=interrupt)
        if not chat:
            return encode_live(tokenizer, pieces)
        return encode_chat_live(tokenizer, self.messages(), pieces, safe_prompt=self.safe_prompt)

    def messages(self, text: str | None = None) -> list[dict[str, str]]:
        """The conversation that it is: the system prompt, if any, and `text`, if given, as the user's message."""
        begun = [] if self.system is None else [{"role": "system", "content": self.system}]
        return begun if text is None else [*begun, {"role": "user", "content": text}]

    def whole(
        self, tokenizer: Tokenizer, *, chat: bool, interrupt: Interrupt
    ) -> tuple[list[int], list[dict[str, str]], str]:
        """All of its tokens, the conversation that they render (no messages for plain text), and what the files say."""
        text = "".join(self.pieces(chat=chat, interrupt=interrupt))
        if not chat:
            return tokenizer.encode(text), [], text
        messages = self.messages(text)
        return tokenizer.encode_chat(messages, safe_prompt=self.safe_prompt), messages, text

    def instructions(self, tokenizer: Tokenizer, head: Sequence[int], *, chat: bool) -> list[Instruction]:
        """What is to be followed: the system prompt, or else the message; of plain text nothing says what."""
        if not chat:
            return []
        found = of_messages(tokenizer, head, self.messages("?"), safe_prompt=self.safe_prompt, stand_in=True)
        return [] if found is None else [found]


@dataclass(slots=True)
class Reading:
    """What was read into a session.

    Attributes:
        session: that has read it.
        first: tokens that it had read before.
        began, ended: when the reading began, and when the input had ended; seconds of `time.perf_counter`.
        seconds: spent in the network.
        head: the first tokens.
        parts: what an audit is to tell of.
        marks: what the user marked as instructions.
    """

    session: Session
    first: int = 0
    began: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0
    head: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    marks: list[Instruction] = field(default_factory=list)

    def feed(
        self,
        ids: list[int],
        progress: Callable[[int], None],
        pins: Sequence[range] = (),
        seers: Sequence[range] = (),
    ) -> None:
        """Read on; `pins` and `seers` as `Session.feed` takes them."""
        start = time.perf_counter()
        if len(self.head) < HEAD:
            self.head += ids[: HEAD - len(self.head)]
        if pins or seers:
            self.session.feed(ids, progress, pins=pins, seers=seers)
        else:
            self.session.feed(ids, progress)
        self.seconds += time.perf_counter() - start

    def audit(self, position: int) -> Audit:
        """What the token written at `position` could know of `parts`."""
        return self.session.audit(self.parts, position)

    def leaving(self, instructions: Sequence[Instruction]) -> str | None:
        """A word about the first of `instructions` that is not all in sight of what is written next."""
        session = self.session
        notes = (
            leaving_note(session.config, one, session.tokens, session.pinned, session.audit) for one in instructions
        )
        return next((note for note in notes if note is not None), None)


def read(
    lm: LM,
    prompt: Prompt,
    *,
    chat: bool,
    may_slide: bool,
    interrupt: Interrupt,
    watched: Watched | None = None,
    going: Going | None = None,
    whole: bool = True,
) -> Reading:
    """Read a prompt into a session, as it arrives.

    Args:
        lm: the model.
        prompt: what to read.
        chat: see `Prompt.is_chat`.
        may_slide: whether the prompt may be longer than the window.
        interrupt: asked between two chunks.
        watched: what is pinned and audited of it.
        going: what it goes on with, and how it may be gone on with; None for a prompt that is read for one answer.
        whole: whether it ends here; else it stays open, and what more text could change is not read.

    Raises:
        PromptOverflowError: longer than the window, where it may not be; nothing was read.
        PinsError, UsageError: what is to be pinned cannot be; nothing was read.
        KeyboardInterrupt: Ctrl-C was pressed; the session is whole.
    """
    pins: tuple[range, ...] = ()
    seers: tuple[range, ...] = ()
    total = None
    if watched is not None and watched.whole:
        ids, messages, text = prompt.whole(lm.tokenizer, chat=chat, interrupt=interrupt)
        pins, seers = _flagged(lm, watched, ids, messages, prompt)
        if going is not None and not whole:
            ids = ids[: settled(going.prompt.ids([text], whole=False), ids)]
            if any(span.stop > len(ids) for span in pins):
                raise PinsError("the end of a text that stays open cannot be pinned: pin less, or add a line")
        room = len(set().union(*pins, *seers))
        reading = Reading(lm.session(pins=room, sees=bool(seers)), began=time.perf_counter())
        _mark(reading, lm, watched, ids, messages, prompt)
        parts = iter([ids])
    else:
        session = going.session if going is not None else None
        if going is not None:
            parts = going.ids(prompt, whole=whole, interrupt=interrupt)
        else:
            parts = prompt.token_ids(lm.tokenizer, chat=chat, interrupt=interrupt)
        reading = Reading(session or lm.session(), session.tokens if session else 0, began=time.perf_counter())
    if not may_slide:
        parts = iter([_within(parts, lm.config)])
    if not may_slide or (prompt.size is not None and prompt.size <= KNOWN_BYTES):
        ids = list(itertools.chain.from_iterable(parts))
        parts, total = iter([ids]), len(ids)
    in_sight = limit(lm.config) if lm.config.window is not None else None

    def progress(count: int) -> None:
        bar.advance(count)
        interrupt.raise_if_requested()

    with ReadingBar(total, in_sight, at_once=total is None) as bar:
        for ids in parts:
            reading.ended = time.perf_counter()
            if ids:
                reading.feed(ids, progress, pins, seers)
    return reading


def _flagged(
    lm: LM, watched: Watched, ids: list[int], messages: list[dict[str, str]], prompt: Prompt
) -> tuple[tuple[range, ...], tuple[range, ...]]:
    """What is pinned, and what is global."""
    contract, sight = watched.holding(max(pattern.pins for pattern in lm.config.patterns)), watched.sight
    if not contract and not sight:
        return (), ()
    how: dict[str, Any] = {"safe_prompt": prompt.safe_prompt}
    room = contract.room(lm.config.windows)
    chosen = contract.choose(lm.tokenizer, ids, messages or None, **how)
    absent = next((words for words, spans in chosen.items() if not spans), None)
    if absent is not None:  # in a chat it may be still to come
        raise UsageError(f"there is no message {absent!r} to pin: the prompt's are {_roles(messages)}")
    pins = contract.fit(chosen, room)
    seeing = sight.choose(lm.tokenizer, ids, watched.n_written, messages or None, **how)
    return pins, sight.fit(seeing, pins, room)


def _roles(messages: list[dict[str, str]]) -> str:
    return " and ".join(message["role"] for message in messages) or "none"


def _mark(
    reading: Reading, lm: LM, watched: Watched, ids: list[int], messages: list[dict[str, str]], prompt: Prompt
) -> None:
    """Note the parts that are told of."""
    if watched.marks:
        reading.marks = of_marks(lm.tokenizer, ids, marked_parts(lm.tokenizer, ids, watched.marks))
    if watched.audit:
        reading.parts = prompt_parts(lm.tokenizer, ids, messages or None, safe_prompt=prompt.safe_prompt)


def _within(parts: Iterator[list[int]], config: ModelConfig) -> list[int]:
    """All ids, if the model sees them at once."""
    most = limit(config)
    ids: list[int] = []
    for part in parts:
        ids += part
        if most is not None and len(ids) > most:
            what = "window" if config.window is not None else "context that the model was trained on"
            raise PromptOverflowError(
                f"the prompt has more tokens than the {what} of {most:,}: shorten it, or use --overflow slide"
            )
    return ids
