"""What is asked of the engine, and how far it has got. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sash.errors import EmptyPromptError, SashError
from sash.sampling import SamplingParams, SeenTokens

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and how to continue it.

    Attributes:
        prompt_ids: tokens to read, at least one.
        params: how to write on.
        stop_ids: tokens that end the answer.
        row: a cache row that already holds the beginning of the sequence; None takes a free one.
        position: tokens that the row has read.
        keep_row: leave the row to the caller at the end, instead of releasing it.
        seen: tokens of the same sequence before the prompt, for the repetition penalty; it is kept up to date.

    Raises:
        EmptyPromptError: a prompt of no tokens.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    row: int | None = None
    position: int = 0
    keep_row: bool = False
    seen: SeenTokens | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise EmptyPromptError("the prompt has no tokens: give some text to read")


@dataclass(slots=True, eq=False)
class Sequence:
    """A request under way. Only the scheduler changes it.

    Attributes:
        request: what was asked.
        output_ids: tokens written so far.
        n_read: prompt and output tokens that are in the cache, of this request.
        row: its cache row, once it has one.
        finish_reason: why it ended; None while it runs.
        error: what ended it, if that was an error.
        seen: every token of it, each once.
    """

    request: Request
    output_ids: list[int] = field(default_factory=list)
    n_read: int = 0
    row: int | None = None
    finish_reason: FinishReason | None = None
    error: SashError | None = None
    seen: SeenTokens = field(init=False)

    def __post_init__(self) -> None:
        self.seen = self.request.seen if self.request.seen is not None else SeenTokens()
        self.seen.extend(self.request.prompt_ids)

    @property
    def n_known(self) -> int:
        """Tokens known so far, prompt and output."""
        return len(self.request.prompt_ids) + len(self.output_ids)

    @property
    def n_unread(self) -> int:
        """Known tokens that are not in the cache yet: the rest of the prompt, or the last token written."""
        return self.n_known - self.n_read

    @property
    def reading(self) -> bool:
        """Whether it is still reading its prompt."""
        return not self.output_ids

    @property
    def position(self) -> int:
        """Absolute position of the next token to read."""
        return self.request.position + self.n_read

    def next_tokens(self, count: int) -> list[int]:
        """The next `count` unread tokens."""
        if self.output_ids:
            return self.output_ids[-self.n_unread :][:count]
        return list(self.request.prompt_ids[self.n_read : self.n_read + count])


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence's part of a step: the next `n_tokens` of its tokens; `writes` if that reveals a new one."""

    sequence: Sequence
    n_tokens: int
    writes: bool


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was sampled: its id, its logarithmic probability, and the likeliest alternatives if asked for."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did to one sequence: prompt tokens that it read, and a token that it wrote, if any."""

    sequence: Sequence
    n_read: int
    token: Token | None
