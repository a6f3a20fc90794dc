"""Snapshots on disk: a folder under a budget, and a thread that writes to it.

What is asked of the folder never waits for the disk, but for `load` and `close`. When more snapshots wait to be written
than there is room for, the oldest of them stays in memory only. Files are removed least recently used first, those of
other models among them; files that are refused are left alone until their turn comes. Nothing that the disk does
breaks anything: it is logged, and the snapshot is not on disk. A folder is meant for one process: several do each other
no harm, but none counts what the others have written since it began.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from sash.engine.snapshot_figures import FolderFigures
from sash.engine.snapshot_files import SUFFIX, Front, Label, file_size, read, read_label, write
from sash.engine.whole_file import flush_folder
from sash.errors import CheckpointError, InputNotFoundError
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState

logger = logging.getLogger(__name__)

MAX_QUEUED = 1024
LOADERS = 4
"""Files that are read and checked at once."""

_STALE_SECONDS = 600.0


class SnapshotFolder:
    """A folder of snapshots and the thread that writes it. All methods may be called from one thread only.

    Attributes:
        path: the folder.
        budget: bytes that its snapshots may take together.
        figures: what became of them.
    """

    def __init__(self, path: Path, budget: int, fingerprint: str) -> None:
        """Look through a folder, which is made if need be.

        Raises:
            InputNotFoundError: it cannot be made or read.
        """
        self.path, self.budget, self.figures, self._fingerprint = path, budget, FolderFigures(), fingerprint
        self._changed = threading.Condition()
        self._queue: OrderedDict[str, tuple[Label, RowState] | None] = OrderedDict()
        self._writing: str | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bad: set[str] = set()
        self._news: list[tuple[str, bool]] = []
        self._closed = False
        self.found: list[Front] = self._look_through()
        self._thread = threading.Thread(target=self._run, name="sash-snapshots", daemon=True)
        self._thread.start()

    def _look_through(self) -> list[Front]:
        """What can be loaded, least recently used first."""
        found: list[Front] = []
        others = 0
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            entries = [seen for entry in os.scandir(self.path) if (seen := _regular(entry)) is not None]
        except OSError as error:
            raise InputNotFoundError(
                f"snapshots cannot be kept in {self.path} ({error.strerror}): name another folder"
            ) from error
        for modified, size, entry in sorted(entries, key=lambda seen: seen[0]):
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                _remove_stale(Path(entry.path), modified)
            if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                continue
            self._sizes[entry.name.removesuffix(SUFFIX)] = size
            try:
                front = read_label(Path(entry.path))
            except (CheckpointError, OSError) as error:
                self._refuse(entry.name.removesuffix(SUFFIX), error)
                continue
            if front.label.fingerprint == self._fingerprint:
                found.append(front)
            else:
                others += 1
        if others:
            logger.info("snapshots: %d in %s are of other models or settings, and are not used", others, self.path)
        with suppress(OSError):
            self._make_room(0)
        self._count()
        return [front for front in found if front.label.name in self._sizes]

    def _refuse(self, name: str, error: Exception) -> None:
        self._bad.add(name)
        self.figures.refused += 1
        logger.warning("snapshot refused: %s", error)

    def keep(self, label: Label, state: RowState) -> None:
        """Have a snapshot written."""
        with self._changed:
            if label.name in self._queue and self._queue[label.name] is None:
                del self._queue[label.name]  # it was to be removed, and is wanted again
            there = label.name in self._sizes and label.name not in self._bad
            if self._closed or there or label.name == self._writing:
                return
            self._queue[label.name] = (label, state)
            if len(self._queue) > MAX_QUEUED:
                self._skip_oldest()
            self._changed.notify_all()

    def _skip_oldest(self) -> None:
        """Take the oldest snapshot that waits out of the queue; what is to be removed stays in it."""
        oldest = next((name for name, job in self._queue.items() if job is not None), None)
        if oldest is not None:
            del self._queue[oldest]
            self.figures.skipped += 1

    def take_back(self, name: str) -> bool:
        """Whether a snapshot is not being written just now; then it will not be written either."""
        with self._changed:
            if self._queue.get(name) is not None:
                del self._queue[name]
            return self._writing != name

    def drop(self, name: str) -> None:
        """Have a snapshot's file removed, or never written."""
        with self._changed:
            self._queue.pop(name, None)
            if name in self._sizes or self._writing == name:
                self._queue[name] = None
                self._changed.notify_all()

    def load(self, wanted: Sequence[tuple[Label, Sequence[int]]]) -> list[dict[int, StoreState] | None]:
        """What some stores hold of pieces, from files, several at once; None, with a line in the log, if refused."""
        if len(wanted) < 2:
            return [self._load(*one) for one in wanted]
        with ThreadPoolExecutor(min(LOADERS, len(wanted)), "sash-loading") as pool:
            return list(pool.map(lambda one: self._load(*one), wanted))

    def _load(self, label: Label, stores: Sequence[int]) -> dict[int, StoreState] | None:
        name = label.name
        path = self.path / (name + SUFFIX)
        try:
            parts = read(path, label, stores)
            with suppress(OSError):
                os.utime(path)
        except (CheckpointError, OSError, RuntimeError) as error:  # RuntimeError: no memory for its tensors
            with self._changed:
                self._refuse(name, error)
            return None
        with self._changed:
            self.figures.loaded += 1
            if name in self._sizes:
                self._sizes.move_to_end(name)
        return parts

    def news(self) -> list[tuple[str, bool]]:
        """(name, whether it is there now) of each file that was written or removed since the last call."""
        with self._changed:
            news, self._news = self._news, []
            return news

    def flush(self) -> None:
        """Wait until everything that was asked for is done."""
        with self._changed:
            while self._queue or self._writing is not None:
                self._changed.wait()

    def settle(self, seconds: float) -> bool:
        """Wait until what was asked for before this call is done, or so long; whether it is. Any thread."""
        with self._changed:
            asked = {*self._queue, self._writing} - {None}
            return self._changed.wait_for(lambda: asked.isdisjoint({*self._queue, self._writing}), seconds)

    def close(self) -> None:
        """Write what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # The writing thread.

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # those that write answers go first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                name, job = self._queue.popitem(last=False)
                self._writing = name
            try:
                if job is None:
                    self._remove(name)
                else:
                    self._write(*job)
            except Exception as error:  # whatever it is, the snapshot is in memory and the server runs on
                self.figures.failed += 1
                reason = error.strerror if isinstance(error, OSError) else str(error)
                logger.warning("snapshot %s is not on disk: %s", name, reason)
            finally:
                del job
                with self._changed:
                    self._writing = None
                    self._count()
                    self._changed.notify_all()

    def _write(self, label: Label, state: RowState) -> None:
        tensors = [list(state.tensors_of(store)) for store in range(len(state.states))]
        size = file_size(label, state, tensors)
        if size > self.budget:
            self.figures.skipped += 1
            return
        self._make_room(size)
        write(self.path, label, state, tensors)
        with self._changed:
            self._sizes[label.name] = size
            self._sizes.move_to_end(label.name)
            self._bad.discard(label.name)
            self._news.append((label.name, True))
            self.figures.written += 1

    def _make_room(self, size: int) -> None:
        """Remove files, least recently used first, until `size` more bytes keep to the budget."""
        while True:
            with self._changed:
                if sum(self._sizes.values()) + size <= self.budget or not self._sizes:
                    break
                oldest = next(iter(self._sizes))
            self.figures.removed += 1
            self._remove(oldest)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self.path / (name + SUFFIX)).unlink()
            flush_folder(self.path)
        with self._changed:
            if self._sizes.pop(name, None) is not None:
                self._news.append((name, False))

    def _count(self) -> None:
        self.figures.files, self.figures.bytes = len(self._sizes), sum(self._sizes.values())


def _regular(entry: os.DirEntry[str]) -> tuple[float, int, os.DirEntry[str]] | None:
    """When a file was changed, and its size; None for links, folders, and what is gone by now."""
    try:
        if entry.is_file(follow_symlinks=False):
            found = entry.stat(follow_symlinks=False)
            return found.st_mtime, found.st_size, entry
    except OSError:
        logger.warning("snapshots: %s cannot be looked at", entry.name)
    return None


def _remove_stale(path: Path, modified: float) -> None:
    """Remove what a process that is gone has left half written."""
    owner = path.name.split(".")[-2]
    alive = True
    if owner.isdigit():
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            alive = False
        except (OSError, OverflowError):
            alive = True
    if not alive or int(owner if owner.isdigit() else 0) == os.getpid() or time.time() - modified > _STALE_SECONDS:
        with suppress(OSError):
            path.unlink()
