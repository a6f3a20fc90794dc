"""A rolling buffer kept open: feed it as often as you like, forever, and let it write at any point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many

import torch

from sash.answer import Answer
from sash.asked import audit_at
from sash.completion import Completion, View
from sash.engine.engine import Engine
from sash.engine.overlap import Held, Overlap
from sash.engine.proposer import Speculation
from sash.engine.request import Request, Sequence
from sash.errors import EmptyPromptError, PinsError, UsageError
from sash.explain.audit import Audit, Part
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.packed import Network
from sash.sampling import SamplingParams, SeenTokens
from sash.text.pins import runs_of
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


class Session:
    """One sequence without end, in the memory of its window.

    Everything fed and written is read once. The last known token always waits unread, so that an answer can begin
    with it.

    Attributes:
        tokens: tokens fed and written so far.
    """

    def __init__(
        self,
        decoder: Network,
        tokenizer: Tokenizer,
        cache: KVCache,
        *,
        chunk: int = 512,
        overlap: Overlap | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """`overlap` reads by overlapping windows; the cache needs room for the tokens of one reading.

        `speculation` guesses tokens to come, which makes answers faster and leaves them as they are.
        """
        self._held = None if overlap is None else Held(overlap, tokenizer.bos_id)
        self._decoder, self._tokenizer, self._cache, self._chunk = decoder, tokenizer, cache, chunk
        self._row = cache.allocate()
        self._unread: list[int] = []
        self._seen = SeenTokens()
        self._pinned: set[int] = set()
        self._seers: set[int] = set()
        self._speculation, self._proposer = speculation, None if speculation is None else speculation.open()
        self.tokens = 0

    @property
    def config(self) -> ModelConfig:
        """The model that reads, with its windows and its room for pins."""
        return self._cache.config

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held."""
        return self._cache.nbytes

    @property
    def view(self) -> View:
        """What the last token can see."""
        if self._held is not None:
            return View.of_reading(self._cache.config, self.tokens, *self._held.in_sight(len(self._unread)))
        return View.of(self._cache.config, self.tokens, self.pinned, self.global_positions)

    @property
    def tokens_read(self) -> int:
        """Tokens that went through the network; those that were read again, again."""
        return self.tokens - len(self._unread) if self._held is None else self._held.n_read

    @property
    def overlap(self) -> Overlap | None:
        """How it reads by overlapping windows; None where they roll."""
        return None if self._held is None else self._held.overlap

    @property
    def pinned(self) -> tuple[int, ...]:
        """Positions that were flagged to stay visible."""
        return tuple(sorted(self._pinned))

    @property
    def global_positions(self) -> tuple[int, ...]:
        """Positions that are global; those after `tokens` are to be written."""
        return tuple(sorted(self._seers))

    def feed(
        self,
        text: str | list[int],
        progress: Callable[[int], None] | None = None,
        *,
        pins: bool | Many[range] = False,
        seers: Many[range] = (),
    ) -> int:
        """Read on.

        Args:
            text: text, encoded by itself (with the model's begin-of-text id if nothing was fed before), or token ids.
            progress: called with the number of tokens read after each chunk.
            pins: whether all of it stays visible to every later token, or which of its tokens, counted from 0; the
                session must have been opened with room for them.
            seers: which tokens are global, counted from 0; those after the text are those that come next.

        Returns:
            How many tokens it was.

        Raises:
            UsageError: a token id that the model does not have.
            PinsError: more pins than there is room for; nothing was read.
        """
        ids = self._tokenizer.encode(text, bos=self.tokens == 0) if isinstance(text, str) else list(text)
        check_ids(ids, self._decoder.config.vocab_size)
        self._pin(pins if not isinstance(pins, bool) else [range(len(ids))] if pins else [], len(ids), seers)
        self._unread += ids
        self.tokens += len(ids)
        self._seen.extend(ids)
        if self._proposer is not None:
            self._proposer.extend(ids)
        if self._held is not None:
            self._feed_again(self._held, progress)
            return len(ids)
        while len(self._unread) > 1:
            count = min(self._chunk, len(self._unread) - 1)
            first = self.tokens - len(self._unread)
            self._read(self._unread[:count], [at in self._pinned for at in range(first, first + count)])
            del self._unread[:count]
            if progress is not None:
                progress(count)
        return len(ids)

    def _feed_again(self, held: Held, progress: Callable[[int], None] | None) -> None:
        """Read all but the last token that waits, by overlapping windows."""
        first = self.tokens - len(self._unread)
        waiting = [(token_id, first + at in self._pinned) for at, token_id in enumerate(self._unread[:-1])]
        fresh = held.settle(waiting)
        while True:
            del waiting[:fresh], self._unread[:fresh]
            if progress is not None:
                progress(fresh)
            count = min(self._chunk, len(held.again) + len(waiting))
            if not count:
                return
            part = [*((token.token_id, token.pinned) for token in held.again[:count]), *waiting][:count]
            if not held.row:
                self._cache.wipe(self._row)
            self._read([token_id for token_id, _ in part], [pinned for _, pinned in part])
            fresh = held.read(count, waiting)

    def _pin(self, spans: Many[range], n_tokens: int, seers: Many[range] = ()) -> None:
        """Flag some of the next `n_tokens` tokens; `seers` are global."""
        if any(span.start < 0 or span.stop > n_tokens for span in spans):
            raise PinsError(f"only tokens that are fed can be pinned, 0 to {n_tokens - 1}")
        wanted = self._pinned.union(*(range(self.tokens + span.start, self.tokens + span.stop) for span in spans))
        seeing = self._seers.union(*(range(self.tokens + span.start, self.tokens + span.stop) for span in seers))
        room = pin_room(self._cache.config, sees=bool(seeing))
        if self._held is not None and wanted:
            self._held.check_room(len(wanted))
        if self._held is not None and seeing:
            raise UsageError("global tokens see what rolled out of a window, and windows that overlap read it again")
        if len(wanted | seeing) > room:
            raise PinsError(
                f"{len(wanted | seeing):,} tokens would be pinned{' or global' if seeing else ''}, and the session has"
                f" room for {room:,}: open one with more, lm.session(pins=N{', sees=True' if seeing else ''})"
            )
        self._pinned, self._seers = wanted, seeing

    def audit(self, parts: Many[Part], position: int | None = None) -> Audit:
        """What the token that is written next could know of parts of what was read: names with ranges of positions.

        With a `position`, what the one written there could, or can.

        Raises:
            UsageError: nothing was read yet, or a part that was not.
        """
        if not self.tokens:
            raise UsageError("the session has read nothing yet: feed it some text first")
        at, leads = self.tokens if position is None else position, self._held is not None and self._held.leads
        flags = self.pinned, self.global_positions
        return audit_at(self.config, self.overlap, at, parts, *flags, leads=leads)

    @torch.inference_mode()
    def _read(self, ids: list[int], flags: list[bool]) -> None:
        first = self._cache.lengths[self._row]
        seers = [at in self._seers for at in range(first, first + len(ids))]
        batch = Batch.pack(
            [ids],
            [first],
            [self._row],
            pinned=[flags] if any(flags) else None,
            is_global=[seers] if any(seers) else None,
            device=self._cache.device,
        )
        self._decoder(batch, self._cache)

    def stream(
        self,
        params: SamplingParams | None = None,
        cancelled: Callable[[], bool] | None = None,
        *,
        continues: bool = True,
    ) -> Stream:
        """Write on, piece by piece.

        Args:
            params: how to sample.
            cancelled: asked between two steps, even where a step shows no text; True ends the answer there.
            continues: whether the answer goes on the text that was fed; an answer in a chat begins a text of its own.

        Raises:
            EmptyPromptError: nothing was fed yet.
        """
        if not self._unread:
            raise EmptyPromptError("the session has read nothing yet: feed it some text first")
        sequence, engine = self._submit(params or SamplingParams())
        stop = sequence.request.params.stop
        answer = Answer(
            sequence, self._tokenizer, self._cache, stop=stop, continues=continues,
            pinned=self.pinned, seers=self.global_positions,
        )  # fmt: skip

        def settle() -> None:
            if sequence.finish_reason is None:
                engine.cancel(sequence)

        def pieces() -> Iterator[str]:
            try:
                while not engine.idle:
                    if cancelled is not None and cancelled():
                        engine.cancel(sequence)
                        tail = answer.flush()
                        if tail:
                            yield tail
                        return
                    for event in engine.step():
                        self._note(event.token.token_id if event.token else None)
                        piece = answer.take(event)
                        if answer.stopped:
                            engine.cancel(sequence, "stop")
                        if piece:
                            yield piece
            finally:
                settle()

        return Stream(pieces(), answer.completion, settle)

    def _submit(self, params: SamplingParams) -> tuple[Sequence, Engine]:
        """A request that goes on where the session is."""
        first = self.tokens - len(self._unread)
        request = Request(
            prompt_ids=tuple(self._unread),
            params=params,
            stop_ids=self._tokenizer.eos_ids,
            row=self._row,
            position=first,
            keep_row=True,
            seen=self._seen,
            proposer=self._proposer,
            pins=runs_of([at - first for at in range(first, first + len(self._unread)) if at in self._pinned]),
            seers=runs_of([at - first for at in sorted(self._seers) if at >= first]),
            held=self._held,
        )
        engine = Engine(self._decoder, self._cache, chunk=self._chunk, rows=[])
        return engine.submit(request), engine

    def _note(self, token_id: int | None) -> None:
        if token_id is not None:
            self._unread = [token_id]
            self.tokens += 1
            if self._proposer is not None:
                self._proposer.extend(self._unread)

    def generate(self, params: SamplingParams | None = None) -> Completion:
        """Write on to the end of the answer."""
        stream = self.stream(params)
        for _ in stream:
            pass
        return stream.completion

    def fork(self) -> Session:
        """A second session that has read the same and goes its own way; the first is untouched."""
        config = self._cache.config
        cache = KVCache(config, 1, self._cache.dtype, self._cache.device, self._cache.kv)
        twin = Session(self._decoder, self._tokenizer, cache, chunk=self._chunk, speculation=self._speculation)
        if self._proposer is not None and twin._proposer is not None:
            twin._proposer.extend(self._proposer.tokens)
        cache.copy_row(twin._row, self._cache, self._row)
        twin._held = None if self._held is None else self._held.copy()
        twin._unread, twin._pinned, twin._seers = list(self._unread), set(self._pinned), set(self._seers)
        twin._seen.extend(self._seen.ids.tolist())
        twin.tokens = self.tokens
        return twin


def pin_room(config: ModelConfig, *, sees: bool = False) -> int:
    """Tokens that a model lets flag as pins, or with `sees` as pins and global tokens; 0 where it lets flag none."""
    rooms = (pattern.pins for pattern in config.patterns if pattern.pin_by == "flag" and pattern.holds_global >= sees)
    return max(rooms, default=0)


def check_ids(ids: list[int], vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        UsageError: an id below 0 or past the vocabulary.
    """
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UsageError(f"token id {token} is not in the model's vocabulary of {vocab_size}")
