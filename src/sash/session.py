"""A rolling buffer kept open: feed it as often as you like, forever, and let it write at any point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many

from sash.answer import Answer, Stream
from sash.asked import audit_at
from sash.completion import Completion
from sash.engine.engine import Engine
from sash.engine.request import Recalled, Request, Sequence
from sash.errors import EmptyPromptError, UsageError
from sash.explain.audit import Audit, Part
from sash.network.cache import KVCache
from sash.sampling import SamplingParams
from sash.session_reader import SessionReader
from sash.session_state import SessionState
from sash.text.pins import runs_of


class Session(SessionReader):
    """One sequence without end, in the memory of its window: what reads it (`SessionReader`), and writes it on.

    Everything fed and written is read once.
    """

    _begun: tuple[int, Recalled | None] = (-1, None)
    """Where the last answer began, and what was brought back for its first token: it changes with the next one."""

    def audit(self, parts: Many[Part], position: int | None = None) -> Audit:
        """What the token that is written next could know of parts of what was read: names with ranges of positions.

        With a `position`, what the one written there could, or can. What recall brings back is known of tokens that
        were written: of the first and the last one of the last answer.

        Raises:
            UsageError: nothing was read yet, or a part that was not.
        """
        if not self.tokens:
            raise UsageError("the session has read nothing yet: feed it some text first")
        at, leads = self.tokens if position is None else position, self._held is not None and self._held.leads
        flags, recall = (self.pinned, self.global_positions), self._cache.recall
        recalled = None if recall is None else recall.shown(self._row, at - 1, self._cache.lengths[self._row])
        if recalled is None and at == self._begun[0]:
            recalled = self._begun[1]
        return audit_at(self.config, self.overlap, at, parts, *flags, leads=leads, recalled=recalled)

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
        if not self._tokens.unread:
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
                        if event.token and not sequence.output_ids[1:]:
                            self._note_begun()
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
        tokens, first = self._tokens, self._tokens.n_read
        request = Request(
            prompt_ids=tuple(tokens.unread),
            params=params,
            stop_ids=self._tokenizer.eos_ids,
            row=self._row,
            position=first,
            keep_row=True,
            seen=tokens.seen,
            proposer=self._proposer,
            pins=runs_of([at - first for at in range(first, tokens.count) if at in tokens.pinned]),
            seers=runs_of([at - first for at in sorted(tokens.seers) if at >= first]),
            held=self._held,
        )
        engine = Engine(self._decoder, self._cache, chunk=self._chunk, rows=[])
        return engine.submit(request), engine

    def _note_begun(self) -> None:
        """Keep what was brought back for the first token of an answer."""
        recall, length = self._cache.recall, self._cache.lengths[self._row]
        if recall is not None:
            self._begun = length, recall.shown(self._row, length - 1, length)

    def _note(self, token_id: int | None) -> None:
        if token_id is not None:
            self._tokens.write(token_id)
            if self._proposer is not None:
                self._proposer.extend([token_id])

    def generate(self, params: SamplingParams | None = None) -> Completion:
        """Write on to the end of the answer."""
        stream = self.stream(params)
        for _ in stream:
            pass
        return stream.completion

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
        twin._tokens = self._tokens.copy()
        return twin

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
        read = self._tokens.n_read
        if self._cache.lengths[self._row] != read:  # guesses that held were read, and the answer was ended before them
            self._cache.rewind(self._row, read)
        row = self._cache.capture(self._row)
        if back is not None and not any(pattern.holds_global for pattern in self.config.patterns):
            row = row.since(max(0, read - back))
        ids: Many[int] | None = self.ids
        if ids is None and self._proposer is not None and len(self._proposer.tokens) == self.tokens:
            ids = self._proposer.tokens
        return self._tokens.state(row, ids)

    def take_up(self, state: SessionState) -> None:
        """Go on from a state in the place of what was read here; the state stays as it is.

        Raises:
            UsageError: it is one of another model, or contradicts itself.
        """
        state.check(self.config)
        if self._held is not None:
            raise UsageError("a saved session rolls on: leave out the overlap")
        self._cache.restore(self._row, state.row)
        self._tokens.take_up(state)
        self.intact = True
        guesses = self._speculation is not None and state.ids is not None  # nobody guesses without what was said
        self._proposer = self._speculation.open() if self._speculation is not None and guesses else None
        if self._proposer is not None:
            self._proposer.extend(state.ids or ())
