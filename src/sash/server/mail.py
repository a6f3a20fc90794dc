"""From the engine's thread to the event loop: boxes that one side fills and the other empties.

The engine's thread must never wait for a client, so `Box.put` only appends; a box that is full says so, and its
request is ended. Waking an event loop from outside costs a write to a pipe: `Post` does it once for all the boxes
that a step of the engine filled.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_HELD = 256 << 10
"""Characters that may wait for one client to read them."""


class Post:
    """Wakes the readers of boxes on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._ringing: list[asyncio.Event] = []

    def ring(self, bell: asyncio.Event) -> None:
        """Set an event of the loop, from any thread."""
        with self._lock:
            self._ringing.append(bell)
            if len(self._ringing) > 1:
                return
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: nobody is left to read
            with self._lock:
                self._ringing.clear()

    def _deliver(self) -> None:
        with self._lock:
            bells, self._ringing = self._ringing, []
        for bell in bells:
            bell.set()


class Box(Generic[T]):
    """What waits for one client.

    Attributes:
        overflowed: whether more was put in than it holds; what came after that is not kept.
    """

    def __init__(self, post: Post, limit: float = MAX_HELD) -> None:
        """`limit` counts characters; infinity where the reader keeps everything anyway."""
        self._post = post
        self._limit = limit
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._held = 0
        self._bell = asyncio.Event()
        self.overflowed = False

    def put(self, item: T, size: int) -> bool:
        """Add an item of `size` characters, from any thread; False if the box is full."""
        with self._lock:
            if self.overflowed or self._held + size > self._limit:
                self.overflowed = True
            else:
                self._held += size
                self._items.append(item)
            first = len(self._items) == 1 or self.overflowed
        if first:
            self._post.ring(self._bell)
        return not self.overflowed

    async def take(self) -> list[T]:
        """What has come, as soon as the bell rings; nothing where it rang for another reason."""
        await self._bell.wait()
        self._bell.clear()
        with self._lock:
            items, self._items = self._items, []
            self._held = 0
        return items

    def wake(self) -> None:
        """Ring without an item; only from the event loop."""
        self._bell.set()
