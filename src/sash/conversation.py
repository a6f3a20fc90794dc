"""A chat that reads only what is new: turns go into one open session, which goes back to where tokens begin to differ.

What changes the past (`undo`, `edit`, another system prompt, a template that renders earlier turns differently later
on, a pin on what was read without one) makes the next turn go back to the last token that is the same, as far as the
session's log allows it, and read on from there; without a log the whole conversation is read again. What is pinned
stays visible however long the conversation becomes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sash.answer import Stream
from sash.completion import Completion
from sash.errors import UsageError
from sash.sampling import SamplingParams
from sash.session import Session
from sash.text.pins import Contract, runs_of
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
    """

    said: tuple[dict[str, str], ...]
    end: int
    pins: tuple[range, ...]


class Conversation(Turns):
    """Messages, and the session that has read them.

    Attributes:
        messages: the conversation so far, each {"role": ..., "content": ...}.
        session: what has read it, or an earlier state of it; None where nothing was read.
        read_anew: tokens that the last turn had to read.
        contract, room: what is pinned, and how many tokens may be.
        pinned: positions of the rendered conversation that are.
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
        room: int = 0,
    ) -> None:
        """`contract` says what is pinned, in sessions that are opened with `room` for so many tokens."""
        super().__init__(system)
        self._open_session, self._tokenizer = open_session, tokenizer
        self.contract, self.room = contract or Contract(), room
        self.safe_prompt = safe_prompt
        self.session: Session | None = None
        self.read_anew = 0
        self.pinned: tuple[range, ...] = ()
        self.marks: list[Mark] = []

    def take_up(
        self, messages: list[dict[str, str]], session: Session | None, marks: list[Mark], pins: tuple[range, ...] = ()
    ) -> None:
        """Go on with messages and with what has read them; `pins` are those of the rendered conversation."""
        self.messages = [dict(message) for message in messages]
        self.session, self.marks, self.pinned = session, marks, pins

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
            PinsError: more is to be pinned than the contract's budget; the conversation is as before.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        session = self._read(turn, progress)
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
                    self.marks.append(Mark(tuple(map(dict, self.messages)), session.tokens, self.pinned))

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

    def _read(self, turn: list[dict[str, str]], progress: Callable[[int], None] | None) -> Session:
        """The session, once it has read all of `turn`."""
        prompt = self._tokenizer.encode_chat(turn, safe_prompt=self.safe_prompt)
        pins = self._chosen(prompt, turn)
        ids, pinned = self._to_read(turn, prompt, pins)
        if self.session is None:
            self.session = self._open_session()
        known = self.session.return_to(ids, pinned)
        self.read_anew, self.marks = len(ids) - known, [mark for mark in self.marks if mark.end <= known]
        self.session.feed(ids[known:], progress, pins=runs_of(sorted(at - known for at in pinned if at >= known)))
        self.pinned = pins
        return self.session

    def _chosen(self, prompt: list[int], turn: list[dict[str, str]]) -> tuple[range, ...]:
        """What the contract pins of a conversation that was rendered so."""
        if not self.contract:
            return ()
        chosen = self.contract.choose(self._tokenizer, prompt, turn, strict=False, safe_prompt=self.safe_prompt)
        return self.contract.fit(chosen, self.room)

    def _to_read(
        self, turn: list[dict[str, str]], prompt: list[int], pins: tuple[range, ...]
    ) -> tuple[list[int], set[int]]:
        """The tokens that the session shall have read, and which of them are pinned.

        Answers are in the session as they were written, token by token. So the new part is what follows the last of
        them in the rendered conversation, where that begins as it did; else all of it is as it is rendered.
        """
        session = self.session
        held = None if session is None else session.ids
        for mark in reversed(self.marks):
            if session is None or held is None or list(mark.said) != turn[: len(mark.said)]:
                continue
            so_far = self._tokenizer.encode_chat(list(mark.said), continue_final=True, safe_prompt=self.safe_prompt)
            known = len(so_far)
            if prompt[:known] != so_far or _before(pins, known) != _before(mark.pins, known):
                logger.info("the conversation is rendered or pinned differently now: going back")
                continue
            known += len(prompt) > known and prompt[known] == held[mark.end - 1]
            moved = {at - known + mark.end for span in pins for at in span if at >= known}
            kept = {at for at in session.pinned if at < mark.end}
            return [*held[: mark.end], *prompt[known:]], kept | moved
        return prompt, {at for span in pins for at in span}


def _before(spans: tuple[range, ...], end: int) -> set[int]:
    return {at for span in spans for at in span if at < end}
