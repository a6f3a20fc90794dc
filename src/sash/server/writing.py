"""From sampled tokens to parts of an answer, on the engine's thread: whole characters, and never a stop string."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sash.engine.request import Event, Sequence, Token
from sash.server.mail import Box
from sash.server.tools import Calling
from sash.text.stream import Detokenizer, StopMatcher
from sash.text.tokenizer import Tokenizer
from sash.text.tool_parser import Said, ToolParser
from sash.text.tools import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one step of the engine did to one answer.

    Attributes:
        index: which answer of the request.
        text: text that is safe to show.
        calls: calls of tools that are whole now.
        tokens: tokens written, for their log-probabilities; kept only where the request wants those.
        n_read: tokens of the prompt that were read.
        n_done: tokens of the prompt that are read by now, those taken from a snapshot included.
        n_cached: tokens of the prompt that were taken from a snapshot.
        ended: the sequence, once it is over.
        reason: why it is over: "stop", "length", "tool_calls", "cancelled" or "error".
    """

    index: int
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    tokens: tuple[Token, ...] = ()
    n_read: int = 0
    n_done: int = 0
    n_cached: int = 0
    ended: Sequence | None = None
    reason: str = ""


class Writer:
    """Takes the events of one sequence and puts parts into the box of its request.

    Attributes:
        first_token_at: when the first token came, by the clock of `time.monotonic`; None before that.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        box: Box[Part],
        *,
        stop: tuple[str, ...] = (),
        continues: bool = False,
        calling: Calling | None = None,
        wants_tokens: bool = False,
        on_gap: Callable[[float], None] | None = None,
        on_end: Callable[[Sequence, str], None] | None = None,
    ) -> None:
        """`continues`: the text goes on the prompt's; `on_gap` is told the seconds between two tokens.

        `calling`: the tools that the answer may call; `on_end` is told the sequence and why it ended, once.
        """
        self._index, self._box, self._wants_tokens = index, box, wants_tokens
        self._on_gap, self._on_end = on_gap, on_end
        self._calling = calling or Calling()
        names = self._calling.names
        self._reader = ToolParser(tokenizer, names, continues=continues) if names else _Plain(tokenizer, continues)
        self._n_calls = 0
        self._matcher = StopMatcher(stop)
        self._stopped = self._ended = False
        self._last_at: float | None = None
        self.first_token_at: float | None = None

    def __call__(self, event: Event) -> bool:
        """Take an event; True to stop the sequence: a stop string was written, or the client does not read."""
        if self._ended:
            return False
        sequence = event.sequence
        over = sequence.finish_reason is not None
        try:
            said = self._said(event)
        except BaseException:
            if not over:
                raise
            said = Said()
        text, calls = said.text, self._allowed(said.calls)
        tokens = (event.token,) if event.token is not None and self._wants_tokens else ()
        if not (over or text or calls or tokens or event.n_read):
            return self._stopped
        self._ended = over
        if over and self._on_end is not None:
            self._on_end(sequence, self._reason(sequence))
        part = Part(
            index=self._index,
            text=text,
            calls=calls,
            tokens=tokens,
            n_read=event.n_read,
            n_done=min(sequence.n_read, len(sequence.request.prompt_ids)),
            n_cached=sequence.n_reused,
            ended=sequence if over else None,
            reason=self._reason(sequence),
        )
        size = (
            len(text)
            + sum(len(call.arguments) for call in calls)
            + sum(80 * (1 + len(token.top)) for token in tokens)
            + 16
        )
        return not self._box.put(part, size) or self._stopped

    def _said(self, event: Event) -> Said:
        sequence, token = event.sequence, event.token
        reason = sequence.finish_reason
        said = Said()
        if token is not None and not self._stopped:
            self._measure()
            if not (reason == "stop" and token.token_id in sequence.request.stop_ids):
                said = self._matched(self._reader.add(token.token_id))
        if reason is not None and not self._stopped:
            tail = self._matched(self._reader.flush())
            held = "" if self._stopped else self._matcher.flush()
            said = Said(said.text + tail.text + held, said.calls + tail.calls)
        return said

    def _matched(self, said: Said) -> Said:
        text, self._stopped = self._matcher.add(said.text)
        return Said(text, said.calls)

    def _allowed(self, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        """Calls that the request allows: all, or the first of the answer."""
        if not self._calling.parallel:
            calls = calls[: max(0, 1 - self._n_calls)]
        self._n_calls += len(calls)
        return calls

    def _reason(self, sequence: Sequence) -> str:
        reason = "stop" if self._stopped else str(sequence.finish_reason or "")
        return "tool_calls" if reason == "stop" and self._n_calls else reason

    def _measure(self) -> None:
        now = time.monotonic()
        if self._last_at is None:
            self.first_token_at = now
        elif self._on_gap is not None:
            self._on_gap(now - self._last_at)
        self._last_at = now


class _Plain:
    """Reads an answer in which nothing is a call."""

    def __init__(self, tokenizer: Tokenizer, continues: bool) -> None:
        self._detokenizer = Detokenizer(tokenizer, continues=continues)

    def add(self, token_id: int) -> Said:
        return Said(self._detokenizer.add(token_id))

    def flush(self) -> Said:
        return Said(self._detokenizer.flush())
