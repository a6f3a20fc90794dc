"""Overlapping windows: nothing is rolled on; the newest tokens are read again, in a fresh row, every so often.

This is what StreamingLLM calls re-computation (arXiv 2309.17453, figure 1c): the context that is read afresh each time
and that a window of its size can give at best, at the cost of reading most tokens several times. A reading has at most
`window` tokens, whose positions begin at 0. When another token comes, the row is emptied, the newest window - stride
of its tokens are read again, and there is room for `stride` new ones. What a token sees therefore depends on the text
alone, and not on how it was cut into chunks or calls. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sash.errors import PinsError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How a text is read by overlapping windows.

    Attributes:
        window: tokens of a reading at most, those that stay included.
        stride: new tokens of each reading but the first; `window` for readings that do not overlap.
        pins: first tokens of a text that stand at the head of every reading.

    Raises:
        UsageError: a window or stride that cannot be.
        PinsError: as many pins as a reading has tokens.
    """

    window: int
    stride: int
    pins: int = 0

    def __post_init__(self) -> None:
        if self.window < 1 or not 1 <= self.stride <= self.window:
            raise UsageError(
                f"overlapping windows need 1 <= stride <= window; got a stride of {self.stride:,} and a window of "
                f"{self.window:,}"
            )
        if self.pins >= self.window:
            raise PinsError(f"{self.pins:,} pins leave no room in readings of {self.window:,} tokens: pin fewer")

    def in_sight(self, length: int, pinned: Sequence[int] = (), *, leads: bool = False) -> list[int]:
        """The positions of a text that its token `length - 1` sees, in order; `leads` keeps the first one, too.

        >>> Overlap(window=6, stride=2).in_sight(7)
        [2, 3, 4, 5, 6]
        >>> Overlap(window=6, stride=2).in_sight(9, pinned=[0])
        [0, 5, 6, 7, 8]
        """
        flags = set(pinned)
        held = Held(self, lead_id=0 if leads else None)
        taken = held.settle([(at, at in flags) for at in range(length)])
        return [*(token.token_id for token in held.again), *range(taken, length)]


class Known(NamedTuple):
    """A token of a text that is read again.

    Attributes:
        token_id: its id.
        pinned: whether it is flagged as a pin.
        stays: whether it stands at the head of every reading.
    """

    token_id: int
    pinned: bool
    stays: bool


class Held:
    """What the row of one sequence holds, and what is to be read again before anything else.

    Attributes:
        overlap: how it is read.
        row: the tokens in the row, in the order of their slots.
        again: tokens to read before any new one.
        leads: whether the text begins with a token that stays for being its beginning.
        n_lead: tokens at the head of the reading that stand there because they stay.
        n_text: tokens of the text that went into the row so far, or were passed over: no later token sees them.
        n_read: tokens that went through the network, those read again counted again.
    """

    def __init__(self, overlap: Overlap, lead_id: int | None = None) -> None:
        """A text that begins with `lead_id` has that token at the head of every reading."""
        self.overlap, self._lead_id = overlap, lead_id if overlap.window > 1 else None
        self.row: list[Known] = []
        self.again: list[Known] = []
        self.n_lead = self.n_text = self.n_read = 0
        self.leads = False

    @property
    def room(self) -> int:
        """Tokens that may be read before the row has to be emptied."""
        return self.overlap.window - len(self.row)

    def settle(self, waiting: Sequence[tuple[int, bool]]) -> int:
        """Make sure that the row can take all that is known, so that the next unknown token can be predicted.

        Where it cannot, the row counts as empty, and `again` is what is to be read into it first. Tokens that wait and
        that the last of them does not see are passed over: reading them would change nothing.

        Args:
            waiting: (token id, whether it is a pin) of each token that is known and was not read.

        Returns:
            How many of them wait no longer: they are in `again`, or were passed over.

        Raises:
            PinsError: as many tokens stay as a reading has.
        """
        reading, taken = [*self.row, *self.again], 0
        if len(reading) + len(waiting) <= self.overlap.window:
            return 0
        while len(reading) + len(waiting) - taken > self.overlap.window:
            count = self.overlap.window - len(reading)
            reading += self._know(waiting[taken : taken + count])
            taken += count
            reading, self.n_lead = self._kept(reading)
        self.row, self.again = [], reading
        return taken

    def read(self, count: int, waiting: Sequence[tuple[int, bool]]) -> int:
        """Note that the next `count` tokens are in the row; how many of them were `waiting`."""
        n_again = min(count, len(self.again))
        self.row += self.again[:n_again]
        del self.again[:n_again]
        self.row += self._know(waiting[: count - n_again])
        self.n_read += count
        return count - n_again

    def lose(self) -> None:
        """Note that the row was emptied: what it held is to be read again."""
        self.row, self.again = [], [*self.row, *self.again]

    def in_sight(self, n_waiting: int) -> tuple[int, int]:
        """Tokens that the last of `n_waiting` sees, where one more than fit is the most; and those that stay."""
        total = len(self.row) + len(self.again) + n_waiting
        if total <= self.overlap.window:
            return total, self.n_lead
        kept, n_lead = self._kept([*self.row, *self.again])
        return len(kept) + n_waiting, n_lead

    def check_room(self, n_pins: int) -> None:
        """Refuse more pins than leave room for other tokens.

        Raises:
            PinsError: so it is.
        """
        n_stay = n_pins + self.overlap.pins + (self._lead_id is not None)
        if n_stay >= self.overlap.window:
            raise PinsError(
                f"{n_stay:,} tokens would stand at the head of every reading of {self.overlap.window:,}: pin fewer"
            )

    def copy(self) -> Held:
        """The same, to go its own way."""
        twin = Held(self.overlap, self._lead_id)
        twin.row, twin.again = list(self.row), list(self.again)
        twin.n_lead, twin.n_text, twin.n_read = self.n_lead, self.n_text, self.n_read
        twin.leads = self.leads
        return twin

    def _know(self, tokens: Sequence[tuple[int, bool]]) -> list[Known]:
        known = []
        for token_id, pinned in tokens:
            first = self.n_text == 0 and token_id == self._lead_id
            self.leads = self.leads or first
            known.append(Known(token_id, pinned, pinned or first or self.n_text < self.overlap.pins))
            self.n_text += 1
        return known

    def _kept(self, reading: list[Known]) -> tuple[list[Known], int]:
        """What the reading after a full one begins with, and how many of it stay from before its other tokens."""
        most = self.overlap.window - self.overlap.stride
        start = max(0, len(reading) - most)
        n_lead = sum(token.stays for token in reading[:start])
        while n_lead + len(reading) - start > most and start < len(reading):
            n_lead += reading[start].stays
            start += 1
        if n_lead >= self.overlap.window:
            raise PinsError(
                f"{n_lead:,} tokens stay, which leaves no room in readings of {self.overlap.window:,}: pin fewer"
            )
        return [*(token for token in reading[:start] if token.stays), *reading[start:]], n_lead
