"""`--overlap`, `--hierarchy` and `--recall`: three ways to remember what left the window, of which one can be taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sash.cli.sizes import parse_size
from sash.engine.overlap import Overlap
from sash.errors import UsageError
from sash.network.hierarchy import Hierarchy

if TYPE_CHECKING:
    from sash.lm import LM


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembering:
    """How what left the window is remembered.

    Attributes:
        overlap: new tokens of each reading, where windows are read anew; None where they roll.
        hierarchy: summaries of each size; None for none.
        recall: slots of a layer for what is brought back; None for none.
    """

    overlap: int | None = None
    hierarchy: int | None = None
    recall: int | None = None

    @staticmethod
    def of(
        overlap: str | None = None,
        hierarchy: int | None = None,
        recall: int | None = None,
        *,
        window: int | Literal["full"] | None = None,
        pins: int = 0,
        speculate: str | None = None,
    ) -> Remembering:
        """Checked, as far as that can be done before a model is loaded.

        Raises:
            UsageError: two of them together, or one with guesses; a stride or number that cannot be.
            PinsError: as many pins as a reading has tokens.
        """
        given = {"overlap": overlap, "hierarchy": hierarchy, "recall": recall, "speculate": speculate}
        named = [f"--{name}" for name, value in given.items() if value is not None]
        if len(named) > 1 and named != ["--speculate"]:
            raise UsageError(f"{' and '.join(named[:2])} cannot be together: choose one")
        if hierarchy is not None:
            Hierarchy(per_level=hierarchy)
        if recall is not None and recall < 1:
            raise UsageError(f"--recall counts slots of a layer, so it is 1 or more; got {recall}")
        way = next((name for name in named if name != "--speculate"), None)
        if window == "full" and way is not None:
            raise UsageError(f"with --window full nothing is lost that {way} could bring back: leave out one of them")
        return Remembering(overlap=parse_overlap(overlap, window, pins), hierarchy=hierarchy, recall=recall)

    def __bool__(self) -> bool:
        return self != Remembering()

    @property
    def option(self) -> str:
        """The option that was given, as it is written; empty for none."""
        given = {"--overlap": self.overlap, "--hierarchy": self.hierarchy, "--recall": self.recall}
        return next((name for name, value in given.items() if value is not None), "")

    def over(self, lm: LM) -> LM:
        """A model that remembers so, whose window is in force already.

        Raises:
            SashError: as `LM.with_overlap`, `LM.with_hierarchy` and `LM.with_recall` do.
        """
        if self.overlap is not None:
            return lm.with_overlap(self.overlap)
        if self.hierarchy is not None:
            return lm.with_hierarchy(per_level=self.hierarchy)
        return lm if self.recall is None else lm.with_recall(self.recall)


def parse_overlap(overlap: str | None, window: int | Literal["full"] | None, pins: int) -> int | None:
    """New tokens of a reading, refused here where they cannot be.

    Raises:
        UsageError: none, more than a reading has, or no window to read anew.
        PinsError: as many pins as a reading has tokens.
    """
    if overlap is None:
        return None
    stride = parse_size(overlap, "--overlap")
    if window == "full":
        raise UsageError("--overlap reads a window anew, so it cannot go with --window full")
    if stride < 1 or (window is not None and stride > window):
        most = "1 or more" if window is None else f"1 to {window:,}, as many as --window"
        raise UsageError(f"--overlap takes {most} new tokens a reading; got {stride:,}")
    if window is not None:
        Overlap(window=window, stride=stride, pins=pins)
    return stride
