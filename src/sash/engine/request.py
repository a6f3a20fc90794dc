"""What is asked of the engine, and how far it has got. Needs no torch."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from sash.engine.grammar import Grammar
from sash.engine.overlap import Held
from sash.engine.proposer import Proposer
from sash.errors import EmptyPromptError, PinsError, SashError, UsageError
from sash.sampling import MAX_LOGPROBS, OutputCounts, SamplingParams, SeenTokens

FinishReason = Literal["stop", "length", "cancelled", "error"]

Reuse = Literal["off", "miss", "part", "whole"]

Recalled = list[list[range]]
"""Of each layer, the positions that it has brought back for a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and how to continue it.

    Attributes:
        prompt_ids: tokens to read, at least one.
        params: how to write on.
        stop_ids: tokens that end the answer.
        row: a cache row that already holds the beginning of the sequence; None takes a free one.
        position: tokens of the same sequence before the prompt.
        keep_row: leave the row to the caller at the end, instead of releasing it.
        seen: tokens of the same sequence before the prompt, for the repetition penalty; it is kept up to date.
        grammar: what the answer must follow; its state belongs to this request alone.
        pins: prompt positions that stay visible to all later tokens, where the network pins by flag.
        seers: positions that are global, where the network has global tokens; those after the prompt are to be written.
            Nothing is then taken from a snapshot, nor kept in one.
        prompt_logprobs: how many of the likeliest alternatives to report for each token of the prompt; None for no
            log-probabilities of the prompt. Nothing is then taken from a snapshot: the whole prompt is read.
        reuse: whether what was read before may be taken from a snapshot, and this be kept in one.
        proposer: what guesses the tokens to come, so that several are read in one step; they change nothing of the
            answer. It belongs to this sequence alone. Where the row holds a beginning, its owner tells it every token.
        salt: only snapshots that were kept with the same salt are taken.
        held: what its row holds, where it is read by overlapping windows; it is kept up to date.
        audits: whether it is to be known what recall brought back for what is written (`Sequence.recalled`).

    Raises:
        EmptyPromptError: a prompt of no tokens.
        PinsError: pins outside of the prompt.
        UsageError: a number of alternatives that cannot be, or a proposer that does not know what came before.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    row: int | None = None
    position: int = 0
    keep_row: bool = False
    seen: SeenTokens | None = None
    grammar: Grammar | None = None
    pins: tuple[range, ...] = ()
    seers: tuple[range, ...] = ()
    prompt_logprobs: int | None = None
    reuse: bool = True
    salt: bytes = b""
    held: Held | None = None
    proposer: Proposer | None = None
    audits: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise EmptyPromptError("the prompt has no tokens: give some text to read")
        for run in self.pins:
            if run.step != 1 or not 0 <= run.start <= run.stop <= len(self.prompt_ids):
                last = len(self.prompt_ids) - 1
                raise PinsError(f"pins name tokens of the prompt, 0 to {last}; got {run.start} to {run.stop - 1}")
        if any(run.step != 1 or not 0 <= run.start <= run.stop for run in self.seers):
            raise PinsError("global tokens are runs of positions from 0 on")
        if self.seers and self.held is not None:
            raise UsageError("global tokens see what rolled out of a window, and windows that overlap read it again")
        if self.prompt_logprobs is not None and not 0 <= self.prompt_logprobs <= MAX_LOGPROBS:
            raise UsageError(f"prompt_logprobs must be from 0 to {MAX_LOGPROBS}; got {self.prompt_logprobs}")
        if self.proposer is not None:
            self._check_guessed()

    def _check_guessed(self) -> None:
        if self.held is not None:
            raise UsageError("windows that overlap are read again before any guess could be: leave the guessing out")
        if any(run.stop > len(self.prompt_ids) for run in self.seers):
            raise UsageError("what is written sees all, and guesses see what is in the window: leave the guessing out")

    @property
    def n_pins(self) -> int:
        """Positions that are pinned or global, each counted once."""
        return len(set().union(*self.pins, *self.seers))

    @property
    def longest(self) -> int:
        """Tokens that its row holds at the very most; the last token written is never read.

        >>> Request(prompt_ids=(5, 6), params=SamplingParams(max_tokens=1)).longest
        2
        """
        return self.position + len(self.prompt_ids) + self.params.max_tokens - 1


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was sampled: its id, and if asked for its logarithmic probability and the likeliest alternatives.

    `ends` says that it completes the request's grammar.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    ends: bool = False


@dataclass(slots=True, eq=False)
class Sequence:
    """A request under way. Only the scheduler changes how far it is; times are the service's.

    Attributes:
        request: what was asked.
        lane: which configuration of the network reads it; None is the engine's own.
        output_ids: tokens written so far.
        n_read: prompt and output tokens that are in the cache, of this request.
        n_reused: those of them that came from a snapshot.
        reuse: what was found: nothing was looked for, nothing was there, a part, or all up to the last turn.
        leader: one with the same prompt, which this one leaves the reading to: it starts once that has been read.
        needs: bytes that its keys and values take at the very most; None before they were counted.
        row: its cache row, once it has one.
        finish_reason: why it ended; None while it runs.
        error: what ended it, if that was an error.
        recalled: what recall had brought back for the first and for the last token written, if asked for and known: of
            each layer, positions.
        prompt_logprobs: of each token of the prompt that was read, if asked for; the first has none.
        seen: every token of it, each once.
        counts: how often each token was written.
        drafts: guesses that were read with the last token, and that what was written since has not refuted.
        ahead: whether what follows the last token is known from that step already: it was guessed.
        n_drafted, n_accepted: tokens guessed so far, and those of them that were written.
        token_seconds: what a token of its prompt adds to a step, as last measured; None before.
        arrived, admitted, first_token, finished: `time.monotonic` of these moments; None before, and without a service.
    """

    request: Request
    lane: Hashable = None
    output_ids: list[int] = field(default_factory=list)
    n_read: int = 0
    n_reused: int = 0
    reuse: Reuse = "off"
    leader: Sequence | None = None
    needs: int | None = None
    row: int | None = None
    finish_reason: FinishReason | None = None
    error: SashError | None = None
    recalled: tuple[Recalled | None, Recalled | None] = (None, None)
    prompt_logprobs: list[Token | None] = field(default_factory=list)
    seen: SeenTokens = field(init=False)
    counts: OutputCounts = field(default_factory=OutputCounts)
    drafts: tuple[int, ...] = ()
    ahead: bool = False
    n_drafted: int = 0
    n_accepted: int = 0
    token_seconds: float | None = None
    arrived: float | None = None
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None

    def __post_init__(self) -> None:
        self.seen = self.request.seen if self.request.seen is not None else SeenTokens()
        self.seen.extend(self.request.prompt_ids)

    @property
    def n_known(self) -> int:
        """Tokens known so far, prompt and output."""
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def n_unread(self) -> int:
        """Known tokens that are not in the cache yet: the rest of the prompt, or the last token written.

        Those that are to be read again come first.
        """
        again = 0 if self.request.held is None else len(self.request.held.again)
        return again + self.n_known - self.n_read

    @property
    def reading(self) -> bool:
        """Whether it is still reading: its prompt, or what it knew before its row was lost."""
        return not self.output_ids or self.n_unread > 1

    @property
    def following(self) -> bool:
        """Whether the one that it leaves the reading to has not done it yet."""
        leader = self.leader
        return leader is not None and leader.finish_reason is None and leader.reading

    @property
    def position(self) -> int:
        """Position of the next token to read: absolute, or in the reading where windows overlap."""
        held = self.request.held
        return self.request.position + self.n_read if held is None else len(held.row)

    @property
    def most(self) -> int:
        """The most tokens that can be read next."""
        held = self.request.held
        return self.n_unread if held is None else min(self.n_unread, held.room)

    def settle(self) -> None:
        """Make sure that the row can take all that is known; see `Held.settle`."""
        held = self.request.held
        if held is not None and self.n_unread > held.room:
            self.n_read += held.settle(self._waiting())

    def advance(self, count: int) -> int:
        """Note that the next `count` tokens are in the cache; how many of them were read for the prompt's sake."""
        held, before = self.request.held, self.n_read
        self.n_read += count if held is None else held.read(count, self._waiting(count))
        if held is not None:
            return 0 if self.output_ids else count
        return max(0, min(self.n_read, len(self.request.prompt_ids)) - before)

    def lose(self) -> None:
        """Note that the row was emptied, and must be read again."""
        if self.request.held is not None:
            self.request.held.lose()
        else:
            self.n_read = 0
        self.n_reused = 0

    def next_tokens(self, count: int) -> list[int]:
        """The next `count` unread tokens."""
        held = self.request.held
        if held is not None:
            again = [token.token_id for token in held.again[:count]]
            return again + self._unread(count - len(again))
        return self._unread(count)

    def next_flags(self, count: int) -> list[bool]:
        """Which of the next `count` unread tokens are pinned."""
        held = self.request.held
        again = [] if held is None else [token.pinned for token in held.again[:count]]
        return again + self._flags(self.request.pins, count - len(again))

    def next_seers(self, count: int) -> list[bool]:
        """Which of the next `count` unread tokens are global."""
        return self._flags(self.request.seers, count)

    def _waiting(self, count: int | None = None) -> list[tuple[int, bool]]:
        """The next tokens that were never read, and whether they are pinned."""
        count = self.n_known - self.n_read if count is None else min(count, self.n_known - self.n_read)
        return list(zip(self._unread(count), self._flags(self.request.pins, count), strict=True))

    def _flags(self, runs: tuple[range, ...], count: int) -> list[bool]:
        first, flags = self.n_read, [False] * count
        for run in runs:
            for index in range(max(run.start, first), min(run.stop, first + count)):
                flags[index - first] = True
        return flags

    def _unread(self, count: int) -> list[int]:
        n_prompt, end = len(self.request.prompt_ids), self.n_read + count
        if self.n_read >= n_prompt:
            return self.output_ids[self.n_read - n_prompt : end - n_prompt]
        return [*self.request.prompt_ids[self.n_read : end], *self.output_ids[: max(0, end - n_prompt)]]

    def known_from(self, first: int) -> list[int]:
        """The tokens known so far, without the first of the prompt and the output."""
        n_prompt = len(self.request.prompt_ids)
        return [*self.request.prompt_ids[first:], *self.output_ids[max(0, first - n_prompt) :]]

    def read_ids(self) -> list[int]:
        """The tokens of it that are in the cache."""
        n_prompt = len(self.request.prompt_ids)
        return [*self.request.prompt_ids[: self.n_read], *self.output_ids[: max(0, self.n_read - n_prompt)]]


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence's part of a step: the next `n_tokens` of its tokens; `writes` if that reveals a new one.

    Attributes:
        sequence: whose.
        n_tokens: tokens that count as read by it.
        writes: whether it reveals a new one.
        drafts: guesses of the tokens after those, which are read with them.
        ahead: whether an earlier step has read its token as a guess; then there is nothing to compute.
    """

    sequence: Sequence
    n_tokens: int
    writes: bool
    drafts: tuple[int, ...] = ()
    ahead: bool = False

    @property
    def n_rows(self) -> int:
        """Tokens that are computed."""
        return 0 if self.ahead else self.n_tokens + len(self.drafts)


@dataclass(frozen=True, slots=True)
class Lost:
    """What became of a work that was in the same forward as one that failed: its row must be read again."""


Result = Token | SashError | Lost | None
"""What a work came to: the token that was sampled, an error that ends the sequence, a row to be read again, or None
where only a part of a prompt was read."""


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to one sequence: prompt tokens that it read, and a token that it wrote, if any."""

    sequence: Sequence
    n_read: int
    token: Token | None
