"""The GGUF format, versions 2 and 3, little-endian: metadata and the table of tensors.

Format: ggml's docs/gguf.md. Nothing is believed before it is checked: every count and length against the bytes that
are left of the file, every tensor against its end. Needs no torch. Stricter than the reference reader where lies could
hide: no holes between tensors, no bytes behind the last one, no zero dimensions, no nested arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sash.checkpoint.binary_file import BinaryFile
from sash.checkpoint.ggml_types import GGML_TYPES, RETIRED
from sash.checkpoint.gguf_values import U32, U64, Cursor
from sash.checkpoint.stored import StoredTensor, bounded_product, quoted
from sash.errors import CheckpointError, UnsupportedError

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 1_024
MAX_ALIGNMENT = 65_536
DEFAULT_ALIGNMENT = 32

_UINT32 = 4
_KEYS_BEGIN = 24  # Behind the magic, the version, and how many tensors and keys there are.
_OLD_MAGICS = frozenset({b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggmf", b"ggjt", b"ggla"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A GGUF file whose metadata and tensor table have been read and checked.

    Attributes:
        file: where the tensors are read from.
        version: 2 or 3.
        metadata: by key: bool, int, float, str, or a list of one of these.
        tensors: by name, in the file's order; shapes in torch's order, that is reversed from the file's.
        alignment: what offsets of tensors are multiples of, in bytes.
        metadata_end: offset of the first byte behind the metadata.
    """

    file: BinaryFile
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    alignment: int
    metadata_end: int

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Open a file, and check all it says about itself against its size.

        Raises:
            CheckpointError: no such file, or it is truncated, malformed or contradicts itself.
            UnsupportedError: version 1, big-endian, a part of a split model, or a storage type that ggml gave up.
        """
        file = BinaryFile.open(path)
        try:
            return _parse(cls, file)
        except BaseException:
            file.close()
            raise

    def without_tensors(self) -> bytes:
        """A GGUF file of this one's metadata and no tensors: it holds the tokenizer and the licence, for example."""
        keys = self.file.read(_KEYS_BEGIN, self.metadata_end - _KEYS_BEGIN)
        head = b"GGUF" + U32.pack(self.version) + U64.pack(0) + U64.pack(len(self.metadata)) + keys
        return head + bytes(_aligned(len(head), self.alignment) - len(head))

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def _parse(cls: type[GgufFile], file: BinaryFile) -> GgufFile:
    cursor = Cursor(file)
    version = _read_version(cursor)
    n_tensors, n_keys = cursor.u64(), cursor.u64()
    # A key takes 13 bytes or more (length, type, value); a tensor's entry 32 (length, dimensions, type, offset).
    if n_keys > min(cursor.remaining // 13, MAX_KEYS):
        raise cursor.broken(f"it claims {n_keys} metadata keys, more than it has room for")
    if n_tensors > min(cursor.remaining // 32, MAX_TENSORS):
        raise cursor.broken(f"it claims {n_tensors} tensors, more than it has room for")
    metadata, alignment = _read_metadata(cursor, n_keys)
    metadata_end = cursor.position
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise UnsupportedError(
            f"{file.path} is one of {parts} parts of a model: join them with llama-gguf-split --merge first"
        )
    entries = [_read_entry(cursor, alignment) for _ in range(n_tensors)]
    tensors = _place(cursor, entries, alignment)
    return cls(
        file=file,
        version=version,
        metadata=metadata,
        tensors=tensors,
        alignment=alignment,
        metadata_end=metadata_end,
    )


def _read_version(cursor: Cursor) -> int:
    path = cursor.file.path
    magic = cursor.through(4)[:4] if cursor.file.size >= 4 else b""
    if magic in _OLD_MAGICS:
        raise UnsupportedError(f"{path} is in a format older than GGUF: download the model as GGUF")
    if magic != b"GGUF":
        raise CheckpointError(f"{path} is no GGUF file: it does not begin with the letters GGUF")
    cursor.position = 4
    version = cursor.u32()
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(f"{path} is a big-endian GGUF file: download the little-endian one")
    if version not in (2, 3):
        raise UnsupportedError(f"{path} is GGUF version {version}; versions 2 and 3 are read: download a current file")
    return version


def _read_metadata(cursor: Cursor, n_keys: int) -> tuple[dict[str, Any], int]:
    """All keys and values, and the alignment among them."""
    metadata: dict[str, Any] = {}
    alignment = DEFAULT_ALIGNMENT
    for _ in range(n_keys):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if not key:
            raise cursor.broken("a metadata key is empty")
        if key in metadata:
            raise cursor.broken(f"the key {quoted(key)} appears twice")
        kind = cursor.u32()
        metadata[key] = cursor.value(kind, f"the value of {quoted(key)}")
        if key == "general.alignment":
            alignment = metadata[key]
            if kind != _UINT32 or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
                raise cursor.broken(f"its alignment is no power of two of at most {MAX_ALIGNMENT}")
    return metadata, alignment


def _read_entry(cursor: Cursor, alignment: int) -> StoredTensor:
    """One line of the tensor table; `offset` still counts from the beginning of the data."""
    name = cursor.string("a tensor's name", MAX_NAME_BYTES)
    where = f"tensor {quoted(name)}"
    n_dims = cursor.u32()
    if not 1 <= n_dims <= 4:
        raise cursor.broken(f"{where} has {n_dims} dimensions, not 1 to 4")
    dims = tuple(cursor.u64() for _ in range(n_dims))
    number, offset = cursor.u32(), cursor.u64()
    if number in RETIRED:
        raise UnsupportedError(
            f"{where} of {cursor.file.path} is stored as {RETIRED[number]}, which ggml gave up: "
            "download another quantisation"
        )
    if number not in GGML_TYPES:
        raise cursor.broken(f"{where} has the unknown storage type {number}")
    kind = GGML_TYPES[number]
    n_elements = bounded_product(dims)
    if not n_elements:
        raise cursor.broken(f"{where} has a dimension of zero, or too many values: {list(dims)}")
    if dims[0] % kind.block:
        raise cursor.broken(f"{where} has rows of {dims[0]} values, no multiple of the {kind.block} of {kind.name}")
    if offset % alignment:
        raise cursor.broken(f"{where} begins at {offset}, no multiple of the alignment of {alignment}")
    nbytes = n_elements // kind.block * kind.nbytes
    return StoredTensor(name=name, dtype=kind.name, shape=dims[::-1], offset=offset, nbytes=nbytes)


def _place(cursor: Cursor, entries: list[StoredTensor], alignment: int) -> dict[str, StoredTensor]:
    """Turn offsets into positions in the file; check that the tensors tile its data and end where it ends."""
    start = _aligned(cursor.position, alignment)
    placed: dict[str, StoredTensor] = {}
    for entry in entries:
        if entry.name in placed:
            raise cursor.broken(f"tensor {quoted(entry.name)} appears twice")
        placed[entry.name] = StoredTensor(
            name=entry.name, dtype=entry.dtype, shape=entry.shape, offset=start + entry.offset, nbytes=entry.nbytes
        )
    end = start
    for entry in sorted(placed.values(), key=lambda entry: entry.offset):
        expected = _aligned(end - start, alignment) + start
        if entry.offset != expected:
            kind = "overlaps the one before it" if entry.offset < end else "does not follow the one before it"
            raise cursor.broken(f"tensor {quoted(entry.name)} {kind}")
        end = entry.end
        if end > cursor.file.size:
            raise cursor.broken(f"tensor {quoted(entry.name)} ends at byte {end}, and the file at {cursor.file.size}")
    if placed and cursor.file.size > _aligned(end - start, alignment) + start:
        raise cursor.broken(f"its tensors end at byte {end}, and the file at {cursor.file.size}")
    return placed


def _aligned(offset: int, alignment: int) -> int:
    """The next multiple of `alignment`, a power of two.

    >>> _aligned(0, 32), _aligned(1, 32), _aligned(32, 32)
    (0, 32, 32)
    """
    return (offset + alignment - 1) & -alignment
