"""What an engine can say of itself: its health, what it does, and how much it holds. Needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from sash.engine.request import FinishReason

State = Literal["loading", "ready", "draining", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether an engine runs.

    Attributes:
        state: not started, taking requests, finishing those it has, or ended.
        heartbeat_seconds: how long its present step has taken so far; 0 where it has nothing to do.
        error: what ended it, if an error did.
    """

    state: State
    heartbeat_seconds: float
    error: str | None = None


@dataclass(slots=True)
class Counts:
    """What an engine has done since it started."""

    steps: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    evicted_tokens: int = 0
    finished: Counter[FinishReason] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """An engine at one moment.

    Attributes:
        running, waiting: requests with a row, and without.
        rows_used, rows_total: cache rows.
        lanes: configurations that stand, the model as it is among them.
        kv_bytes: keys and values held for the running sequences.
        kv_reserved: bytes that they may come to hold at the very most.
        kv_memory: bytes that there are.
        kv_bytes_full: what the same sequences would take if no layer had a window.
        evicted_tokens: tokens that have slid out of the largest window, of all sequences so far.
        steps: steps so far.
        prompt_tokens, reused_tokens, output_tokens: tokens read, taken from snapshots, and written so far.
        finished: requests that ended, by reason.
    """

    running: int
    waiting: int
    rows_used: int
    rows_total: int
    lanes: int
    kv_bytes: int
    kv_reserved: int
    kv_memory: int
    kv_bytes_full: int
    evicted_tokens: int
    steps: int
    prompt_tokens: int
    reused_tokens: int
    output_tokens: int
    finished: dict[FinishReason, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much fits into the memory for keys and values.

    Attributes:
        rows: sequences at once.
        sequences: sequences of any length at once; None where a sequence grows with its length.
        tokens: the longest sequence where it is alone; None where any length fits.
        tokens_each: tokens of each sequence where all rows are taken; None where any length fits.
        row_bytes: what a sequence takes from its first token on.
        kv_memory: bytes that there are.
    """

    rows: int
    sequences: int | None
    tokens: int | None
    tokens_each: int | None
    row_bytes: int
    kv_memory: int

    @property
    def words(self) -> str:
        """One line for people.

        >>> Capacity(rows=8, sequences=8, tokens=None, tokens_each=None, row_bytes=2**29, kv_memory=2**32).words
        '8 sequences of any length at once, 512.0 MiB each'
        >>> Capacity(rows=2, sequences=None, tokens=4096, tokens_each=1024, row_bytes=2**20, kv_memory=2**22).words
        '2 sequences of 1,024 tokens at once, or one of 4,096'
        """
        several = f"{self.rows:,} sequence{'' if self.rows == 1 else 's'}"
        if self.tokens is None or self.tokens_each is None:
            return f"{several} of any length at once, {self.row_bytes / 2**20:.1f} MiB each"
        if self.rows == 1:
            return f"1 sequence of {self.tokens:,} tokens at once"
        return f"{several} of {self.tokens_each:,} tokens at once, or one of {self.tokens:,}"
