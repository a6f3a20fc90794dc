"""Sessions: names for what a conversation's last turn left behind, so that people can list, inspect and drop it.

A session is no state of its own. The engine keeps snapshots of what was read, finds them by their tokens, and writes
them to its folder; a session says how far a named conversation has got, and what the model could still see of it. To
save one is to write that down once all snapshots are on disk. They share the folder's budget with those of others.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sash.server.errors import ApiError

logger = logging.getLogger(__name__)

MAX_SESSIONS = 1024
"""Names that are remembered; the one that was used longest ago is forgotten first."""

FOLDER = "sessions"
"""Where saved sessions are kept, inside the folder of snapshots."""

MAX_FILE = 1 << 16

SETTLE_SECONDS = 5.0
"""How long to wait for snapshots that are being written."""


@dataclass(slots=True, kw_only=True)
class NamedPrefix:
    """A session.

    Attributes:
        name: what requests call it.
        n_tokens: tokens of it, prompts and answers, as the last turn left them.
        window: what the model could still see of it then.
        created, used: seconds since 1970.
        turns: answers that were given under this name.
        saved: whether it outlives the server.
    """

    name: str
    n_tokens: int = 0
    window: dict[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    used: int = 0
    turns: int = 0
    saved: bool = False

    def to_json(self) -> dict[str, Any]:
        """The session as its owner sees it; what was said is not kept here, and not repeated."""
        return {"id": self.name, "object": "session", **{k: v for k, v in asdict(self).items() if k != "name"}}


class Sessions:
    """The sessions of all owners; nobody sees another's. `folder` is where they are saved; None for nowhere."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = None if folder is None else folder / FOLDER
        self._known: OrderedDict[tuple[str, str], NamedPrefix] = OrderedDict()
        if self._folder is not None and self._folder.is_dir():
            for file in sorted(self._folder.glob("*.json"))[:MAX_SESSIONS]:
                self._read(file)

    def _read(self, file: Path) -> None:
        """Take in a saved session; one that is not whole is passed over."""
        try:
            if file.stat().st_size > MAX_FILE:
                raise ValueError("too large")
            session = NamedPrefix(**json.loads(file.read_bytes()))
            owner, _, name = file.stem.partition("-")
            if session.name != name or not isinstance(session.n_tokens, int):
                raise ValueError("of another name")
        except (OSError, ValueError, TypeError) as error:
            logger.warning("the saved session %s is not used: %s", file.name, type(error).__name__)
            return
        self._known[owner, session.name] = session

    def keep(self, owner: str, name: str, n_tokens: int, window: dict[str, Any]) -> None:
        """A turn under `name` has ended with so many tokens."""
        session = self._known.setdefault((owner, name), NamedPrefix(name=name))
        session.n_tokens, session.window, session.used = n_tokens, window, int(time.time())
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
        if self._folder is not None:
            self._file(self._folder, owner, name).unlink(missing_ok=True)
        return session

    def save(self, owner: str, name: str, settle: Callable[[float], bool] = lambda seconds: True) -> NamedPrefix:
        """Write one of an owner's sessions down, beside the snapshots, so that it is known after a restart.

        Args:
            owner, name: which.
            settle: waits until what was read before is on disk, so long at most; whether it is.

        Raises:
            ApiError: 404; 400, the server keeps nothing on disk; 503, what was read is not on disk yet.
        """
        session = self.find(owner, name)
        if self._folder is None:
            raise ApiError(400, "this server keeps nothing on disk: start it with --snapshot-dir", code="not_kept")
        if not settle(SETTLE_SECONDS):
            raise ApiError(503, "what was read is still being written to disk: try again", code="not_written")
        self._folder.mkdir(parents=True, exist_ok=True)
        session.saved = True
        file = self._file(self._folder, owner, name)
        fresh = file.with_suffix(".new")
        with fresh.open("wb") as stream:
            stream.write(json.dumps(asdict(session)).encode())
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(file)
        return session

    @staticmethod
    def _file(folder: Path, owner: str, name: str) -> Path:
        """Where a session is kept; owners are digests, and names were checked to be plain words."""
        return folder / f"{owner}-{name}.json"
