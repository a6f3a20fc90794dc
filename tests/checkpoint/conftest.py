"""Writers of small checkpoint files that can be made to lie, and the real ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

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
