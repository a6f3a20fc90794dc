"""One file a piece of a row: what it says, how it is written whole or not at all, and how anything else is refused.

A piece holds the keys and values of positions [start, end) of a row (`sash.network.pieces`). Its name is a digest of
its tokens and of the name of the piece before it, and so of all that was read up to its end: whoever reads the same
tokens knows the names of the files that help, and texts that begin alike share the files of their beginning.

    0   magic, version, bytes of the header, token ids, bytes of the data   (`_PRELUDE`, little-endian)
        header: JSON, the label and the description of the state
        token ids: int32
        SHA-256 of all that came before, 32 bytes; then zeros to a multiple of 64
        data: tensors in the order of `RowState.tensors`, each followed by zeros to a multiple of 64
        SHA-256 of all that came before, 32 bytes

A file is written under a temporary name, flushed to the disk, renamed, and its folder flushed: it is there whole or it
is not there. All sizes follow from the first 32 bytes and are held against the file's own before anything else is
read. The first checksum allows a folder to be looked through without reading the data; the second is over all of it.
Checksums tell torn and damaged files, not forged ones: the folder has to belong to whoever runs the server.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sash.checkpoint.json_object import parse_object
from sash.engine.whole_file import data_size, padding, read_exactly, read_tensor, replace, write_summed
from sash.errors import CheckpointError
from sash.network.snapshot import RowState

SUFFIX = ".sash-snapshot"
VERSION = 2

_MAGIC = b"SASHROW\n"
_PRELUDE = struct.Struct("<8sIIQQ")
_DIGEST = 32
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


def write(folder: Path, label: Label, state: RowState, tensors: list[Tensor]) -> int:
    """Write a snapshot; bytes of its file.

    Raises:
        OSError: no room, no folder, no permission; then there is no file, and none of that name was touched.
    """
    path = folder / (label.name + SUFFIX)
    temporary = folder / f".{label.name}.{os.getpid()}.tmp"
    with suppress(FileNotFoundError):
        temporary.unlink()
    front = _front(label, state, tensors)
    return replace(path, temporary, lambda file: write_summed(file, front, tensors, hashlib.sha256()))


def file_size(label: Label, state: RowState, tensors: list[Tensor]) -> int:
    """Bytes that `write` will write."""
    return len(_front(label, state, tensors)) + data_size(tensor.nbytes for tensor in tensors) + _DIGEST


def _front(label: Label, state: RowState, tensors: list[Tensor]) -> bytes:
    header = {
        "fingerprint": label.fingerprint,
        "lane": label.lane,
        "salt": label.salt,
        "parent": label.parent,
        "start": label.start,
        "pins": label.pins,
        "state": state.describe(),
        "tensors": [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors],
    }
    text = json.dumps(header).encode()
    data = data_size(tensor.nbytes for tensor in tensors)
    front = _PRELUDE.pack(_MAGIC, VERSION, len(text), len(label.ids) // 4, data) + text + label.ids
    front += hashlib.sha256(front).digest()
    return front + bytes(padding(len(front)))


@dataclass(frozen=True, slots=True)
class Front:
    """What the first part of a file says.

    Attributes:
        label: what it is a snapshot of.
        described: the state's description.
        tensors: type and shape of each.
        start: where the data begin.
        size: of the file.
    """

    label: Label
    described: dict[str, Any]
    tensors: list[tuple[torch.dtype, tuple[int, ...]]]
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


def read(path: Path, label: Label) -> RowState:
    """The state of a file that must be a snapshot of `label`; nothing is returned of one that is damaged anywhere.

    Raises:
        CheckpointError: it is not that.
        OSError: it cannot be read.
    """
    with _opened(path) as file:
        front, raw = _read_front(path, file)
        if front.label != label:
            raise CheckpointError(f"{path} is a snapshot of something else")
        digest, tensors = hashlib.sha256(raw), []
        for dtype, shape in front.tensors:
            data = read_tensor(path, file, prod(shape) * dtype.itemsize, digest)
            tensors.append(data.view(dtype).view(shape))
        if file.read(_DIGEST + 1) != digest.digest():
            raise CheckpointError(f"{path} is damaged: its checksum does not fit")
    state = RowState.rebuild(front.described, tensors)
    if state.length != label.length:
        raise CheckpointError(f"{path} holds a state of {state.length} tokens, and names {label.length}")
    return state


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
    if n_header > _MAX_HEADER or start + n_data + _DIGEST != size:
        raise CheckpointError(f"{path} is torn: it has {size} bytes and names {start + n_data + _DIGEST}")
    raw = prelude + read_exactly(file, start - _PRELUDE.size)
    if len(raw) != start or raw[stop : stop + _DIGEST] != hashlib.sha256(raw[:stop]).digest():
        raise CheckpointError(f"{path} is damaged: the checksum of its header does not fit")
    text, ids = raw[_PRELUDE.size : stop - 4 * n_ids], raw[stop - 4 * n_ids : stop]
    header = parse_object(text, what=str(path), max_values=_MAX_VALUES)
    front = Front(*_typed(path, header, ids), start, size)
    sizes = (prod(shape) * dtype.itemsize for dtype, shape in front.tensors)
    if data_size(sizes) != n_data or path.name != front.label.name + SUFFIX:
        raise CheckpointError(f"{path} contradicts itself")
    return front, raw


def _typed(
    path: Path, header: dict[str, Any], ids: bytes
) -> tuple[Label, dict[str, Any], list[tuple[torch.dtype, tuple[int, ...]]]]:
    """A header's parts, each of the type that it must have."""
    try:
        names = {key: header[key] for key in ("fingerprint", "lane", "salt", "parent")}
        start = header["start"]
        pins = tuple((first, end) for first, end in header["pins"])
        tensors = [(_DTYPES[dtype], tuple(shape)) for dtype, shape in header["tensors"]]
        numbers = [start] + [number for pair in pins for number in pair] + [n for _, shape in tensors for n in shape]
        described = header["state"]
        typed = all(type(name) is str for name in names.values()) and isinstance(described, dict)
        if not typed or not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise ValueError("another type")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a header that is none of a snapshot's") from error
    return Label(start=start, pins=pins, ids=ids, **names), described, tensors
