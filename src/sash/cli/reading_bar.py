"""A bar on standard error while a text is read; nothing where that is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


PATIENCE = 0.5
"""Seconds that a reading of known length may take without a bar."""


class ReadingBar:
    """Counts tokens as they are read. It vanishes when it is left."""

    def __init__(
        self, total: int | None, in_sight: int | None, *, at_once: bool = False, label: str = "reading"
    ) -> None:
        """Starts at no tokens.

        Args:
            total: tokens to read; None where that is not known.
            in_sight: tokens that the narrowest layer sees at once; None where every layer sees all.
            at_once: show the bar before anything is read, because what is to be read is still arriving.
            label: what is being done.
        """
        self._label = label
        self.total, self._in_sight, self._at_once = total, in_sight, at_once
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._done = 0
        self._began = time.monotonic()

    def __enter__(self) -> ReadingBar:
        self._began = time.monotonic()
        if self._at_once:
            self._show()
        return self

    def _show(self) -> None:
        if self._bar is not None or not sys.stderr.isatty():
            return
        import rich.console
        import rich.progress as bars

        self._bar = bars.Progress(
            bars.TextColumn(self._label),
            bars.BarColumn(bar_width=28),
            bars.TextColumn("{task.fields[account]}"),
            bars.TimeRemainingColumn(compact=True),
            console=rich.console.Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=self.total, account=self._account(0.0))
        self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, count: int) -> None:
        """`count` more tokens are read."""
        self._done += count
        if time.monotonic() - self._began > PATIENCE:
            self._show()
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[0].speed or 0.0
            self._bar.update(self._task, completed=self._done, account=self._account(speed))

    def _account(self, speed: float) -> str:
        of = "" if self.total is None else f"/{self.total:,}"
        words = [f"{self._done:,}{of} tok"]
        words += [f"{speed:,.0f} tok/s"] if speed else []
        if self._in_sight is not None and self._done > self._in_sight:
            words.append(f"slid out {self._done - self._in_sight:,}")
        return "   ".join(words)
