"""Writers of small checkpoint files that can be made to lie, and the real ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sash.checkpoint.gguf_values import MAX_ARRAY_VALUES

HUGE = 2**60
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


class Gguf:
    """Builds the bytes of a GGUF file piece by piece; every claim can be overridden."""

    @staticmethod
    def string(text: str | bytes, length: int | None = None) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return struct.pack("<Q", len(data) if length is None else length) + data

    @classmethod
    def value(cls, kind: int, value: Any) -> bytes:
        if kind == 8:
            return cls.string(value)
        if kind == 9:
            item, values = value
            return struct.pack("<IQ", item, len(values)) + b"".join(cls.value(item, one) for one in values)
        return struct.pack("<" + SCALARS[kind], value)

    @classmethod
    def pair(cls, key: str | bytes, kind: int, value: Any) -> bytes:
        return cls.string(key) + struct.pack("<I", kind) + cls.value(kind, value)

    @classmethod
    def entry(cls, name: str, dims: Sequence[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
        """A line of the tensor table; `dims` in the file's order, the fastest first."""
        count = len(dims) if n_dims is None else n_dims
        return (
            cls.string(name) + struct.pack("<I", count) + struct.pack(f"<{len(dims)}Q", *dims)
            + struct.pack("<IQ", kind, offset)
        )  # fmt: skip

    @staticmethod
    def file(
        pairs: Sequence[bytes] = (),
        entries: Sequence[bytes] = (),
        data: bytes = b"",
        *,
        magic: bytes = b"GGUF",
        version: int = 3,
        n_pairs: int | None = None,
        n_entries: int | None = None,
        alignment: int = 32,
    ) -> bytes:
        head = magic + struct.pack(
            "<IQQ",
            version,
            len(entries) if n_entries is None else n_entries,
            len(pairs) if n_pairs is None else n_pairs,
        )
        head += b"".join(pairs) + b"".join(entries)
        return head + bytes(-len(head) % alignment) + data

    @classmethod
    def small(cls) -> bytes:
        """A whole file of a bit over 1 KiB: every kind of metadata, a plain and two quantised tensors."""
        pairs = [
            cls.pair("general.architecture", 8, "llama"),
            cls.pair("general.alignment", 4, 32),
            cls.pair("llama.block_count", 4, 1),
            cls.pair("llama.rope.freq_base", 6, 10000.0),
            cls.pair("tokenizer.ggml.add_bos_token", 7, 1),
            cls.pair("tokenizer.ggml.tokens", 9, (8, ["a", "bé", "", "<s>"])),
            cls.pair("tokenizer.ggml.scores", 9, (6, [0.0, -1.0, -2.0, -3.0])),
            cls.pair("tokenizer.ggml.token_type", 9, (5, [1, 1, 1, 3])),
        ]
        entries = [
            cls.entry("token_embd.weight", [32, 4], 8, 0),
            cls.entry("output_norm.weight", [6], 0, 160),
            cls.entry("output.weight", [256, 1], 12, 192),
        ]
        data = bytes(range(136)) + bytes(24) + struct.pack("<6f", *range(6)) + bytes(8) + bytes(range(144)) + bytes(16)
        return cls.file(pairs, entries, data)


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file of a header (JSON value, or raw bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor_entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def bad_ggufs() -> dict[str, tuple[bytes, str]]:
    """One file for each way to lie that is known from attacks on other readers, and a word of the answer."""
    pair, entry, file, text = Gguf.pair, Gguf.entry, Gguf.file, Gguf.string

    def raw_pair(key: str, kind: int, payload: bytes) -> bytes:
        return text(key) + struct.pack("<I", kind) + payload

    one = [entry("a", [8], 0, 0)]
    data = bytes(32)
    return {
        "empty": (b"", "no GGUF file"),
        "magic": (file(magic=b"GGUX"), "no GGUF file"),
        "header only half": (b"GGUF\x03\x00\x00\x00\x01", "past its end"),
        "key count": (file(n_pairs=2**63), "metadata keys"),
        "key count, one more": (file([pair("a", 8, "b")], n_pairs=2), "key is empty"),
        "tensor count": (file(n_entries=2**63), "tensors"),
        "key length": (file([text("a", HUGE) + bytes(40)]), "claims"),
        "key over 64 KiB": (file([pair("k" * 65_536, 0, 1)]), "claims 65536 bytes"),
        "key not UTF-8": (file([pair(b"\xff\xfe", 0, 1)]), "not UTF-8"),
        "key twice": (file([pair("a", 0, 1), pair("a", 0, 2)]), "twice"),
        "value type": (file([raw_pair("a", 13, bytes(16))]), "unknown type 13"),
        "value length": (file([raw_pair("a", 8, text("b", HUGE) + bytes(40))]), "claims"),
        "value not UTF-8": (file([pair("a", 8, b"\xc3")]), "not UTF-8"),
        "truth value": (file([pair("a", 7, 2)]), "neither 0 nor 1"),
        "truth values": (file([pair("a", 9, (7, [0, 3]))]), "neither 0 nor 1"),
        "array of arrays": (file([raw_pair("a", 9, struct.pack("<IQ", 9, 1) + bytes(40))]), "array of arrays"),
        "array type": (file([raw_pair("a", 9, struct.pack("<IQ", 77, 1) + bytes(40))]), "unknown type 77"),
        "array count": (file([raw_pair("a", 9, struct.pack("<IQ", 0, HUGE) + bytes(40))]), "has room for"),
        "string array count": (file([raw_pair("a", 9, struct.pack("<IQ", 8, HUGE) + bytes(40))]), "has room for"),
        "string in array": (
            file([raw_pair("a", 9, struct.pack("<IQ", 8, 1) + text("b", HUGE) + bytes(40))]), "past the end"),
        "string in array wraps": (
            file([raw_pair("a", 9, struct.pack("<IQ", 8, 2) + text("", 2**64 - 8) + bytes(40))]), "past the end"),
        "string in array not UTF-8": (file([pair("a", 9, (8, ["b", b"\xff"]))]), "not UTF-8"),
        "arrays too long": (file([pair("a", 9, (0, [0] * (MAX_ARRAY_VALUES + 1)))]), "arrays claim more"),
        "alignment zero": (file([pair("general.alignment", 4, 0)]), "power of two"),
        "alignment odd": (file([pair("general.alignment", 4, 48)]), "power of two"),
        "alignment huge": (file([pair("general.alignment", 4, 2**31)]), "power of two"),
        "alignment type": (file([pair("general.alignment", 10, 32)]), "power of two"),
        "alignment text": (file([pair("general.alignment", 8, "32")]), "power of two"),
        "name length": (file([], [text("a", HUGE) + bytes(64)]), "claims"),
        "name over 1 KiB": (file([], [entry("n" * 1025, [8])], data), "claims 1025 bytes"),
        "name twice": (file([], [entry("a", [8]), entry("a", [8], 0, 32)], bytes(64)), "twice"),
        "no dimensions": (file([], [entry("a", [])], data), "0 dimensions"),
        "five dimensions": (file([], [entry("a", [1, 1, 1, 1, 8])], data), "5 dimensions"),
        "dimensions": (file([], [entry("a", [8], n_dims=2**32 - 1)], data), "4294967295 dimensions"),
        "zero dimension": (file([], [entry("a", [8, 0])], data), "dimension of zero"),
        "dimension": (file([], [entry("a", [2**63])], data), "too many values"),
        "product wraps to 0": (file([], [entry("a", [2**32, 2**32])], data), "too many values"),
        "product wraps to 8": (file([], [entry("a", [2**61 + 1, 8])], data), "too many values"),
        "tensor type": (file([], [entry("a", [8], 999)], data), "unknown storage type 999"),
        "row not of blocks": (file([], [entry("a", [33], 8)], bytes(96)), "no multiple of the 32"),
        "offset not aligned": (file([], [entry("a", [8], 0, 4)], bytes(64)), "no multiple of the alignment"),
        "offset": (file([], [entry("a", [8], 0, 2**63)], data), "does not follow"),
        "hole at the beginning": (file([], [entry("a", [8], 0, 32)], bytes(64)), "does not follow"),
        "hole": (file([], [entry("a", [8]), entry("b", [8], 0, 64)], bytes(96)), "does not follow"),
        "same place": (file([], [entry("a", [8]), entry("b", [8], 0, 0)], data), "overlaps"),
        "overlap": (file([], [entry("a", [16]), entry("b", [8], 0, 32)], bytes(64)), "overlaps"),
        "shape too large": (file([], [entry("a", [9])], data), "and the file at"),
        "shape too small": (file([], [entry("a", [8])], bytes(96)), "and the file at"),
        "data cut": (file([], one, data[:-1]), "and the file at"),
        "no data": (file([], one), "and the file at"),
        "bytes behind": (file([], one, bytes(64)), "and the file at"),
    }  # fmt: skip


@pytest.fixture(scope="session")
def gguf_lies() -> dict[str, tuple[bytes, str]]:
    return bad_ggufs()


@pytest.fixture(scope="session")
def gguf() -> type[Gguf]:
    return Gguf


@pytest.fixture(scope="session")
def safetensors_file() -> Callable[..., bytes]:
    return safetensors_bytes


@pytest.fixture(scope="session")
def entry() -> Callable[..., dict[str, Any]]:
    return tensor_entry


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str | dict[str, Any]], Path]:
    """Writes a file below the test's folder: bytes, text, or a dict as JSON."""

    def written(name: str, content: bytes | str | dict[str, Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


@pytest.fixture(scope="session", params=["gemma-3-270m", "smollm2-135m-instruct"])
def real_gguf(request: pytest.FixtureRequest) -> Path:
    """A real checkpoint of the catalogue; pulled if it is not there."""
    from sash import hub

    return hub.pull(request.param)
