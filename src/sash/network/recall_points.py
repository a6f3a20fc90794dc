"""Where in a text what slid out of the window is ranked: a matter of positions alone.

A text is ranked after every so many of its tokens. From its question on each token ranks for itself: of the question
all that is out of sight; of the answer the blocks that did best when all were ranked last, which is after every few
tokens, in longer strides once the text is long, so that a token's share of the ranking does not grow with it. Nothing
depends on how many tokens a step has. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sash.errors import UsageError
from sash.network.sizing import LOG_BLOCK

NEAR = 4096
"""Tokens of a text up to which every `stride`th token of an answer ranks all; of one twice as long half as many do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallSettings:
    """How to bring back what is out of sight.

    Attributes:
        block: tokens that are brought back together.
        piece: of a text that is read, tokens between two rankings.
        queries: of such a piece, how many last tokens' queries are ranked by.
        question: how many of the last tokens of a text are taken for the question about it.
        candidates: of an answer, blocks that a token ranks which does not rank all: at least twice those it can have.
        shared: as many blocks that most heads wanted when all were ranked, which all others rank besides: as many at
            least as a token can have, or none.
        stride: of an answer to a text that is not long, tokens from one that ranks all to the next.
    """

    block: int = 16
    piece: int = 128
    queries: int = 4
    question: int = 32
    candidates: int = 16
    shared: int = 24
    stride: int = 8

    def __post_init__(self) -> None:
        if self.block < 1 or LOG_BLOCK % self.block:
            raise UsageError(f"blocks of {self.block} tokens do not divide {LOG_BLOCK}: use 8, 16, 32 or 64")
        if min(self.piece, self.stride, self.queries, self.candidates) < 1 or min(self.question, self.shared) < 0:
            raise UsageError(
                "pieces and strides of a text have 1 token or more, and 1 query or more ranks 1 block or more"
            )


@dataclass(frozen=True, slots=True)
class Points:
    """The points of one row.

    Attributes:
        settings: how far apart they are.
        asked: where its question begins; None where it has none.
    """

    settings: RecallSettings
    asked: int | None = None

    def asks(self, position: int) -> bool:
        """Whether the token at a position ranks for itself.

        >>> [at for at in range(205) if Points(RecallSettings(), 203).asks(at)]
        [203, 204]
        """
        return self.asked is not None and position >= self.asked

    def ranks_all(self, position: int) -> bool:
        """Whether a token that ranks for itself ranks all that is out of sight.

        >>> points = Points(RecallSettings(question=2, stride=4), 203)
        >>> [at for at in range(203, 214) if points.ranks_all(at)]
        [203, 204, 208, 212]
        >>> [at for at in range(8193, 8225) if points.ranks_all(at)]
        [8208, 8224]
        """
        told = self.settings
        if self.asked is not None and position < self.asked + told.question:
            return True
        stride, near = told.stride, NEAR
        while position >= near and stride < told.piece:
            stride, near = 2 * stride, 2 * near
        return position % stride == 0

    def due(self, length: int) -> bool:
        """Whether a text of so many tokens is ranked there, by its last ones.

        >>> points = Points(RecallSettings(piece=100), 203)
        >>> [at for at in range(1, 500) if points.due(at)]
        [100, 200]
        """
        return length % self.settings.piece == 0 and not self.asks(length)

    def changes(self, position: int) -> int:
        """How many tokens are read when something else may be brought back than for the one at a position.

        >>> points = Points(RecallSettings(piece=100), 203)
        >>> [points.changes(at) for at in (0, 99, 100, 200, 203)]
        [100, 100, 200, 204, 205]
        """
        coarse = self._piece_end(position)
        return coarse if self.due(coarse) or self.asked is None else max(position, self.asked) + 1 + self.asks(position)

    def sizes(self, position: int, count: int) -> list[int]:
        """How many of `count` tokens from a position on are read at a time.

        >>> Points(RecallSettings(piece=100), 203).sizes(90, 116)
        [10, 100, 3, 1, 1, 1]
        """
        found, at, end = [], position, position + count
        while at < end:
            text_end = end if self.asked is None else min(self.asked, end)
            point = at + 1 if self.asks(at) else min(self._piece_end(at), text_end)
            found.append(point - at)
            at = point
        return found

    def _piece_end(self, position: int) -> int:
        return (position // self.settings.piece + 1) * self.settings.piece
