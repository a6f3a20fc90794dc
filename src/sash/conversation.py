"""A chat that reads only what is new: turns go into one open session, as long as the template lets them.

A rolling buffer cannot be cut back, so what changes the past (`retry`, `undo`, another system prompt) makes the next
turn read the whole conversation again; so does a template that renders earlier turns differently later on, and a pin
on what was read without one. What is pinned stays visible however long the conversation becomes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from sash.completion import Completion
from sash.sampling import SamplingParams
from sash.session import Session, Stream
from sash.text.pins import Contract
from sash.text.tokenizer import Tokenizer
from sash.text.turns import Turns

logger = logging.getLogger(__name__)


class Conversation(Turns):
    """Messages, and the session that has read them.

    Attributes:
        messages: the conversation so far, each {"role": ..., "content": ...}.
        session: what has read it; None until the next turn reads it (again).
        read_anew: tokens that the last turn had to read.
        contract, room: what is pinned, and how many tokens may be.
        pinned: positions of the rendered conversation that are.
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
        self._ended: int | None = None

    def set_system(self, system: str | None) -> None:
        """Change the system prompt; the next turn reads everything again."""
        super().set_system(system)
        self.session = None

    def replace(self, messages: list[dict[str, str]]) -> None:
        """Continue another conversation; the next turn reads it whole."""
        super().replace(messages)
        self.session = None

    def undo(self) -> str:
        """Take back the last turn, question and answer; the question.

        Raises:
            UsageError: there is no turn to take back.
        """
        question = super().undo()
        self.session = None
        return question

    def say(
        self,
        text: str,
        params: SamplingParams | None = None,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Stream:
        """Add a user's message and stream the answer.

        `progress` is called with the number of tokens read after each chunk, `cancelled` is asked between two steps of
        writing. Should `progress` raise, the message is not taken, and the next turn reads the conversation again.

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
                done = stream.completion
                if not done.token_ids:
                    self.messages, self.session = turn[:-1], None
                    return
                self.messages.append({"role": "assistant", "content": done.text})
                self._ended = done.token_ids[-1]

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

    def _read(self, turn: list[dict[str, str]], progress: Callable[[int], None] | None) -> Session:
        """The session, once it has read all of `turn`."""
        prompt = self._tokenizer.encode_chat(turn, safe_prompt=self.safe_prompt)
        fresh = self._new_tokens(prompt)
        pins = self._chosen(prompt, turn)
        known = 0 if fresh is None else len(prompt) - len(fresh)
        if _before(pins, known) != _before(self.pinned, known):
            logger.info("what is pinned of earlier turns is different now: reading them again")
            fresh = None
        if self.session is None or fresh is None:
            self.session, fresh = self._open_session(), prompt
        session, start = self.session, len(prompt) - len(fresh)
        self.read_anew = len(fresh)
        try:
            session.feed(
                fresh, progress, pins=[range(max(0, p.start - start), p.stop - start) for p in pins if p.stop > start]
            )
            self.pinned = pins
        except BaseException:
            self.session = None
            raise
        return session

    def _chosen(self, prompt: list[int], turn: list[dict[str, str]]) -> tuple[range, ...]:
        """What the contract pins of a conversation that was rendered so."""
        if not self.contract:
            return ()
        chosen = self.contract.choose(self._tokenizer, prompt, turn, strict=False, safe_prompt=self.safe_prompt)
        return self.contract.fit(chosen, self.room)

    def _new_tokens(self, prompt: list[int]) -> list[int] | None:
        """What `prompt` adds to what the session has read; None if the session has to begin anew.

        The answer is in the session as it was written, token by token; its text may encode otherwise. So the new
        part is what follows the answer in the rendered conversation.
        """
        if self.session is None or not self.messages or self.messages[-1]["role"] != "assistant":
            return None
        so_far = self._tokenizer.encode_chat(self.messages, continue_final=True, safe_prompt=self.safe_prompt)
        if prompt[: len(so_far)] != so_far:
            logger.info("the template renders the conversation differently now: reading it again")
            return None
        fresh = prompt[len(so_far) :]
        if fresh and fresh[0] == self._ended:
            fresh = fresh[1:]
        return fresh


def _before(spans: tuple[range, ...], end: int) -> set[int]:
    return {at for span in spans for at in span if at < end}
