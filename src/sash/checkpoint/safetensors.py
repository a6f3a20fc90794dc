"""The safetensors format: eight bytes of header length, a JSON header, then the tensors without gaps.

Format: the README of the safetensors project. Whatever is accepted here, the reference library accepts too; a test
holds the two against each other. What is refused beyond it: headers over 16 MiB (the largest of real models take 1 to
2 MiB), duplicate keys, keys that the format does not know, and number formats that Sash has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sash.checkpoint.binary_file import BinaryFile
from sash.checkpoint.json_object import parse_object
from sash.checkpoint.stored import StoredTensor, bounded_product, quoted
from sash.errors import CheckpointError, UnsupportedError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 65_536

# Bytes a value, for each number format that can be read.
ITEM_SIZES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FOREIGN = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4"})
_FOREIGN_INTEGERS = frozenset({"U16", "U32", "U64", "C64"})
_KEYS = frozenset({"dtype", "shape", "data_offsets"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """A safetensors file whose header has been read and checked.

    Attributes:
        file: where the tensors are read from.
        tensors: by name, in the order of their bytes.
        metadata: the free-form strings of `__metadata__`.
    """

    file: BinaryFile
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Open a file and check its header against its size.

        Raises:
            CheckpointError: no such file, or it is truncated, malformed or contradicts itself.
            UnsupportedError: a tensor in a number format that Sash does not read.
        """
        file = BinaryFile.open(path)
        try:
            header, start = _read_header(file)
            metadata = _metadata(header.pop("__metadata__", {}), path)
            if len(header) > MAX_TENSORS:
                raise CheckpointError(f"{path} lists {len(header)} tensors; at most {MAX_TENSORS} are read")
            entries = [_tensor(name, entry, start, path) for name, entry in header.items()]
            _check_layout(entries, start, file)
        except BaseException:
            file.close()
            raise
        entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
        return cls(file=file, tensors={entry.name: entry for entry in entries}, metadata=metadata)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def _read_header(file: BinaryFile) -> tuple[dict[str, Any], int]:
    """The header as JSON, and the offset of the first byte behind it."""
    path = file.path
    if file.size < 8:
        raise CheckpointError(f"{path} has {file.size} bytes and is no safetensors file: download it again")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > file.size - 8:
        raise CheckpointError(
            f"{path} claims a header of {length} bytes and has {file.size}: it is truncated or no safetensors file;"
            " download it again"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    data = file.read(8, length)
    if not data.startswith(b"{"):
        raise CheckpointError(f"{path} is no safetensors file: its header does not begin with '{{'")
    # Seven values a tensor beside its dimensions, of which four is the most that models use.
    return parse_object(data, what=f"the header of {path}", max_values=12 * MAX_TENSORS), 8 + length


def _metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"__metadata__ of {path} is not a map of strings")
    return value


def _tensor(name: str, entry: object, start: int, path: Path) -> StoredTensor:
    """One entry of the header, checked by itself."""
    where = f"tensor {quoted(name)} of {path}"
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise CheckpointError(f"{where} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape) or not _is_sizes(span) or len(span) != 2:
        raise CheckpointError(f"{where} has a shape or data_offsets that are not lists of sizes")
    if not isinstance(dtype, str):
        raise CheckpointError(f"{where} has a dtype that is not a string")
    if dtype in _FOREIGN or dtype in _FOREIGN_INTEGERS:
        raise UnsupportedError(f"{where} is stored as {dtype}, which Sash does not read: convert it to BF16 or F32")
    if dtype not in ITEM_SIZES:
        raise CheckpointError(f"{where} has an unknown dtype {quoted(dtype)}")
    n_elements = bounded_product(tuple(shape))
    if n_elements is None or n_elements * ITEM_SIZES[dtype] != span[1] - span[0]:
        raise CheckpointError(f"{where} has a shape and dtype that do not make up its {span[1] - span[0]} bytes")
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), offset=start + span[0], nbytes=span[1] - span[0])


def _is_sizes(value: object) -> bool:
    """Whether a JSON value is a list of integers from 0 to 2^63 - 1; true and 1.0 are no integers."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_layout(entries: list[StoredTensor], start: int, file: BinaryFile) -> None:
    """Tensors follow each other without hole or overlap, from the header's end to the file's."""
    expected = start
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != expected:
            kind = "overlaps the one before it" if entry.offset < expected else "leaves a hole before it"
            raise CheckpointError(f"tensor {quoted(entry.name)} of {file.path} {kind}")
        expected = entry.end
    if expected != file.size:
        raise CheckpointError(
            f"the tensors of {file.path} end at byte {expected} and the file at {file.size}: download it again"
        )
