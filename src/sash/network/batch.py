"""A step's tokens: a flat list, whatever they are for. No padding anywhere.

Ragged batches, chunks of prompts, single decoded tokens and packed training documents are the same thing: runs of
consecutive positions of a few sequences, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sash.attention.pattern import TokenMeta
from sash.errors import UsageError


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a step.

    Attributes:
        start, stop: its tokens are tokens[start:stop] of the step.
        position: absolute position of its first token; the others follow on.
        row: the cache row of its sequence; -1 without a cache.
        drafted: whether its keys and values have to wait to be accepted (`KVCache.accept`), since some of its tokens
            are guesses.
    """

    start: int
    stop: int
    position: int = 0
    row: int = -1
    drafted: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def written_first(self) -> bool:
        """Whether its keys go where they stay before anything attends: what one token overwrites is out of sight."""
        return len(self) == 1 and not self.drafted


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step. Build one with `Batch.pack`.

    Attributes:
        tokens_T: token ids, int64.
        positions_T: absolute positions, int64.
        spans: which sequence each token belongs to, in order and without gaps.
        pinned_T: tokens flagged to stay visible; None for none.
        global_T: tokens flagged global; None for none.
    """

    tokens_T: Tensor
    positions_T: Tensor
    spans: tuple[Span, ...]
    pinned_T: Tensor | None = None
    global_T: Tensor | None = None

    @staticmethod
    def pack(
        sequences: Sequence[Sequence[int] | Tensor],
        positions: list[int] | None = None,
        rows: list[int] | None = None,
        *,
        pinned: list[list[bool]] | None = None,
        is_global: list[list[bool]] | None = None,
        drafted: Sequence[bool] | None = None,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """Pack runs of tokens of several sequences into one step.

        Args:
            sequences: token ids, one run a sequence, none of them empty.
            positions: position of each run's first token; 0 by default.
            rows: cache row of each sequence; none by default.
            pinned, is_global: flags, one a token.
            drafted: of each sequence, whether its tokens wait to be accepted; by default none do.
            device: where the step is computed.

        Raises:
            UsageError: a run of no tokens, or no runs.

        >>> Batch.pack([[5, 6, 7], [8]], positions=[0, 41]).positions_T.tolist()
        [0, 1, 2, 41]
        """
        if not sequences or any(len(run) == 0 for run in sequences):
            raise UsageError("a step needs at least one token of every sequence in it")
        spans, start = [], 0
        for index, run in enumerate(sequences):
            position = positions[index] if positions else 0
            row, waits = rows[index] if rows else -1, drafted is not None and drafted[index]
            spans.append(Span(start, start + len(run), position, row, waits))
            start += len(run)
        if start == len(spans):  # one token each, as in every step of writing: no need for a tensor a sequence
            tokens_T = torch.tensor([int(run[0]) for run in sequences], dtype=torch.int64)
            positions_T = torch.tensor([span.position for span in spans], dtype=torch.int64)
        else:
            tokens_T = torch.cat([torch.as_tensor(run, dtype=torch.int64) for run in sequences])
            positions_T = torch.cat([torch.arange(span.position, span.position + len(span)) for span in spans])
        if torch.device(device).type != "cpu":
            tokens_T, positions_T = tokens_T.to(device), positions_T.to(device)
        return Batch(tokens_T, positions_T, tuple(spans), _flags(pinned, device), _flags(is_global, device))

    def take(self, spans: Sequence[Span]) -> Batch:
        """The step of parts of the spans of this one: their tokens, side by side."""
        index_T = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(self.tokens_T.device)
        moved, start = [], 0
        for span in spans:
            moved.append(Span(start, start + len(span), span.position, span.row))
            start += len(span)
        return Batch(
            self.tokens_T[index_T],
            self.positions_T[index_T],
            tuple(moved),
            None if self.pinned_T is None else self.pinned_T[index_T],
            None if self.global_T is None else self.global_T[index_T],
        )

    def meta(self, span: Span, sequence: int = 0) -> TokenMeta:
        """Metadata of a span's tokens, each field of shape [len(span)]."""
        inside = slice(span.start, span.stop)
        positions = self.positions_T[inside]
        none = torch.zeros_like(positions, dtype=torch.bool)
        return TokenMeta(
            position=positions,
            sequence=sequence,
            pinned=none if self.pinned_T is None else self.pinned_T[inside],
            is_global=none if self.global_T is None else self.global_T[inside],
        )


def _flags(flags: list[list[bool]] | None, device: torch.device | str) -> Tensor | None:
    if flags is None:
        return None
    return torch.tensor([flag for run in flags for flag in run], dtype=torch.bool, device=device)
