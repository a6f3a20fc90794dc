"""Ctrl-C as a wish that is granted between two steps, so that no cache is ever left half-written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Holds the handler of Ctrl-C while it is entered.

    The first Ctrl-C is noted; who computes asks for it between two steps. A second one, or one while there is nothing
    but waiting, raises KeyboardInterrupt at once.

    Attributes:
        requested: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; elsewhere Ctrl-C is somebody else's.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._waiting or self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __call__(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.requested

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt here, if Ctrl-C was pressed."""
        if self.requested:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, Ctrl-C raises at once: there is only waiting, and nothing that could be left half-done."""
        self.raise_if_requested()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
