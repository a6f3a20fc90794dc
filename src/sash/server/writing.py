"""From sampled tokens to parts of an answer, on the engine's thread: whole characters, and never a stop string."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sash.engine.request import Event, Sequence, Token
from sash.server.mail import Box
from sash.text.stream import Detokenizer, StopMatcher
from sash.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one step of the engine did to one answer.

    Attributes:
        index: which answer of the request.
        text: text that is safe to show.
        tokens: tokens written, for their log-probabilities; kept only where the request wants those.
        n_read: tokens of the prompt that were read.
        n_done: tokens of the prompt that are read by now, those taken from a snapshot included.
        n_cached: tokens of the prompt that were taken from a snapshot.
        ended: the sequence, once it is over.
        reason: why it is over: "stop", "length", "cancelled" or "error".
    """

    index: int
    text: str = ""
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
        wants_tokens: bool = False,
        on_gap: Callable[[float], None] | None = None,
    ) -> None:
        """`continues`: the text goes on the prompt's; `on_gap` is told the seconds between two tokens."""
        self._index, self._box, self._wants_tokens, self._on_gap = index, box, wants_tokens, on_gap
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
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
            text = self._text(event)
        except BaseException:
            if not over:
                raise
            text = ""
        tokens = (event.token,) if event.token is not None and self._wants_tokens else ()
        if not (over or text or tokens or event.n_read):
            return self._stopped
        self._ended = over
        part = Part(
            index=self._index,
            text=text,
            tokens=tokens,
            n_read=event.n_read,
            n_done=min(sequence.n_read, len(sequence.request.prompt_ids)),
            n_cached=sequence.n_reused,
            ended=sequence if over else None,
            reason="stop" if over and self._stopped else str(sequence.finish_reason or ""),
        )
        size = len(text) + sum(80 * (1 + len(token.top)) for token in tokens) + 16
        return not self._box.put(part, size) or self._stopped

    def _text(self, event: Event) -> str:
        sequence, token = event.sequence, event.token
        reason = sequence.finish_reason
        text = ""
        if token is not None and not self._stopped:
            self._measure()
            if not (reason == "stop" and token.token_id in sequence.request.stop_ids):
                text, self._stopped = self._matcher.add(self._detokenizer.add(token.token_id))
        if reason is not None and not self._stopped:
            tail, self._stopped = self._matcher.add(self._detokenizer.flush())
            text += tail + ("" if self._stopped else self._matcher.flush())
        return text

    def _measure(self) -> None:
        now = time.monotonic()
        if self._last_at is None:
            self.first_token_at = now
        elif self._on_gap is not None:
            self._on_gap(now - self._last_at)
        self._last_at = now
