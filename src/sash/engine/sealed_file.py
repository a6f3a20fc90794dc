"""One file, whole or not there: a header, tensors, and checksums over both; anything else is refused.

    0   magic, version, bytes of the header, bytes of the data   (`_PRELUDE`, little-endian)
        header: JSON
        blake2b of all that came before, 32 bytes; then zeros to a multiple of 64
        data: tensors in order, each followed by zeros to a multiple of 64
        blake2b of all that came before, 32 bytes

A file is written under a temporary name, flushed to the disk, renamed, and its folder flushed: who is killed while he
writes leaves the file of before. Sizes are held against the file's own before anything is allocated. Checksums tell
torn and damaged files, not forged ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sash.checkpoint.json_object import parse_object
from sash.engine.whole_file import data_size, padding, read_exactly, read_tensor, replace, write_summed
from sash.errors import CheckpointError, DoesNotFitError, UsageError

_PRELUDE = struct.Struct("<8sIIQQ")
_DIGEST = 32
_MAX_HEADER = 256 << 20
_MAX_VALUES = 2_000_000
_DTYPES = {n: getattr(torch, n) for n in ("bfloat16", "float16", "float32", "int8", "int32", "int64", "bool")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        magic: the 8 bytes that it begins with.
        version: that is written, and the only one that is read.
        words: what it is called.
    """

    magic: bytes
    version: int
    words: str


def write(path: Path, kind: Kind, header: dict[str, Any], tensors: Sequence[Tensor]) -> int:
    """Write a file, in the place of one of its kind if there is one; its bytes.

    Raises:
        UsageError: there is something of another kind, which stays as it is.
        OSError: no room, no folder, no permission; what was there stays as it is.
    """
    check_place(path, kind)
    clear(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    return replace(
        path, temporary, lambda file: write_summed(file, _front(kind, header, tensors), tensors, _digest())
    )  # fmt: skip


def check_place(path: Path, kind: Kind) -> None:
    """Refuse a path where `write` would destroy something, or could not write.

    Raises:
        UsageError: there is something that is not a file of this kind.
        OSError: no folder, or no permission.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            os.stat(path.parent)
            raise PermissionError(13, "its folder may not be written to") from None
        return
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is not a regular file, so no {kind.words} is written there: name another")
    with open(path, "rb", buffering=0) as file:
        if found.st_size and file.read(len(kind.magic)) != kind.magic:
            raise UsageError(f"{path} is there and is no {kind.words}: it stays as it is; name another file")


def clear(path: Path) -> None:
    """Remove what processes that are gone, or this one, have left half written of a file."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"([0-9]{1,9})\.tmp")
    for entry in os.listdir(path.parent):
        owner = pattern.fullmatch(entry)
        if owner is not None and not _runs(int(owner[1])):
            with suppress(OSError):
                (path.parent / entry).unlink()


def _runs(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _digest(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=_DIGEST)


def _front(kind: Kind, header: dict[str, Any], tensors: Sequence[Tensor]) -> bytes:
    shapes = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
    text = json.dumps({**header, "tensors": shapes}).encode()
    front = _PRELUDE.pack(kind.magic, kind.version, len(text), 0, data_size(t.nbytes for t in tensors)) + text
    front += _digest(front).digest()
    return front + bytes(padding(len(front)))


def read_header(path: Path, kind: Kind) -> dict[str, Any]:
    """What the header says, checked by the first of the checksums; the data are not looked at.

    Raises:
        CheckpointError: not such a file, or torn or damaged.
        OSError: it cannot be read.
    """
    with _opened(path, kind) as file:
        return _read_front(path, file, kind)[0]


def read(path: Path, kind: Kind) -> tuple[dict[str, Any], list[Tensor]]:
    """The header and the tensors; nothing is returned of a file that is damaged anywhere.

    Raises:
        CheckpointError: not such a file, or torn or damaged.
        DoesNotFitError: there is no memory for it.
        OSError: it cannot be read.
    """
    with _opened(path, kind) as file:
        header, shapes, raw = _read_front(path, file, kind)
        digest, tensors = _digest(raw), []
        for dtype, shape in shapes:
            try:
                data = read_tensor(path, file, prod(shape) * dtype.itemsize, digest)
            except RuntimeError as error:
                raise DoesNotFitError(f"there is no memory for what {path} holds") from error
            tensors.append(data.view(dtype).view(shape))
        if file.read(_DIGEST + 1) != digest.digest():
            raise CheckpointError(f"{path} is damaged: its checksum does not fit")
    return header, tensors


def _opened(path: Path, kind: Kind) -> IO[bytes]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link: name the {kind.words} itself") from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path} is not a regular file, so it is no {kind.words}")
    return os.fdopen(handle, "rb", buffering=0)


Shapes = list[tuple[torch.dtype, tuple[int, ...]]]


def _read_front(path: Path, file: IO[bytes], kind: Kind) -> tuple[dict[str, Any], Shapes, bytes]:
    """The header, types and shapes of the tensors, and all bytes up to where the data begin."""
    size = os.fstat(file.fileno()).st_size
    prelude = file.read(_PRELUDE.size)
    if len(prelude) < _PRELUDE.size or prelude[: len(kind.magic)] != kind.magic:
        raise CheckpointError(f"{path} is no {kind.words}")
    _, version, n_header, idle, n_data = _PRELUDE.unpack(prelude)
    if version != kind.version:
        remedy = "use a newer Sash" if version > kind.version else "it has to be made anew"
        raise CheckpointError(f"{path} is a {kind.words} of version {version}, and this reads {kind.version}: {remedy}")
    stop = _PRELUDE.size + n_header
    start = stop + _DIGEST + padding(stop + _DIGEST)
    if n_header > _MAX_HEADER or idle or start + n_data + _DIGEST != size:
        raise CheckpointError(f"{path} is torn: it has {size} bytes and names {start + n_data + _DIGEST}")
    raw = prelude + read_exactly(file, start - _PRELUDE.size)
    if len(raw) != start or raw[stop : stop + _DIGEST] != _digest(raw[:stop]).digest():
        raise CheckpointError(f"{path} is damaged: the checksum of its header does not fit")
    header = parse_object(raw[_PRELUDE.size : stop], what=str(path), max_values=_MAX_VALUES)
    try:
        shapes = [(_DTYPES[dtype], tuple(shape)) for dtype, shape in header.pop("tensors")]
        if not all(type(number) is int and 0 <= number < 2**48 for _, shape in shapes for number in shape):
            raise ValueError("no shape")
        if data_size(prod(shape) * dtype.itemsize for dtype, shape in shapes) != n_data:
            raise ValueError("other sizes")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} contradicts itself") from error
    return header, shapes, raw
