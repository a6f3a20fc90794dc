"""Who guesses the tokens to come, and how many of them. Needs no torch.

A step reads a sequence's last token together with guesses of what follows it. What is written is chosen as ever, token
by token, from the logits after the token before; so long as it is what was guessed, the next logits are there already.
So guesses change how long an answer takes and nothing else, whoever makes them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sash.errors import UsageError

if TYPE_CHECKING:
    from sash.engine.request import Work

logger = logging.getLogger(__name__)

MAX_DRAFTS = 15
"""Guesses of a sequence in a step at most."""

CHEAP_ROWS = 8
"""Rows up to which a step takes hardly longer than one row: its time is that of reading the weights once."""


class Proposer(Protocol):
    """Guesses for one sequence."""

    @property
    def tokens(self) -> Many[int]:
        """All of the sequence that it knows."""
        ...

    def extend(self, ids: Many[int]) -> None:
        """Tokens that follow those known."""
        ...

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        ...

    def propose(self, limit: int) -> Many[int]:
        """Guesses of what follows, at most `limit`, likely ones only; none where it has no idea."""
        ...


class Speculation(Protocol):
    """A way to guess, for any number of sequences."""

    def open(self) -> Proposer:
        """What guesses for one new sequence."""
        ...


class Width:
    """How many guesses are worth their rows, which are cheap: all of them after one that was right, fewer after others.

    Where even single guesses were wrong from the first, some steps go without any, twice as many each time: so a text
    that cannot be guessed is written as if nobody tried.

    >>> width = Width(7)
    >>> width.allowed(), width.learn(4, 1), width.allowed(), width.learn(7, 0), width.allowed()
    (4, None, 7, None, 4)
    >>> width.guess([8, 9]), width.see([5, 8]), width.allowed(), width.learn(1, 0), width.allowed(), width.allowed()
    (None, None, 2, None, 0, 1)
    """

    FIRST = 4
    MOST_REST = 32

    def __init__(self, most: int) -> None:
        self._most = most
        self._width = min(self.FIRST, most)
        self._failures = self._rest = self._n_true = 0
        self._drafts: tuple[int, ...] = ()

    def allowed(self) -> int:
        """Guesses for the next step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._width

    def guess(self, drafts: Many[int]) -> None:
        """Note what is guessed now."""
        self._drafts, self._n_true = tuple(drafts), 0

    def see(self, ids: Many[int]) -> None:
        """Compare the last guesses with what came."""
        for token_id in ids:
            if not self._drafts:
                return
            came = self._drafts[self._n_true] == token_id
            self._n_true += came
            if not came or self._n_true == len(self._drafts):
                self.learn(len(self._drafts), self._n_true)
                self._drafts = ()

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Note how guesses of one step fared."""
        if n_accepted:
            self._failures = self._rest = 0
            self._width = self._most
            return
        self._width = max(1, min(self.FIRST >> self._failures, self._most))
        self._failures += 1
        self._rest = 0 if self._failures < 3 else min(2 ** (self._failures - 3), self.MOST_REST)


def accepted(drafts: Many[int], ids: Many[int]) -> int:
    """How many guesses came true.

    >>> accepted([5, 6, 7], [5, 6, 8, 9]), accepted([], [5]), accepted([5], [])
    (2, 0, 0)
    """
    return next(
        (index for index, pair in enumerate(zip(drafts, ids, strict=False)) if pair[0] != pair[1]),
        min(len(drafts), len(ids)),
    )


def with_drafts(works: list[Work], rows: int = CHEAP_ROWS) -> list[Work]:
    """The same step with guesses for those that write, as long as it has no more than `rows` of such rows."""
    writing = [work for work in works if not work.ahead and not work.sequence.reading]
    room = rows - len(writing)
    guessing = [work for work in writing if work.sequence.request.proposer is not None]
    if room <= 0 or not guessing:
        return works
    drafted: dict[int, Work] = {}
    for index, work in enumerate(guessing):
        drafts = _drafts(work, room // (len(guessing) - index))
        if drafts:
            room -= len(drafts)
            drafted[id(work)] = replace(work, drafts=drafts)
    return [drafted.get(id(work), work) for work in works]


def _drafts(work: Work, limit: int) -> tuple[int, ...]:
    """What a sequence's proposer guesses, once it has been told what it did not know."""
    sequence, request = work.sequence, work.sequence.request
    limit = min(limit, MAX_DRAFTS, request.params.max_tokens - len(sequence.output_ids) - 1)
    proposer = request.proposer
    if proposer is None or limit <= 0:
        return ()
    try:
        if not request.position:
            proposer.extend(sequence.known_from(len(proposer.tokens)))
        return tuple(proposer.propose(limit))[:limit]
    except Exception:
        logger.exception("nothing could be guessed: the answer goes on without")
        return ()


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Guesses that a text goes on as it did after the same tokens before (prompt lookup decoding).

    Attributes:
        k: guesses at once at most.
        min_ngram: the last tokens that must have occurred before, in a row.
        max_ngram: beyond so many, a longer match is no better.

    Raises:
        UsageError: numbers that cannot be.
    """

    k: int = 7
    min_ngram: int = 3
    max_ngram: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_DRAFTS:
            raise UsageError(f"from 1 to {MAX_DRAFTS} tokens are guessed at once; got {self.k}")
        if not 1 <= self.min_ngram <= self.max_ngram:
            raise UsageError(f"1 <= min_ngram <= max_ngram; got {self.min_ngram} and {self.max_ngram}")

    def open(self) -> Lookup:
        """What guesses for one new sequence."""
        return Lookup(self)


class Lookup:
    """The tokens of one sequence, and where each run of `min_ngram` of them occurred.

    A token takes one entry of a dictionary, and a guess a few comparisons.

    >>> lookup = PromptLookup(min_ngram=2).open()
    >>> lookup.extend([1, 2, 3, 4, 5, 1, 2]), lookup.propose(3), lookup.propose(9)
    (None, [3, 4, 5], [3, 4, 5, 1])
    >>> lookup.cut(3), lookup.propose(3)
    (None, [])
    """

    CANDIDATES = 8
    """Earlier places that are compared, the latest first."""

    def __init__(self, settings: PromptLookup) -> None:
        self._settings, self._width = settings, Width(settings.k)
        self._tokens: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []

    @property
    def tokens(self) -> Many[int]:
        """All that it knows of the sequence."""
        return self._tokens

    def extend(self, ids: Many[int]) -> None:
        """Tokens that follow; guesses of the last call of `propose` are compared with them."""
        self._width.see(ids)
        n, tokens, latest = self._settings.min_ngram, self._tokens, self._latest
        for token_id in ids:
            tokens.append(token_id)
            run = tuple(tokens[-n:])
            self._before.append(latest.get(run, -1))
            latest[run] = len(tokens)

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._width.guess(())
        while len(self._tokens) > length:
            run, before = tuple(self._tokens[-self._settings.min_ngram :]), self._before.pop()
            if before < 0:
                del self._latest[run]
            else:
                self._latest[run] = before
            self._tokens.pop()

    def propose(self, limit: int) -> list[int]:
        """What followed the longest run of last tokens that occurred before; the latest of equally long ones."""
        end = len(self._tokens)
        if end <= self._settings.min_ngram or self._before[-1] < 0:
            return []
        width = min(limit, self._width.allowed())
        drafts: list[int] = []
        if width:
            start = self._best(end)
            for index in range(start, start + width):  # it may run into what it has just guessed
                drafts.append(self._tokens[index] if index < end else drafts[index - end])
        self._width.guess(drafts)
        return drafts

    def _best(self, end: int) -> int:
        """Where the longest match ends."""
        tokens, most = self._tokens, self._settings.max_ngram
        best, longest, place = -1, 0, self._before[-1]
        for _ in range(self.CANDIDATES):
            if place < 0 or longest >= most:
                break
            length = self._settings.min_ngram
            while length < most and length < place and tokens[place - length - 1] == tokens[end - length - 1]:
                length += 1
            if length > longest:
                best, longest = place, length
            place = self._before[place - 1]
        return best
