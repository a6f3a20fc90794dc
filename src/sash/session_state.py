"""What a session needs to go on elsewhere, or later, and what may be in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sash.errors import UsageError
from sash.network.config import ModelConfig
from sash.network.snapshot import RowState


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """A session as it was; nothing that the session did later changes it.

    Attributes:
        tokens: fed and written.
        ids: all of them; None where they were not kept.
        unread: the last of them, which wait to be read.
        seen: every one, once.
        pinned: positions that are flagged to stay visible, ascending.
        seers: positions that are global; some may be still to come.
        row: what the row of the cache held.
    """

    tokens: int
    ids: tuple[int, ...] | None
    unread: tuple[int, ...]
    seen: tuple[int, ...]
    pinned: tuple[int, ...]
    seers: tuple[int, ...]
    row: RowState

    def check(self, config: ModelConfig) -> None:
        """Refuse what no session of a model can have been; the row is checked by whoever restores it.

        Raises:
            UsageError: it contradicts itself or the model.
        """
        ids = self.unread if self.ids is None else self.ids
        check_ids([*ids, *self.unread, *self.seen], config.vocab_size)
        fine = (
            self.ids is None or (len(ids) == self.tokens and set(ids) == set(self.seen)),
            tuple(ids[len(ids) - len(self.unread) :]) == self.unread,
            self.row.length + len(self.unread) == self.tokens,
            bool(self.unread) or not self.tokens,
            len({*self.pinned, *self.seers}) <= pin_room(config, sees=bool(self.seers)),
            min(self.seers, default=0) >= 0,
            all(0 <= at < self.tokens for at in self.pinned),
        )
        if not all(fine):
            raise UsageError("what a session is to go on from contradicts itself")


def pin_room(config: ModelConfig, *, sees: bool = False) -> int:
    """Tokens that a model lets flag as pins, or with `sees` as pins and global tokens; 0 where it lets flag none."""
    rooms = (pattern.pins for pattern in config.patterns if pattern.pin_by == "flag" and pattern.holds_global >= sees)
    return max(rooms, default=0)


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        UsageError: an id below 0 or past the vocabulary.
    """
    for token in ids:
        if not 0 <= token < vocab_size:
            raise UsageError(f"token id {token} is not in the model's vocabulary of {vocab_size}")
