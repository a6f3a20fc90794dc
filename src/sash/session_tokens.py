"""The tokens of a session: what was fed and written, what of it waits to be read, and what is flagged."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from sash.errors import PinsError
from sash.network.snapshot import RowState
from sash.sampling import SeenTokens
from sash.session_state import SessionState


class SessionTokens:
    """The tokens of one session, by their positions.

    Attributes:
        count: tokens fed and written.
        ids: all of them; None where they are not kept.
        unread: the last of them, which wait to be read.
        seen: every one, once.
        pinned: positions that are flagged to stay visible.
        seers: positions that are global; some may be still to come.
    """

    def __init__(self, most_ids: int | None) -> None:
        """None yet. As soon as there are more than `most_ids`, all ids are dropped; None keeps them."""
        self.count = 0
        self.ids: array[int] | None = array("i")
        self.unread: list[int] = []
        self.seen = SeenTokens()
        self.pinned: set[int] = set()
        self.seers: set[int] = set()
        self._most_ids = most_ids

    @property
    def keeps_all(self) -> bool:
        """Whether all ids are kept, however many."""
        return self._most_ids is None

    @property
    def n_read(self) -> int:
        """Tokens that do not wait to be read."""
        return self.count - len(self.unread)

    def feed(self, ids: Sequence[int]) -> None:
        """Take note of tokens that are to be read."""
        self.unread += ids
        self.seen.extend(ids)
        self._remember(ids)

    def write(self, token_id: int) -> None:
        """Take note of a token that was written; whoever sampled it has put it among those seen."""
        self.unread = [token_id]
        self._remember([token_id])

    def _remember(self, ids: Sequence[int]) -> None:
        self.count += len(ids)
        if self._most_ids is not None and self.count > self._most_ids:
            self.ids = None
        if self.ids is not None:
            self.ids.extend(ids)

    def flagged(
        self, pins: Sequence[range], seers: Sequence[range], n_tokens: int
    ) -> tuple[frozenset[int], frozenset[int]]:
        """`pinned` and `seers` with those of the next `n_tokens` tokens, which are counted from 0.

        Raises:
            PinsError: pins that are not among them.
        """
        if any(span.start < 0 or span.stop > n_tokens for span in pins):
            raise PinsError(f"only tokens that are fed can be pinned, 0 to {n_tokens - 1}")
        first = self.count
        return (
            frozenset(self.pinned).union(*(range(first + span.start, first + span.stop) for span in pins)),
            frozenset(self.seers).union(*(range(first + span.start, first + span.stop) for span in seers)),
        )

    def cut(self, position: int, unread: list[int]) -> None:
        """Forget all from `position` on; of what is left, `unread` waits to be read."""
        ids = array("i") if self.ids is None else self.ids
        self.ids = ids[:position]
        self.unread, self.count, self.seen = unread, position, SeenTokens(self.ids)
        self.pinned = {at for at in self.pinned if at < position}
        self.seers = {at for at in self.seers if at < position}

    def alike(self, ids: Sequence[int], pinned: Iterable[int], seers: Iterable[int]) -> int:
        """How many of the first tokens are those of `ids`, pinned and global where they are."""
        known = self.ids if self.ids is not None else array("i")
        end = min(len(known), len(ids))
        alike = end if known[:end] == array("i", ids[:end]) else _first_difference(known, ids, end)
        return min([alike, *(at for at in (set(pinned) ^ self.pinned) | (set(seers) ^ self.seers) if at < alike)])

    def copy(self) -> SessionTokens:
        """The same tokens, to go on by themselves."""
        twin = SessionTokens(self._most_ids)
        twin.count, twin.ids = self.count, None if self.ids is None else self.ids[:]
        twin.unread, twin.pinned, twin.seers = list(self.unread), set(self.pinned), set(self.seers)
        twin.seen.extend(self.seen.ids.tolist())
        return twin

    def state(self, row: RowState, ids: Sequence[int] | None) -> SessionState:
        """The state of a session with these tokens, and with `ids` and `row` as they are known."""
        return SessionState(
            tokens=self.count,
            ids=None if ids is None else tuple(ids),
            unread=tuple(self.unread),
            seen=tuple(self.seen.ids.tolist()),
            pinned=tuple(sorted(self.pinned)),
            seers=tuple(sorted(self.seers)),
            row=row,
        )

    def take_up(self, state: SessionState) -> None:
        """Be those of a state."""
        self.count, self.ids = state.tokens, None if state.ids is None else array("i", state.ids)
        self.unread, self.seen = list(state.unread), SeenTokens(state.seen)
        self.pinned, self.seers = set(state.pinned), set(state.seers)


def _first_difference(one: Sequence[int], other: Sequence[int], end: int) -> int:
    """Where two sequences differ within their first `end` items, which they do."""
    start = 0
    while end - start > 1:  # halves, compared whole: much faster than items
        middle = (start + end) // 2
        if list(one[start:middle]) == list(other[start:middle]):
            start = middle
        else:
            end = middle
    return start
