"""A chat that reads only what is new: turns go into one open session, which goes back to where tokens begin to differ.

What changes the past (`undo`, `edit`, another system prompt, a template that renders earlier turns differently later
on, a pin on what was read without one) makes the next turn go back to the last token that is the same, as far as the
session's log allows it, and read on from there; without a log the whole conversation is read again. What is pinned
stays visible however long the conversation becomes. What is global is so in the turn that is asked now: a rule that
names the last message names another one with every turn, and an answer that was global is ordinary text once it was
given; what is flagged otherwise than before is read again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sash.answer import Stream
from sash.completion import Completion
from sash.errors import UsageError
from sash.sampling import SamplingParams
from sash.session import Session
from sash.text.pins import Contract, runs_of
from sash.text.sight import Sight
from sash.text.tokenizer import Tokenizer
from sash.text.turns import Turns

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """The end of an answer in the session, whose tokens are as they were written: its text may encode otherwise.

    Attributes:
        said: the messages up to there.
        end: tokens of the session up to there.
        pins: what was pinned of the rendered conversation up to there.
        seers: what was global of it, but for what was being written.
    """

    said: tuple[dict[str, str], ...]
    end: int
    pins: tuple[range, ...]
    seers: tuple[range, ...] = ()


@dataclass(frozen=True, slots=True)
class ToRead:
    """Tokens that a session shall have read, and the positions that are flagged, some of them of tokens to come."""

    ids: list[int]
    pinned: set[int]
    seers: set[int]


class Conversation(Turns):
    """Messages, and the session that has read them.

    Attributes:
        messages: the conversation so far, each {"role": ..., "content": ...}.
        session: what has read it, or an earlier state of it; None where nothing was read.
        read_anew: tokens that the last turn had to read.
        contract: what is pinned.
        sight: what is global.
        room: how many tokens may be either.
        pinned, seers: positions of the rendered conversation that are.
        marks: ends of answers in the session.
    """

    def __init__(
        self,
        open_session: Callable[[], Session],
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        safe_prompt: bool = False,
        contract: Contract | None = None,
        sight: Sight | None = None,
        room: int = 0,
    ) -> None:
        """`contract` says what is pinned, `sight` what is global, in sessions with `room` for so many such tokens."""
        super().__init__(system)
        self._open_session, self._tokenizer = open_session, tokenizer
        self.contract, self.sight, self.room = contract or Contract(), sight or Sight(), room
        self.safe_prompt = safe_prompt
        self.session: Session | None = None
        self.read_anew = 0
        self.pinned: tuple[range, ...] = ()
        self.seers: tuple[range, ...] = ()
        self.marks: list[Mark] = []

    def take_up(self, messages: list[dict[str, str]], session: Session | None, marks: list[Mark]) -> None:
        """Go on with messages and with what has read them."""
        self.messages = [dict(message) for message in messages]
        self.session, self.marks = session, marks

    def say(
        self,
        text: str,
        params: SamplingParams | None = None,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Stream:
        """Add a user's message and stream the answer.

        `progress` is called with the number of tokens read after each chunk, `cancelled` is asked between two steps of
        writing. Should `progress` raise, the message is not taken; what was read of it the next turn need not read.

        What was written counts as the answer even if the stream is closed early. If nothing was, or the template
        refuses the message, the conversation stays as it was.

        Raises:
            TokenizerError: the model has no chat template, or it refuses the message.
            PinsError: more is to be pinned or global than there is room for; the conversation is as before.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        params = params or SamplingParams()
        session = self._read(turn, progress, params.max_tokens)
        self.messages = turn
        stream = session.stream(params, cancelled, continues=False)
        answered = False

        def completion() -> Completion:
            return stream.completion

        def keep() -> None:
            nonlocal answered
            if not answered:
                answered = True
                self.messages = turn[:-1]
                done = stream.completion
                if done.token_ids:
                    self.messages = [*turn, {"role": "assistant", "content": done.text}]
                    said = tuple(map(dict, self.messages))
                    self.marks.append(Mark(said, session.tokens, self.pinned, self.seers))

        def pieces() -> Iterator[str]:
            try:
                yield from stream
            finally:
                stream.close()
                keep()

        def close() -> None:
            stream.close()
            keep()

        return Stream(pieces(), completion, close)

    def retry(
        self,
        params: SamplingParams | None = None,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Stream:
        """Answer the last message of the user once more; as `say`.

        Raises:
            UsageError: there is none.
        """
        return self.edit(-1, None, params, progress, cancelled)

    def edit(
        self,
        number: int,
        text: str | None,
        params: SamplingParams | None = None,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Stream:
        """Say `text` (None: the same) in the place of a message of the user; what followed it is taken back.

        `number` counts the user's messages from 1, or back from -1; for the rest see `say`.

        Raises:
            UsageError: there is no such message.
        """
        before = self.messages
        asked = [at for at, message in enumerate(before) if message["role"] == "user"]
        index = number - 1 if number > 0 else len(asked) + number
        if number == 0 or not 0 <= index < len(asked):
            raise UsageError(f"there is no message {number} of the user: there are {len(asked)}")
        self.messages = before[: asked[index]]
        try:
            return self.say(before[asked[index]]["content"] if text is None else text, params, progress, cancelled)
        except BaseException:
            self.messages = before
            raise

    def _read(self, turn: list[dict[str, str]], progress: Callable[[int], None] | None, n_written: int) -> Session:
        """The session, once it has read all of `turn`, after which up to `n_written` tokens are written."""
        prompt = self._tokenizer.encode_chat(turn, safe_prompt=self.safe_prompt)
        pins, seers = self._chosen(prompt, turn, n_written)
        wanted = self._to_read(turn, prompt, pins, seers)
        if self.session is None:
            self.session = self._open_session()
        known = self.session.return_to(wanted.ids, wanted.pinned, wanted.seers)
        self.read_anew, self.marks = len(wanted.ids) - known, [mark for mark in self.marks if mark.end <= known]
        flags = [runs_of(sorted(at - known for at in some if at >= known)) for some in (wanted.pinned, wanted.seers)]
        self.session.feed(wanted.ids[known:], progress, pins=flags[0], seers=flags[1])
        self.pinned, self.seers = pins, tuple(span for span in seers if span.start < len(prompt))
        return self.session

    def _chosen(
        self, prompt: list[int], turn: list[dict[str, str]], n_written: int
    ) -> tuple[tuple[range, ...], tuple[range, ...]]:
        """What is pinned and what is global of a conversation that was rendered so, and of what is written after it."""
        how: dict[str, Any] = {"strict": False, "safe_prompt": self.safe_prompt}
        pins: tuple[range, ...] = ()
        if self.contract:
            pins = self.contract.fit(self.contract.choose(self._tokenizer, prompt, turn, **how), self.room)
        if not self.sight:
            return pins, ()
        return pins, self.sight.fit(self.sight.choose(self._tokenizer, prompt, n_written, turn, **how), pins, self.room)

    def _to_read(
        self, turn: list[dict[str, str]], prompt: list[int], pins: tuple[range, ...], seers: tuple[range, ...]
    ) -> ToRead:
        """The tokens that the session shall have read, and which of them are flagged.

        Answers are in the session as they were written, token by token. So the new part is what follows the last of
        them in the rendered conversation, where that begins as it did; else all of it is as it is rendered. Answers
        that were global are to be read again anyway, and count as they are rendered.
        """
        session = self.session
        held = None if session is None else session.ids
        for mark in reversed(() if self.sight.answer else self.marks):
            if session is None or held is None or list(mark.said) != turn[: len(mark.said)]:
                continue
            so_far = self._tokenizer.encode_chat(list(mark.said), continue_final=True, safe_prompt=self.safe_prompt)
            known = len(so_far)
            flags = _before(pins, known), _before(seers, known)
            if prompt[:known] != so_far or flags != (_before(mark.pins, known), _before(mark.seers, known)):
                logger.info("the conversation is rendered or flagged differently now: going back")
                continue
            known += len(prompt) > known and prompt[known] == held[mark.end - 1]
            kept = [{at for at in some if at < mark.end} for some in (session.pinned, session.global_positions)]
            moved = [{at - known + mark.end for span in some for at in span if at >= known} for some in (pins, seers)]
            return ToRead([*held[: mark.end], *prompt[known:]], kept[0] | moved[0], kept[1] | moved[1])
        return ToRead(prompt, {at for span in pins for at in span}, {at for span in seers for at in span})


def _before(spans: tuple[range, ...], end: int) -> set[int]:
    return {at for span in spans for at in span if at < end}
