"""Files that are there whole or not at all: written aside, renamed, and read back under a running checksum.

What the kinds of files have in common (`sash.engine.snapshot_files`, `sash.engine.sealed_file`): tensors that are
padded to multiples of 64 bytes, and a digest that follows every byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from sash.errors import CheckpointError

ALIGNMENT = 64
_PIECE = 4 << 20


class Digest(Protocol):
    """What a kind of file is summed up by, as `hashlib` makes it."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """What they come to."""
        ...


def replace(path: Path, temporary: Path, write: Callable[[IO[bytes]], int]) -> int:
    """Write a file aside, flush it to the disk, rename it and flush its folder; what `write` returns.

    Raises:
        OSError: no room, no folder, no permission; then what was at `path` is as it was.
    """
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            size = write(file)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    flush_folder(path.parent)
    return size


def flush_folder(folder: Path) -> None:
    """Make what was renamed in a folder last, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def padding(size: int) -> int:
    """Bytes from `size` to the next multiple of `ALIGNMENT`.

    >>> padding(0), padding(1), padding(64)
    (0, 63, 0)
    """
    return -size % ALIGNMENT


def data_size(sizes: Iterable[int]) -> int:
    """Bytes of pieces of data of these sizes, each with its padding."""
    return sum(size + padding(size) for size in sizes)


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor, in place where it lies side by side on the host."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_summed(file: IO[bytes], front: bytes, tensors: Iterable[Tensor], digest: Digest) -> int:
    """Write a front, tensors with their padding, and the digest of all of it; the bytes of all."""
    size = put(file, front, digest) + put_tensors(file, tensors, digest)
    return size + put(file, digest.digest(), digest)


def put(file: IO[bytes], data: bytes | memoryview, digest: Digest) -> int:
    """Write bytes, which the digest takes in; how many."""
    left = memoryview(data)
    digest.update(left)
    while len(left):
        left = left[file.write(left) :]
    return len(data)


def put_tensors(file: IO[bytes], tensors: Iterable[Tensor], digest: Digest) -> int:
    """Write tensors, each with its padding; the bytes of all."""
    size = 0
    for tensor in tensors:
        data = memoryview(bytes_of(tensor))
        size += sum(put(file, data[start : start + _PIECE], digest) for start in range(0, len(data), _PIECE))
        size += put(file, bytes(padding(len(data))), digest)
    return size


def read_exactly(file: IO[bytes], count: int) -> bytes:
    """The next `count` bytes, or what there is of them: a read may give less than was asked for."""
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_tensor(path: Path, file: IO[bytes], nbytes: int, digest: Digest) -> Tensor:
    """The next `nbytes` bytes as they are, and their padding, which only the digest sees.

    Raises:
        CheckpointError: the file ends before.
        RuntimeError: there is no memory.
    """
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    _fill(path, file, memoryview(bytes_of(buffer)), digest)
    _fill(path, file, memoryview(bytearray(padding(nbytes))), digest)
    return buffer


def _fill(path: Path, file: IO[bytes], room: memoryview, digest: Digest) -> None:
    for start in range(0, len(room), _PIECE):
        piece = room[start : start + _PIECE]
        done = 0
        while done < len(piece):
            count = file.readinto(piece[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{path} ends too early")
            done += count
        digest.update(piece)
