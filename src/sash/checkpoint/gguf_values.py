"""Numbers, strings and arrays of a GGUF header, from front to back, each checked against what is left of the file."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from sash.checkpoint.binary_file import BinaryFile
from sash.errors import CheckpointError

MAX_HEADER_BYTES = 128 * 2**20
MAX_ARRAY_VALUES = 2**21  # In all arrays together; a vocabulary of 262,144 with scores and types takes 786,432.

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, struct.Struct] = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "B",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class Cursor:
    """Reads the header from front to back; the file is read in growing pieces, so a header costs its own size."""

    def __init__(self, file: BinaryFile) -> None:
        self.file = file
        self.position = 0
        self.array_values = 0
        self._data = b""

    @property
    def remaining(self) -> int:
        """Bytes of the file that are not read yet."""
        return self.file.size - self.position

    def broken(self, problem: str) -> CheckpointError:
        """An error that names the file."""
        return CheckpointError(f"{self.file.path} is a broken GGUF file: {problem}; download it again")

    def through(self, end: int) -> bytes:
        """The header's bytes from its beginning, at least to offset `end`."""
        if end > len(self._data):
            if end > self.file.size:
                raise self.broken(f"its header runs past its end at byte {self.file.size}")
            if end > MAX_HEADER_BYTES:
                raise self.broken(f"its header is larger than {MAX_HEADER_BYTES} bytes")
            target = min(self.file.size, MAX_HEADER_BYTES, max(2 * len(self._data), end, 2**16))
            self._data += self.file.read(len(self._data), target - len(self._data))
        return self._data

    def unpack(self, layout: struct.Struct) -> Any:
        """The next number."""
        start = self.position
        data = self.through(start + layout.size)
        self.position = start + layout.size
        return layout.unpack_from(data, start)[0]

    def u32(self) -> int:
        """The next unsigned integer of 32 bits."""
        return int(self.unpack(U32))

    def u64(self) -> int:
        """The next unsigned integer of 64 bits."""
        return int(self.unpack(U64))

    def string(self, what: str, max_bytes: int = MAX_HEADER_BYTES) -> str:
        """The next string: a length of 64 bits, then UTF-8."""
        length = self.u64()
        if length > min(self.remaining, max_bytes):
            raise self.broken(
                f"{what} claims {length} bytes, and {min(self.remaining, max_bytes)} is the most it can have"
            )
        start = self.position
        data = self.through(start + length)
        self.position = start + length
        try:
            return data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings; a tight loop, for vocabularies of hundreds of thousands."""
        result = []
        position, size = self.position, self.file.size
        data, filled, length_at = self._data, len(self._data), U64.unpack_from
        try:
            for _ in range(count):
                start = position + 8
                if start > filled:
                    data = self.through(start)
                    filled = len(data)
                position = start + length_at(data, start - 8)[0]
                if position > filled:
                    if position > size:
                        raise self.broken(f"a string of {what} runs past the end of the file")
                    data = self.through(position)
                    filled = len(data)
                result.append(data[start:position].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise self.broken(f"a string of {what} is not UTF-8") from error
        self.position = position
        return result

    def value(self, kind: int, what: str) -> Any:
        """The next metadata value of a type: a scalar, a string or a flat array."""
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what)
        if kind not in _SCALARS:
            raise self.broken(f"{what} has the unknown type {kind}")
        number = self.unpack(_SCALARS[kind])
        return self._booleans((number,), what)[0] if kind == _BOOL else number

    def _array(self, what: str) -> list[Any]:
        kind, count = self.u32(), self.u64()
        if kind == _ARRAY:
            raise self.broken(f"{what} is an array of arrays")
        if kind != _STRING and kind not in _SCALARS:
            raise self.broken(f"{what} is an array of the unknown type {kind}")
        smallest = 8 if kind == _STRING else _SCALARS[kind].size
        if count > self.remaining // smallest:
            raise self.broken(f"{what} claims {count} values, more than the file has room for")
        self.array_values += count
        if self.array_values > MAX_ARRAY_VALUES:
            raise self.broken(f"its arrays claim more than {MAX_ARRAY_VALUES} values")
        if kind == _STRING:
            return self.strings(count, what)
        start, self.position = self.position, self.position + count * smallest
        layout = f"<{count}{_SCALARS[kind].format[1:]}"
        numbers = struct.unpack_from(layout, self.through(self.position), start)
        return self._booleans(numbers, what) if kind == _BOOL else list(numbers)

    def _booleans(self, numbers: tuple[int, ...], what: str) -> list[bool]:
        if any(number > 1 for number in numbers):
            raise self.broken(f"{what} has a truth value that is neither 0 nor 1")
        return [number == 1 for number in numbers]
