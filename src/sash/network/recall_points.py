"""Where in a text what slid out of the window is ranked anew: a matter of positions alone.

While a text is read, after every so many tokens; from its question on, and while it is answered, after every few, in
longer strides once the text is long, so that a token's share of the ranking does not grow with it. Nothing depends on
how many tokens a step has. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sash.errors import UsageError
from sash.network.sizing import LOG_BLOCK

NEAR = 3072
"""Tokens of a text up to which every `stride`th token of an answer ranks; of one twice as long half as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSettings:
    """How to bring back what is out of sight.

    Attributes:
        block: tokens that are brought back together.
        piece: of a text that is read, tokens between two rankings.
        question: how many of the last tokens of a text are taken for the question about it.
        step: of the question, tokens between two rankings. Where it is 1, each of its tokens is rehearsed: it is read
            once for what it asks, which is ranked by, and then with what that brought back.
        stride: of an answer to a text that is not long, tokens between two rankings.
        queries: how many last tokens' queries are ranked by.
    """

    block: int = 16
    piece: int = 128
    question: int = 32
    step: int = 1
    stride: int = 2
    queries: int = 4

    def __post_init__(self) -> None:
        if self.block < 1 or LOG_BLOCK % self.block:
            raise UsageError(f"blocks of {self.block} tokens do not divide {LOG_BLOCK}: use 8, 16, 32 or 64")
        if min(self.piece, self.step, self.stride, self.queries) < 1 or self.question < 0:
            raise UsageError("pieces and steps of a text have 1 token or more, and 1 query or more ranks")


@dataclass(frozen=True, slots=True)
class Points:
    """The points of one row.

    Attributes:
        settings: how far apart they are.
        asked: where its question begins; None where it has none.
    """

    settings: RecallSettings
    asked: int | None = None

    def after(self, position: int) -> int:
        """The first point behind a position: so many tokens have been read there.

        >>> points = Points(RecallSettings(piece=100, question=6, step=3, stride=2), 203)
        >>> [points.after(at) for at in (0, 99, 100, 200, 204, 209, 4095, 4096, 8191, 8192)]
        [100, 100, 200, 203, 207, 210, 4096, 4100, 8192, 8200]
        """
        told = self.settings
        coarse = (position // told.piece + 1) * told.piece
        if self.asked is None:
            return coarse
        if position < self.asked:
            return min(coarse, self.asked)
        if position < self.asked + told.question:
            return min(coarse, (position // told.step + 1) * told.step)
        stride, near = told.stride, NEAR
        while position >= near and stride < told.piece:
            stride, near = 2 * stride, 2 * near
        return min(coarse, (position // stride + 1) * stride)

    def rehearsed(self, position: int) -> bool:
        """Whether the token at a position is read twice.

        >>> points = Points(RecallSettings(question=2), 203)
        >>> [at for at in range(300) if points.rehearsed(at)]
        [203, 204]
        """
        told = self.settings
        return told.step == 1 and self.asked is not None and 0 <= position - self.asked < told.question

    def due(self, length: int) -> bool:
        """Whether a text of so many tokens is ranked there."""
        return self.after(length - 1) == length

    def sizes(self, position: int, count: int) -> list[int]:
        """How many of `count` tokens from a position on are read at a time.

        >>> Points(RecallSettings(piece=100, question=6, step=3, stride=2), 203).sizes(90, 122)
        [10, 100, 3, 1, 3, 3, 2]
        """
        found, at, end = [], position, position + count
        while at < end:
            point = min(self.after(at), end)
            found.append(point - at)
            at = point
        return found
