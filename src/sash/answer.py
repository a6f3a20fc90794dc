"""From sampled tokens to text: one answer under way, whoever drives the engine.

Whole characters only; what may be the beginning of a stop string is held back until it is known not to be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many

from sash.completion import Completion, Statistics, View, full_cache_bytes
from sash.engine.request import Event, Sequence, Token
from sash.network.cache import KVCache
from sash.text.stream import Detokenizer, StopMatcher
from sash.text.tokenizer import Tokenizer


class Stream:
    """Pieces of an answer as they are written: iterate over it; afterwards `completion` holds the whole.

    Stopping early (`close`, or leaving the loop) ends the answer where it is.
    """

    def __init__(self, pieces: Iterator[str], finish: Callable[[], Completion], close: Callable[[], None]) -> None:
        self._pieces, self._finish, self._close = pieces, finish, close

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """End the answer now; what was written so far stays."""
        self._close()

    @property
    def completion(self) -> Completion:
        """The answer as far as it has been written."""
        return self._finish()


class Answer:
    """Gathers the events of one sequence into a completion.

    Attributes:
        stopped: whether a stop string was found; the sequence is then to be cancelled with the reason "stop".
    """

    def __init__(
        self,
        sequence: Sequence,
        tokenizer: Tokenizer,
        cache: KVCache,
        *,
        stop: Many[str] = (),
        continues: bool = True,
        pinned: Many[int] = (),
        seers: Many[int] = (),
    ) -> None:
        """`continues` says that the answer goes on the prompt's text, so that a space in front of it counts.

        `pinned` are the positions of the sequence that are flagged to stay visible, `seers` those that are global.
        """
        self._sequence, self._cache, self._pinned, self._seers = sequence, cache, pinned, seers
        self._stop_ids = sequence.request.stop_ids
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
        self._matcher = StopMatcher(stop)
        self._text: list[str] = []
        self._tokens: list[Token] = []
        held = sequence.request.held
        self._read_before = 0 if held is None else held.n_read
        self._began = time.perf_counter()
        self._read_at = self._first_at = self._last_at = self._began
        self.stopped = False

    def take(self, event: Event) -> str:
        """Take an event of this sequence; the text that is now safe to show."""
        now = time.perf_counter()
        if event.n_read:
            self._read_at = now
        if event.token is None:
            return self._finish() if self._sequence.finish_reason is not None else ""
        if not self._tokens:
            self._first_at = now
        self._last_at = now
        self._tokens.append(event.token)
        piece = ""
        ends = event.token.token_id in self._stop_ids and self._sequence.finish_reason == "stop"
        if not ends:
            piece, self.stopped = self._matcher.add(self._detokenizer.add(event.token.token_id))
        self._text.append(piece)
        if self._sequence.finish_reason is not None and not self.stopped:
            piece += self._finish()
        return piece

    def flush(self) -> str:
        """The text that was held back, of a sequence that was cancelled: it can become nothing else any more."""
        return self._finish()

    def _finish(self) -> str:
        piece, self.stopped = self._matcher.add(self._detokenizer.flush())
        if not self.stopped:
            piece += self._matcher.flush()
        self._text.append(piece)
        return piece

    def completion(self) -> Completion:
        """The answer as it stands.

        Raises:
            SashError: what ended the sequence, if an error did.
        """
        sequence = self._sequence
        if sequence.error is not None:
            raise sequence.error
        reason = "stop" if self.stopped else sequence.finish_reason or "cancelled"
        wanted = sequence.request.params.logprobs is not None
        return Completion(
            text="".join(self._text),
            token_ids=tuple(token.token_id for token in self._tokens),
            finish_reason=reason,
            logprobs=tuple(self._tokens) if wanted else None,
            stats=self._statistics(),
        )

    def _statistics(self) -> Statistics:
        sequence, config = self._sequence, self._cache.config
        length = sequence.request.position + sequence.n_known
        held = sequence.request.held
        if held is None:
            view, n_kept = View.of(config, length, self._pinned, self._seers), length
        else:
            in_sight = held.in_sight(sequence.n_known - sequence.n_read)
            view, n_kept = View.of_reading(config, length, *in_sight), in_sight[0]
        return Statistics(
            prompt_tokens=len(sequence.request.prompt_ids),
            completion_tokens=len(self._tokens),
            read_seconds=self._read_at - self._began,
            first_token_seconds=self._first_at - self._began,
            write_seconds=self._last_at - self._first_at,
            view=view,
            kv_dtype=str(self._cache.numbers).removeprefix("torch."),
            kv_bytes=self._cache.bytes_of(n_kept),
            kv_bytes_full=full_cache_bytes(config, length, *self._cache.number_bytes),
            forced_window=config.forced_window,
            tokens_read=sequence.n_read - sequence.n_reused if held is None else held.n_read - self._read_before,
            overlap=None if held is None else held.overlap.stride,
            drafted_tokens=sequence.n_drafted,
            accepted_tokens=sequence.n_accepted,
        )
