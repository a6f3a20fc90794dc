"""A rolling buffer kept open: feed it as often as you like, forever, and let it write at any point."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many

import torch

from sash.answer import Answer, Stream
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
from sash.session_state import SessionState, check_ids, pin_room
from sash.text.pins import runs_of
from sash.text.tokenizer import Tokenizer


class Session:
    """One sequence without end, in the memory of its window.

    Everything fed and written is read once. The last known token always waits unread, so that an answer can begin
    with it.

    Attributes:
        tokens: tokens fed and written so far.
        intact: whether it can be used: what stopped in the midst of a step has left half of that step behind.
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
        history: bool = False,
    ) -> None:
        """An empty session.

        `overlap` reads by overlapping windows; the cache needs room for the tokens of one reading.
        `speculation` guesses tokens to come, which makes answers faster and leaves them as they are.
        `history` keeps all token ids, 4 bytes each, which going back needs; else only until the first has slid out.
        """
        self._held = None if overlap is None else Held(overlap, tokenizer.bos_id)
        self._decoder, self._tokenizer, self._cache, self._chunk = decoder, tokenizer, cache, chunk
        self._row = cache.allocate()
        self._unread: list[int] = []
        self._seen = SeenTokens()
        self._pinned: set[int] = set()
        self._seers: set[int] = set()
        self._speculation, self._proposer = speculation, None if speculation is None else speculation.open()
        self._ids: array[int] | None = array("i")
        smallest = min((window for window in cache.config.windows if window is not None), default=None)
        self._most_ids = None if history else smallest
        self.tokens, self.intact = 0, True

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

    @property
    def ids(self) -> Many[int] | None:
        """All tokens; None where they are not kept, see `LM.session`."""
        return self._ids

    @property
    def last(self) -> int | None:
        """The last token fed or written."""
        return self._unread[-1] if self._unread else None

    @property
    def history(self) -> bool:
        """Whether all of `ids` are kept, however many."""
        return self._most_ids is None

    @property
    def network(self) -> Network:
        """What reads."""
        return self._decoder

    @property
    def cache(self) -> KVCache:
        """What holds the keys and values."""
        return self._cache

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
        self._check_intact()
        self._pin(pins if not isinstance(pins, bool) else [range(len(ids))] if pins else [], len(ids), seers)
        self._unread += ids
        self._seen.extend(ids)
        self._remember(ids)
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

    def _check_intact(self) -> None:
        if not self.intact:
            raise UsageError("the session was stopped in the midst of a step: open another, or rewind it to 0")

    def _remember(self, ids: Many[int]) -> None:
        """Take note of tokens that are fed or written."""
        self.tokens += len(ids)
        if self._proposer is not None:
            self._proposer.extend(ids)
        if self._most_ids is not None and self.tokens > self._most_ids:
            self._ids = None
        if self._ids is not None:
            self._ids.extend(ids)

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
        self.intact = False
        self._decoder(batch, self._cache)
        self.intact = True

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
        self._check_intact()
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
                    self.intact = False
                    events = engine.step()
                    self.intact = True
                    for event in events:
                        self._note(event.token.token_id if event.token else None)
                        piece = answer.take(event)
                        if answer.stopped:
                            engine.cancel(sequence, "stop")
                        if piece:
                            yield piece
            finally:
                self.intact &= sequence.error is None
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
            self._remember([token_id])

    def generate(self, params: SamplingParams | None = None) -> Completion:
        """Write on to the end of the answer."""
        stream = self.stream(params)
        for _ in stream:
            pass
        return stream.completion

    def rewind(self, position: int) -> None:
        """Go back to where only the first `position` tokens had been fed and written: what followed is forgotten.

        Raises:
            UsageError: there are fewer tokens, or what they left behind is held no more: see `LM.session(log=)`.
        """
        if not 0 <= position <= self.tokens:
            raise UsageError(f"there are {self.tokens:,} tokens to go back in, and no {position:,}")
        if not self._cut(position):
            raise UsageError(
                f"what {position:,} tokens left behind is held no more: a session goes back as far as its log reaches,"
                " lm.session(log=True)"
            )

    def _cut(self, position: int) -> bool:
        """`rewind`, if what is held allows it."""
        if position == self.tokens and self.intact:
            return True
        if self._ids is None and position:
            return False
        ids = array("i") if self._ids is None else self._ids
        cache, read = self._cache, self.tokens - len(self._unread)
        if position == 0:
            cache.wipe(self._row)
            unread, self.intact = [], True
            self._held = None if self._held is None else Held(self._held.overlap, self._tokenizer.bos_id)
        elif not self.intact or self._held is not None or cache.summaries is not None:
            return False
        elif position > read:
            unread = self._unread[: position - read]
        else:
            state = cache.capture(self._row)
            if not state.covers(position - 1):
                return False
            cache.restore(self._row, state, position - 1)
            unread = [ids[position - 1]]
        self._ids = ids[:position]
        self._unread, self.tokens, self._seen = unread, position, SeenTokens(self._ids)
        self._pinned = {at for at in self._pinned if at < position}
        self._seers = {at for at in self._seers if at < position}
        if self._proposer is not None:
            self._proposer.cut(position)
        return True

    def return_to(self, ids: Many[int], pinned: Iterable[int] = ()) -> int:
        """Go back to where all that was read is also the beginning of `ids`; to nothing, where that is held no more.

        Args:
            ids: token ids, of which the rest is to be fed.
            pinned: positions of those that shall stay visible to every later token.

        Returns:
            How many of them the session has been fed, now.
        """
        check_ids(ids, self._decoder.config.vocab_size)
        alike = self._alike(ids, set(pinned))
        if self._cut(alike):
            return alike
        self._cut(0)
        return 0

    def _alike(self, ids: Many[int], pinned: set[int]) -> int:
        """How many of the first tokens and pins are those of the session."""
        known = self._ids if self._ids is not None else array("i")
        end = min(len(known), len(ids))
        alike = end if known[:end] == array("i", ids[:end]) else _first_difference(known, ids, end)
        return min([alike, *(at for at in pinned ^ self._pinned if at < alike)])

    def fork(self) -> Session:
        """A second session that has read the same and goes its own way; the first is untouched."""
        config = self._cache.config
        recall = None if self._cache.recall is None else self._cache.recall.settings
        cache = KVCache(config, 1, self._cache.dtype, self._cache.device, self._cache.kv, log=self.log, recall=recall)
        twin = Session(self._decoder, self._tokenizer, cache, chunk=self._chunk, speculation=self._speculation)
        if self._proposer is not None and twin._proposer is not None:
            twin._proposer.extend(self._proposer.tokens)
        cache.copy_row(twin._row, self._cache, self._row)
        twin._held = None if self._held is None else self._held.copy()
        twin._unread, twin._pinned, twin._seers = list(self._unread), set(self._pinned), set(self._seers)
        twin._most_ids = self._most_ids
        twin._ids = None if self._ids is None else self._ids[:]
        twin._seen.extend(self._seen.ids.tolist())
        twin.tokens = self.tokens
        return twin

    @property
    def log(self) -> bool | int:
        """What is kept of what left the window: all of it, so many bytes, or nothing."""
        log = self._cache.log
        return False if log is None else True if log.limit is None else log.limit

    def state(self, back: int | None = None) -> SessionState:
        """What it needs to go on elsewhere, or later; and to go back `back` tokens at most, as far as its log reaches.

        Raises:
            UsageError: it stopped in the midst of a step, or reads by overlapping windows.
        """
        self._check_intact()
        if self._held is not None:
            raise UsageError("a session that reads by overlapping windows cannot be kept: leave out the overlap")
        if self._cache.summaries is not None:
            raise UsageError("a session with summaries cannot be kept: leave them out")
        read = self.tokens - len(self._unread)
        if self._cache.lengths[self._row] != read:  # guesses that held were read, and the answer was ended before them
            self._cache.rewind(self._row, read)
        row = self._cache.capture(self._row)
        if back is not None and not any(pattern.holds_global for pattern in self.config.patterns):
            row = row.since(max(0, read - back))
        return SessionState(
            tokens=self.tokens,
            ids=self._known_ids(),
            unread=tuple(self._unread),
            seen=tuple(self._seen.ids.tolist()),
            pinned=self.pinned,
            seers=self.global_positions,
            row=row,
        )

    def _known_ids(self) -> tuple[int, ...] | None:
        if self._ids is None and self._proposer is not None and len(self._proposer.tokens) == self.tokens:
            return tuple(self._proposer.tokens)
        return None if self._ids is None else tuple(self._ids)

    def take_up(self, state: SessionState) -> None:
        """Go on from a state in the place of what was read here; the state stays as it is.

        Raises:
            UsageError: it is one of another model, or contradicts itself.
        """
        state.check(self.config)
        if self._held is not None:
            raise UsageError("a saved session rolls on: leave out the overlap")
        self._cache.restore(self._row, state.row)
        self._ids = None if state.ids is None else array("i", state.ids)
        self._unread, self._seen, self._pinned = list(state.unread), SeenTokens(state.seen), set(state.pinned)
        self._seers, self.tokens, self.intact = set(state.seers), state.tokens, True
        guesses = self._speculation is not None and state.ids is not None  # nobody guesses without what was said
        self._proposer = self._speculation.open() if self._speculation is not None and guesses else None
        if self._proposer is not None:
            self._proposer.extend(state.ids or ())


def _first_difference(one: Many[int], other: Many[int], end: int) -> int:
    """Where two sequences differ within their first `end` items, which they do."""
    start = 0
    while end - start > 1:  # halves, compared whole: much faster than items
        middle = (start + end) // 2
        if list(one[start:middle]) == list(other[start:middle]):
            start = middle
        else:
            end = middle
    return start
