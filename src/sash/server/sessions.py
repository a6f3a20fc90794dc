"""Sessions: names for what a conversation's last turn left behind, so that people can list, inspect and drop it."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from sash.server.errors import ApiError

MAX_SESSIONS = 1024
"""Names that are remembered; the one that was used longest ago is forgotten first."""


@dataclass(slots=True, kw_only=True)
class NamedPrefix:
    """A session.

    Attributes:
        name: what requests call it.
        ids: every token of it, prompts and answers, as the last turn left them.
        window: what the model could still see of it then.
        created, used: seconds since 1970.
        turns: answers that were given under this name.
    """

    name: str
    ids: tuple[int, ...] = ()
    window: dict[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    used: int = 0
    turns: int = 0

    def to_json(self) -> dict[str, Any]:
        """The session as its owner sees it; the text itself is not repeated."""
        return {
            "id": self.name,
            "object": "session",
            "created": self.created,
            "last_used": self.used,
            "turns": self.turns,
            "n_tokens": len(self.ids),
            "window": self.window,
        }


class Sessions:
    """The sessions of all owners; nobody sees another's."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], NamedPrefix] = OrderedDict()

    def keep(self, owner: str, name: str, ids: tuple[int, ...], window: dict[str, Any]) -> None:
        """A turn under `name` has ended with these tokens."""
        session = self._known.setdefault((owner, name), NamedPrefix(name=name))
        session.ids, session.window, session.used = ids, window, int(time.time())
        session.turns += 1
        self._known.move_to_end((owner, name))
        while len(self._known) > MAX_SESSIONS:
            self._known.popitem(last=False)

    def of(self, owner: str) -> list[NamedPrefix]:
        """An owner's sessions, the one used last first."""
        return [session for (whose, _), session in reversed(self._known.items()) if whose == owner]

    def find(self, owner: str, name: str) -> NamedPrefix:
        """One of an owner's sessions.

        Raises:
            ApiError: 404.
        """
        try:
            return self._known[owner, name]
        except KeyError:
            raise ApiError(404, f"there is no session {name[:64]!r}", code="session_not_found", param="id") from None

    def drop(self, owner: str, name: str) -> NamedPrefix:
        """Forget one of an owner's sessions.

        Raises:
            ApiError: 404.
        """
        session = self.find(owner, name)
        del self._known[owner, name]
        return session
