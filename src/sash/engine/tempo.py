"""How long steps take, as measured, and how much of a prompt fits beside those that write. No torch, no clock.

A step reads all weights, however few tokens it has. So a few tokens of a prompt beside those that are written cost
little, and more of them make everybody's next token late. How many that is depends on the machine and its load, on the
model, and on how much of its text a token sees: so it is measured, step by step and prompt by prompt. Whoever has a
clock tells of each step (`Tempo.note`). It decides when tokens come, never which: it is asked about networks whose
numbers depend on no chunks.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence as Many
from statistics import median_low

from sash.engine.request import Sequence, Work
from sash.errors import UsageError

ROWS = 16
"""Tokens that matrix units take at once: a step is filled up to a multiple of it."""

AGAIN = 24
"""After so many steps beside readers, those that write have one for themselves, which is measured."""

FIRST = 32
"""Tokens of all prompts beside those that write where nothing was measured yet."""

KEPT = 3
"""Steps of their own, of those that write, of which the median counts."""

ENOUGH = 128
"""Tokens of a prompt that tell by themselves what one of them takes."""


class Tempo:
    """What steps of written tokens take by their number, and what a token of a prompt adds to one."""

    def __init__(self, stretch: float = 2.25, hurry: float = 6.0) -> None:
        """Nothing is known yet.

        Args:
            stretch: how many times as long as one that only writes a step may take that reads a prompt beside. Each
                further prompt adds as much again.
            hurry: the most that comes to; and what it is while others wait for a row, when all are better served by
                fewer and longer steps.

        Raises:
            UsageError: factors that leave no time for reading.
        """
        if not 1 < stretch <= hurry:
            raise UsageError(f"a step that reads, too, takes longer: by more than 1 times; got {stretch} and {hurry}")
        self._stretch, self._hurry = stretch, hurry
        # By the binary digits of how many write.
        self._writing: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._token: float | None = None
        self._since = 0

    def asks(self, n_writing: int) -> bool:
        """Whether so many that write should have the next step for themselves, for it to be measured."""
        return n_writing.bit_length() not in self._writing or self._since >= AGAIN

    def spare(self, n_writing: int, n_reading: int, *, hurry: bool) -> float | None:
        """Seconds that a step beside so many that write has for so many prompts; None where nothing is known."""
        alone = self._alone(n_writing)
        most = self._hurry - 1
        return None if alone is None else alone * (most if hurry else min(most, n_reading * (self._stretch - 1)))

    def cost(self, sequence: Sequence) -> float | None:
        """Seconds that a token of a sequence's prompt adds to such a step; None where nothing is known."""
        return self._token if sequence.token_seconds is None else sequence.token_seconds

    def fits(self, sequence: Sequence, seconds: float | None, n_writing: int, n_read: int = 0) -> int:
        """Tokens of a sequence's prompt that there is time for beside so many that write and what others read.

        Matrix units take as long for a part of their rows as for all, so a step has a multiple of them, if that is not
        much less than there is time for. Of two multiples a third may lack: one alone seems dearer by the token than
        two, and would stay so.

        >>> from sash.engine.request import Request
        >>> from sash.sampling import SamplingParams
        >>> one = Sequence(Request(prompt_ids=(5,), params=SamplingParams()), token_seconds=0.003)
        >>> [Tempo().fits(one, seconds, 1) for seconds in (0.2, 0.05, 0.03, 0.0)]
        [63, 15, 10, 0]
        """
        cost = self.cost(sequence)
        if seconds is None or not cost:
            return max(0, FIRST - n_read)
        n_rows = n_writing + n_read
        most = int(max(0.0, seconds) / cost)
        filled = (n_rows + most) // ROWS * ROWS - n_rows
        if ROWS <= n_rows + most < 2 * ROWS and 2 * (filled + ROWS) <= 3 * most:
            return filled + ROWS
        return filled if 2 * filled > most else most

    def note(self, works: Many[Work], seconds: float) -> None:
        """Take note of a step that took so long, before its results are committed."""
        if any(work.ahead for work in works):
            return
        reading = [work for work in works if work.sequence.reading]
        n_writing, n_read = len(works) - len(reading), sum(work.n_tokens for work in reading)
        if not reading:
            self._writing[n_writing.bit_length()].append(seconds)
            self._since = 0
        elif self._token is None:
            if n_writing or n_read >= ENOUGH:
                self._token = seconds / n_read  # too much, and soon corrected: too little would make a step too long
        elif n_writing:
            self._since += 1
            # A few take as long as all that matrix units take with them: else they would seem dear, and become fewer.
            n_filled = max(n_read, min(ROWS, 2 * n_read + 1) - n_writing)
            self._add(reading, (seconds - (self._alone(n_writing) or 0.0)) / n_filled)

    def _add(self, reading: list[Work], token: float) -> None:
        """Note what a token of prompts has added to a step, for each in proportion to what it was known to add."""
        known = [self.cost(work.sequence) or 0.0 for work in reading]
        n_read = sum(work.n_tokens for work in reading)
        expected = sum(cost * work.n_tokens for cost, work in zip(known, reading, strict=True)) / n_read
        for cost, work in zip(known, reading, strict=True):
            work.sequence.token_seconds = _blended(cost, cost * token / expected) if expected else None
        self._token = _blended(self._token or 0.0, token)

    def _alone(self, n_writing: int) -> float | None:
        """What so many that write take alone, or else fewer of them, or more.

        A step that strayed must make no slice longer: that would last for `AGAIN` steps.
        """
        size = n_writing.bit_length()
        sizes = sorted(self._writing, key=lambda known: (known > size, abs(known - size)))
        return median_low(self._writing[sizes[0]]) if sizes else None


def _blended(known: float, measured: float) -> float:
    """What is known, once something was measured: slower counts at once by half, faster by and by, and strays little.

    >>> [_blended(1.0, measured) for measured in (1.0, 1.5, 100.0, 0.5, -3.0)]
    [1.0, 1.25, 1.5, 0.85, 0.85]
    """
    stray = min(max(measured, known / 2), 2 * known)
    return known + (stray - known) * (0.5 if stray > known else 0.3)
