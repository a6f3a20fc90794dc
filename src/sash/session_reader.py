"""The half of a session that reads: what is fed goes into one row of a rolling buffer, and it can go back in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many

import torch

from sash.completion import View
from sash.engine.overlap import Held, Overlap
from sash.engine.proposer import Speculation
from sash.errors import PinsError, UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.packed import Network
from sash.session_state import check_ids, pin_room
from sash.session_tokens import SessionTokens
from sash.text.tokenizer import Tokenizer


class SessionReader:
    """One sequence without end, in the memory of its window: what it was fed, and what of it is read.

    Everything is read once. The last known token always waits unread, so that an answer can begin with it.

    Attributes:
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
        self._speculation, self._proposer = speculation, None if speculation is None else speculation.open()
        smallest = min((window for window in cache.config.windows if window is not None), default=None)
        self._tokens = SessionTokens(None if history else smallest)
        self.intact = True

    @property
    def tokens(self) -> int:
        """Tokens fed and written so far."""
        return self._tokens.count

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
            return View.of_reading(self._cache.config, self.tokens, *self._held.in_sight(len(self._tokens.unread)))
        return View.of(self._cache.config, self.tokens, self.pinned, self.global_positions)

    @property
    def tokens_read(self) -> int:
        """Tokens that went through the network; those that were read again, again."""
        return self._tokens.n_read if self._held is None else self._held.n_read

    @property
    def overlap(self) -> Overlap | None:
        """How it reads by overlapping windows; None where they roll."""
        return None if self._held is None else self._held.overlap

    @property
    def pinned(self) -> tuple[int, ...]:
        """Positions that were flagged to stay visible."""
        return tuple(sorted(self._tokens.pinned))

    @property
    def global_positions(self) -> tuple[int, ...]:
        """Positions that are global; those after `tokens` are to be written."""
        return tuple(sorted(self._tokens.seers))

    @property
    def ids(self) -> Many[int] | None:
        """All tokens; None where they are not kept, see `LM.session`."""
        return self._tokens.ids

    @property
    def last(self) -> int | None:
        """The last token fed or written."""
        return self._tokens.unread[-1] if self._tokens.unread else None

    @property
    def history(self) -> bool:
        """Whether all of `ids` are kept, however many."""
        return self._tokens.keeps_all

    @property
    def network(self) -> Network:
        """What reads."""
        return self._decoder

    @property
    def cache(self) -> KVCache:
        """What holds the keys and values."""
        return self._cache

    @property
    def log(self) -> bool | int:
        """What is kept of what left the window: all of it, so many bytes, or nothing."""
        log = self._cache.log
        return False if log is None else True if log.limit is None else log.limit

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
        self._tokens.feed(ids)
        if self._proposer is not None:
            self._proposer.extend(ids)
        if self._held is not None:
            self._feed_again(self._held, progress)
            return len(ids)
        self._cache.ask(self._row, self.tokens)  # what is fed ends with a question, as far as anybody knows
        unread, pinned = self._tokens.unread, self._tokens.pinned
        while len(unread) > 1:
            count, first = min(self._chunk, len(unread) - 1), self._tokens.n_read
            self._read(unread[:count], [at in pinned for at in range(first, first + count)])
            del unread[:count]
            if progress is not None:
                progress(count)
        return len(ids)

    def _feed_again(self, held: Held, progress: Callable[[int], None] | None) -> None:
        """Read all but the last token that waits, by overlapping windows."""
        unread, pinned, first = self._tokens.unread, self._tokens.pinned, self._tokens.n_read
        waiting = [(token_id, first + at in pinned) for at, token_id in enumerate(unread[:-1])]
        fresh = held.settle(waiting)
        while True:
            del waiting[:fresh], unread[:fresh]
            if progress is not None:
                progress(fresh)
            count = min(self._chunk, len(held.again) + len(waiting))
            if not count:
                return
            part = [*((token.token_id, token.pinned) for token in held.again[:count]), *waiting][:count]
            if not held.row:
                self._cache.wipe(self._row)
            self._read([token_id for token_id, _ in part], [stays for _, stays in part])
            fresh = held.read(count, waiting)

    def _pin(self, spans: Many[range], n_tokens: int, seers: Many[range] = ()) -> None:
        """Flag some of the next `n_tokens` tokens; `seers` are global."""
        wanted, seeing = self._tokens.flagged(spans, seers, n_tokens)
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
        self._tokens.pinned, self._tokens.seers = set(wanted), set(seeing)

    @torch.inference_mode()
    def _read(self, ids: list[int], flags: list[bool]) -> None:
        first = self._cache.lengths[self._row]
        seers = [at in self._tokens.seers for at in range(first, first + len(ids))]
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
        tokens, cache = self._tokens, self._cache
        ids: Many[int] = tokens.ids or ()
        if len(ids) < position:  # they were not kept
            return False
        if position == 0:
            cache.wipe(self._row)
            unread, self.intact = [], True
            self._held = None if self._held is None else Held(self._held.overlap, self._tokenizer.bos_id)
        elif not self.intact or self._held is not None or cache.summaries is not None:
            return False
        elif position > tokens.n_read:
            unread = tokens.unread[: position - tokens.n_read]
        else:
            state = cache.capture(self._row)
            if not state.covers(position - 1):
                return False
            cache.restore(self._row, state, position - 1)
            unread = [ids[position - 1]]
        tokens.cut(position, unread)
        if self._proposer is not None:
            self._proposer.cut(position)
        return True

    def return_to(self, ids: Many[int], pinned: Iterable[int] = (), seers: Iterable[int] = ()) -> int:
        """Go back to where all that was read is also the beginning of `ids`; to nothing, where that is held no more.

        Args:
            ids: token ids, of which the rest is to be fed.
            pinned: positions of those that shall stay visible to every later token.
            seers: positions of those that shall be global. Those flagged to come after what was read are so no more.

        Returns:
            How many of them the session has been fed, now.
        """
        check_ids(ids, self._decoder.config.vocab_size)
        alike = self._tokens.alike(ids, pinned, seers)
        if not self._cut(alike):
            alike = 0
            self._cut(0)
        self._tokens.seers = {at for at in self._tokens.seers if at < alike}
        return alike

    def _check_intact(self) -> None:
        if not self.intact:
            raise UsageError("the session was stopped in the midst of a step: open another, or rewind it to 0")
