"""One file a piece of a row: what it says, how it is written whole or not at all, and how anything else is refused.

A piece holds the keys and values of positions [start, end) of a row (`sash.network.pieces`). Its name is a digest of
its tokens and of the name of the piece before it, and so of all that was read up to its end: whoever reads the same
tokens knows the names of the files that help, and texts that begin alike share the files of their beginning.

    0   magic, version, bytes of the header, token ids, bytes of the data   (`_PRELUDE`, little-endian)
        header: JSON, the label and the description of the state
        token ids: int32
        SHA-256 of all that came before, 32 bytes; then zeros to a multiple of 64
        data, one part a store of the cache:
            tensors in the order of `RowState.tensors_of`, each followed by zeros to a multiple of 64
            SHA-256 of the front, the store's number and the part, 32 bytes; 32 zeros

A file is written under a temporary name, flushed to the disk, renamed, and its folder flushed: it is there whole or it
is not there. All sizes follow from the first 32 bytes and are held against the file's own before anything else is
read. The first checksum allows a folder to be looked through without reading the data. Each part has its own, so that
whoever goes on far behind a piece reads what layers without a bound hold of it, and not what windows have left.
Checksums tell torn and damaged files, not forged ones: the folder has to belong to whoever runs the server.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sash.checkpoint.json_object import parse_object
from sash.engine.whole_file import data_size, padding, put, put_tensors, read_exactly, read_tensor, replace
from sash.errors import CheckpointError
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState

SUFFIX = ".sash-snapshot"
VERSION = 3

_MAGIC = b"SASHROW\n"
_PRELUDE = struct.Struct("<8sIIQQ")
_DIGEST = 32
_AFTER = bytes(32)
"""What follows the digest of a part."""

_MAX_HEADER = 4 << 20
_MAX_VALUES = 100_000
_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "int8", "int64", "bool")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a piece is of; two pieces of one label are the same.

    Attributes:
        fingerprint: the network, and what computes it (`sash.network.fingerprint`).
        lane: which of the network's windows and pins.
        salt: hex; of whoever may use it.
        parent: name of the piece before it; `root_name` for the first.
        start: position of its first token.
        pins: [first, end) of each stretch of its positions that are flagged as pins.
        ids: its tokens, int32.
    """

    fingerprint: str
    lane: str
    salt: str
    parent: str
    start: int
    pins: tuple[tuple[int, int], ...]
    ids: bytes

    @property
    def name(self) -> str:
        """A name for it, of 40 hexadecimal digits; nobody can tell the tokens by it."""
        return next_name(self.parent, self.ids, self.pins)

    @property
    def length(self) -> int:
        """Tokens read at its end."""
        return self.start + len(self.ids) // 4


def root_name(fingerprint: str, lane: str, salt: str) -> str:
    """The parent of first pieces."""
    return hashlib.blake2b(json.dumps([fingerprint, lane, salt]).encode(), digest_size=20).hexdigest()


def next_name(parent: str, ids: bytes, pins: tuple[tuple[int, int], ...]) -> str:
    """The name of a piece that follows another."""
    digest = hashlib.blake2b(f"{parent} {json.dumps(pins)} ".encode(), digest_size=20)
    digest.update(ids)
    return digest.hexdigest()


def write(folder: Path, label: Label, state: RowState, tensors: Sequence[Sequence[Tensor]]) -> int:
    """Write a snapshot; bytes of its file. `tensors` are those of each store.

    Raises:
        OSError: no room, no folder, no permission; then there is no file, and none of that name was touched.
    """
    path = folder / (label.name + SUFFIX)
    temporary = folder / f".{label.name}.{os.getpid()}.tmp"
    with suppress(FileNotFoundError):
        temporary.unlink()
    front = _front(label, state, tensors)

    def fill(file: IO[bytes]) -> int:
        size = put(file, front, hashlib.sha256())
        for store, part in enumerate(tensors):
            digest = _digest_of(front, store)
            size += put_tensors(file, part, digest)
            size += put(file, digest.digest() + _AFTER, digest)
        return size

    return replace(path, temporary, fill)


def file_size(label: Label, state: RowState, tensors: Sequence[Sequence[Tensor]]) -> int:
    """Bytes that `write` will write."""
    return len(_front(label, state, tensors)) + _data_size(_nbytes(part) for part in tensors)


def _nbytes(tensors: Iterable[Tensor]) -> list[int]:
    return [tensor.nbytes for tensor in tensors]


def _part_size(sizes: Iterable[int]) -> int:
    """Bytes of a part whose tensors have these sizes."""
    return data_size(sizes) + _DIGEST + len(_AFTER)


def _data_size(parts: Iterable[Iterable[int]]) -> int:
    return sum(_part_size(sizes) for sizes in parts)


def _digest_of(front: bytes, store: int) -> Any:
    """What sums up a part of the file that begins with `front`, and of no other."""
    return hashlib.sha256(hashlib.sha256(front).digest() + store.to_bytes(4, "little"))


def _front(label: Label, state: RowState, tensors: Sequence[Sequence[Tensor]]) -> bytes:
    header = {
        "fingerprint": label.fingerprint,
        "lane": label.lane,
        "salt": label.salt,
        "parent": label.parent,
        "start": label.start,
        "pins": label.pins,
        "state": state.describe(),
        "tensors": [[[str(t.dtype).removeprefix("torch."), list(t.shape)] for t in part] for part in tensors],
    }
    text = json.dumps(header).encode()
    data = _data_size(_nbytes(part) for part in tensors)
    front = _PRELUDE.pack(_MAGIC, VERSION, len(text), len(label.ids) // 4, data) + text + label.ids
    front += hashlib.sha256(front).digest()
    return front + bytes(padding(len(front)))


Shapes = list[tuple[torch.dtype, tuple[int, ...]]]
"""Types and shapes of the tensors of a store."""


@dataclass(frozen=True, slots=True)
class Front:
    """What the first part of a file says.

    Attributes:
        label: what it is a snapshot of.
        described: the state's description.
        tensors: type and shape of each, of each store.
        start: where the data begin.
        size: of the file.
    """

    label: Label
    described: dict[str, Any]
    tensors: list[Shapes]
    start: int
    size: int


def read_label(path: Path) -> Front:
    """What a file is a snapshot of, checked by the first of its checksums.

    Raises:
        CheckpointError: it is not a snapshot of this version, is torn or damaged, or has another's name.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        return _read_front(path, file)[0]


def read(path: Path, label: Label, stores: Sequence[int] | None = None) -> dict[int, StoreState]:
    """What some stores, by default all, hold of the piece of a file, which must be a snapshot of `label`.

    Nothing is returned of a file whose front or any of those parts is damaged; the other parts are not looked at.

    Raises:
        CheckpointError: it is not that.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        front, raw = _read_front(path, file)
        if front.label != label:
            raise CheckpointError(f"{path} is a snapshot of something else")
        if front.described.get("length") != label.length:
            raise CheckpointError(f"{path} describes a state of another length than the {label.length} tokens it names")
        return {store: _read_part(path, file, front, raw, store) for store in stores or range(len(front.tensors))}


def _read_part(path: Path, file: IO[bytes], front: Front, raw: bytes, store: int) -> StoreState:
    if store >= len(front.tensors):
        raise CheckpointError(f"{path} has {len(front.tensors)} stores, and number {store} is needed")
    file.seek(front.start + _data_size(map(_sizes, front.tensors[:store])))
    digest, tensors = _digest_of(raw, store), []
    for dtype, shape in front.tensors[store]:
        data = read_tensor(path, file, prod(shape) * dtype.itemsize, digest)
        tensors.append(data.view(dtype).view(shape))
    if read_exactly(file, _DIGEST + len(_AFTER)) != digest.digest() + _AFTER:
        raise CheckpointError(f"{path} is damaged: a checksum does not fit")
    return RowState.rebuild_store(front.described, store, tensors)


def _sizes(shapes: Shapes) -> list[int]:
    return [prod(shape) * dtype.itemsize for dtype, shape in shapes]


def _opened(path: Path) -> IO[bytes]:
    file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise CheckpointError(f"{path} is not a regular file")
    return file


def _read_front(path: Path, file: IO[bytes]) -> tuple[Front, bytes]:
    """The first part, and its bytes up to where the data begin."""
    size = os.fstat(file.fileno()).st_size
    prelude = file.read(_PRELUDE.size)
    if len(prelude) < _PRELUDE.size or prelude[: len(_MAGIC)] != _MAGIC:
        raise CheckpointError(f"{path} is not a snapshot")
    _, version, n_header, n_ids, n_data = _PRELUDE.unpack(prelude)
    if version != VERSION:
        raise CheckpointError(f"{path} is a snapshot of version {version}, and this reads {VERSION}")
    stop = _PRELUDE.size + n_header + 4 * n_ids
    start = stop + _DIGEST + padding(stop + _DIGEST)
    if n_header > _MAX_HEADER or start + n_data != size:
        raise CheckpointError(f"{path} is torn: it has {size} bytes and names {start + n_data}")
    raw = prelude + read_exactly(file, start - _PRELUDE.size)
    if len(raw) != start or raw[stop : stop + _DIGEST] != hashlib.sha256(raw[:stop]).digest():
        raise CheckpointError(f"{path} is damaged: the checksum of its header does not fit")
    text, ids = raw[_PRELUDE.size : stop - 4 * n_ids], raw[stop - 4 * n_ids : stop]
    header = parse_object(text, what=str(path), max_values=_MAX_VALUES)
    front = Front(*_typed(path, header, ids), start, size)
    if _data_size(map(_sizes, front.tensors)) != n_data or path.name != front.label.name + SUFFIX:
        raise CheckpointError(f"{path} contradicts itself")
    return front, raw


def _typed(path: Path, header: dict[str, Any], ids: bytes) -> tuple[Label, dict[str, Any], list[Shapes]]:
    """A header's parts, each of the type that it must have."""
    try:
        names = {key: header[key] for key in ("fingerprint", "lane", "salt", "parent")}
        start = header["start"]
        pins = tuple((first, end) for first, end in header["pins"])
        tensors = [[(_DTYPES[dtype], tuple(shape)) for dtype, shape in part] for part in header["tensors"]]
        numbers = [start] + [number for pair in pins for number in pair]
        numbers += [n for part in tensors for _, shape in part for n in shape]
        described = header["state"]
        typed = all(type(name) is str for name in names.values()) and isinstance(described, dict)
        if not typed or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise ValueError("another type")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a header that is none of a snapshot's") from error
    return Label(start=start, pins=pins, ids=ids, **names), described, tensors
