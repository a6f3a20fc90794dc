"""Which summaries stand for what left a window: blocks near it, twice and four times as large ones farther away.

Whenever a block of tokens leaves the window, a summary of it is added. Where that makes more of one size than may be,
the two oldest of that size become one of twice the size, as a carry does in a binary counter. So their number grows
with the logarithm of what they stand for, and each is made of the ones before it: nothing else has to be kept.
Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sash.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """How what left the window is summed up.

    Attributes:
        block: tokens of the smallest summaries.
        per_level: summaries of one size at most.
        levels: sizes: block, 2 block, 4 block, ... The summaries of the last go on merging, whatever they become.

    Raises:
        UsageError: values that cannot be.
    """

    block: int = 64
    per_level: int = 4
    levels: int = 16

    def __post_init__(self) -> None:
        for name in ("block", "per_level", "levels"):
            if getattr(self, name) < 1:
                raise UsageError(f"a hierarchy's {name} is 1 or more; got {getattr(self, name)}")

    @property
    def n_slots(self) -> int:
        """Summaries at the very most, whatever the length of the text."""
        return self.per_level * self.levels

    def bound(self, n_blocks: int) -> int:
        """Summaries of `n_blocks` blocks at most: per_level for each doubling.

        >>> hierarchy = Hierarchy(per_level=2)
        >>> [hierarchy.bound(n) for n in (0, 1, 2, 3, 7, 1000, 10**12)]
        [0, 2, 2, 4, 6, 18, 32]
        """
        doublings, covered = 0, 0
        while covered < n_blocks and doublings < self.levels:
            covered += self.per_level * 2**doublings
            doublings += 1
        return self.per_level * doublings

    def end(self, position: int, window: int) -> int:
        """Where the summaries end that tokens from `position`, a multiple of `block`, up to the next one see.

        All that leaves the window of any of them is in a summary; so for up to block - 1 tokens, it is in both.

        >>> Hierarchy(block=4).end(16, window=8), Hierarchy(block=4).end(4, window=8)
        (12, 0)
        """
        return max(0, position + self.block - window)

    def next_stop(self, position: int, window: int) -> int:
        """The next position before which summaries move: a step that begins at `position` must end there or before.

        >>> [Hierarchy(block=4).next_stop(position, window=8) for position in (0, 7, 8, 9)]
        [8, 8, 12, 12]
        """
        first = max(0, window - self.block) // self.block * self.block + self.block
        return max(first, (position // self.block + 1) * self.block)

    def merges(self, levels: list[int]) -> list[int]:
        """Add a smallest summary behind `levels`, those of the summaries from the oldest on, which is changed.

        Returns:
            Which summaries are joined with the one after them, one after the other; each time those behind move up.

        >>> levels = [1, 0, 0]
        >>> Hierarchy(per_level=2, levels=2).merges(levels), levels
        ([1], [1, 1, 0])
        >>> Hierarchy(per_level=2, levels=2).merges(levels), levels
        ([], [1, 1, 0, 0])
        >>> Hierarchy(per_level=2, levels=2).merges(levels), levels
        ([2, 0], [1, 1, 0])
        """
        levels.append(0)
        joined = []
        for level in range(self.levels):
            if levels.count(level) <= self.per_level:
                break
            at = levels.index(level)
            levels[at : at + 2] = [min(level + 1, self.levels - 1)]
            joined.append(at)
        return joined
