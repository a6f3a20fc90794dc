"""A bar on standard error while a text is read; nothing where that is no terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


class ReadingBar:
    """Counts tokens as they are read. It vanishes when it is left."""

    def __init__(self, total: int | None, in_sight: int | None) -> None:
        """Starts at no tokens.

        Args:
            total: tokens to read; None where they are still arriving.
            in_sight: tokens that the narrowest layer sees at once; None where every layer sees all.
        """
        self._total, self._in_sight = total, in_sight
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._done = 0

    def __enter__(self) -> ReadingBar:
        if sys.stderr.isatty():
            import rich.console
            import rich.progress as bars

            self._bar = bars.Progress(
                bars.TextColumn("reading"),
                bars.BarColumn(bar_width=28),
                bars.TextColumn("{task.fields[account]}"),
                bars.TimeRemainingColumn(compact=True),
                console=rich.console.Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("reading", total=self._total, account=self._account(0.0))
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, count: int) -> None:
        """`count` more tokens are read."""
        self._done += count
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[0].speed or 0.0
            self._bar.update(self._task, completed=self._done, account=self._account(speed))

    def _account(self, speed: float) -> str:
        of = "" if self._total is None else f"/{self._total:,}"
        words = [f"{self._done:,}{of} tok"]
        words += [f"{speed:,.0f} tok/s"] if speed else []
        if self._in_sight is not None and self._done > self._in_sight:
            words.append(f"slid out {self._done - self._in_sight:,}")
        return "   ".join(words)
