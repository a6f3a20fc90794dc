"""A file of weights, opened once: a regular file of known size, read by position or mapped privately."""

from __future__ import annotations

import io
import mmap
import os
import stat
import threading
from pathlib import Path

from sash.errors import CheckpointError


class BinaryFile:
    """A regular file that is read by position.

    Headers, and tensors that are converted on the way, go through `readinto`: it touches no mapped page, so it neither
    grows resident memory nor dies of a file that shrinks meanwhile. `map` is for tensors handed out without a copy.
    Reading is safe from several threads.

    Attributes:
        path: as given; symbolic links are followed when it is opened.
        size: bytes, as they were at opening; a file that changes size later is refused at the next read.
    """

    __slots__ = ("_lock", "_map", "_raw", "path", "size")

    def __init__(self, path: Path, raw: io.FileIO, size: int) -> None:
        self.path = path
        self.size = size
        self._raw = raw
        self._map: mmap.mmap | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> BinaryFile:
        """Open `path` for reading.

        Raises:
            CheckpointError: there is no such file, it cannot be read, or it is a directory, a pipe or a device.
        """
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            if path.is_dir():
                raise CheckpointError(f"{path} is a folder, where a file is needed")
            raw = io.FileIO(os.open(path, flags), "rb")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise CheckpointError(f"cannot open {path}: {reason}") from error
        status = os.fstat(raw.fileno())
        if not stat.S_ISREG(status.st_mode):
            raw.close()
            raise CheckpointError(f"{path} is a pipe or a device, where a file is needed")
        return cls(path, raw, status.st_size)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file is closed, or its size is no longer what it was when it was opened."""
        if self._raw.closed:
            raise CheckpointError(f"{self.path} was closed: open the checkpoint again to read from it")
        now = os.fstat(self._raw.fileno()).st_size
        if now != self.size:
            raise CheckpointError(
                f"{self.path} changed while it was open, from {self.size} to {now} bytes: "
                "wait until it is written (or download it again), then load it anew"
            )

    def readinto(self, offset: int, target: memoryview) -> None:
        """Fill `target`, a writable view of bytes, with what stands at `offset`.

        Raises:
            CheckpointError: the file ends before, has changed, or cannot be read.
        """
        self.check_unchanged()
        if offset + len(target) > self.size:
            raise CheckpointError(f"{self.path} ends at byte {self.size}, before {offset + len(target)}")
        done = 0
        try:
            with self._lock:
                self._raw.seek(offset)
                while done < len(target):
                    count = self._raw.readinto(target[done:])
                    if not count:
                        raise CheckpointError(f"{self.path} became shorter while it was read: download it again")
                    done += count
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error

    def read(self, offset: int, n_bytes: int) -> bytes:
        """`n_bytes` from `offset`; the caller has checked `n_bytes` against what it is ready to allocate.

        Raises:
            CheckpointError: as `readinto`.
        """
        if offset + n_bytes > self.size:
            raise CheckpointError(f"{self.path} ends at byte {self.size}, before {offset + n_bytes}")
        buffer = bytearray(n_bytes)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def map(self) -> mmap.mmap:
        """The whole file as private memory: writable, copied page by page on writing, never written back.

        Raises:
            CheckpointError: the file has changed, or memory for the map was refused.
        """
        self.check_unchanged()
        if self._map is None:
            try:
                self._map = mmap.mmap(self._raw.fileno(), self.size, access=mmap.ACCESS_COPY)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot map {self.path} into memory: {error}") from error
        return self._map

    def close(self) -> None:
        """Let go of the file. Tensors that view its map stay valid: the map lives until the last of them is gone."""
        self._raw.close()
        # Never unmapped by hand: torch's views hold a reference to the map, but no lock on it.
        self._map = None
