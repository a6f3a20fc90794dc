"""A stored tensor into memory: as a view of the mapped file where its numbers can stay as they are, else converted."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from sash.checkpoint.binary_file import BinaryFile
from sash.checkpoint.dequantize import SLICE_VALUES, check_supported, dequantize_blocks
from sash.checkpoint.ggml_types import BY_NAME
from sash.checkpoint.stored import StoredTensor
from sash.errors import CheckpointError

# Types whose bytes torch can use as they stand. BOOL is not among them: a byte of 2 is no truth value to torch.
PLAIN: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
# Bytes of plain numbers that are read at once on their way to another type.
SLICE_BYTES = 4 * 2**20


def read_tensor(file: BinaryFile, stored: StoredTensor, dtype: torch.dtype | None = None) -> Tensor:
    """Read one tensor.

    With the type that it is stored in (or None) the result views the privately mapped file: writable, copied page by
    page on writing, never written back. With another type, or where blocks must be dequantised (to float32 by
    default), it is a fresh tensor, filled slice by slice with a few MiB of scratch.

    Args:
        file: which holds it.
        stored: its entry, checked against the file.
        dtype: of the result.

    Raises:
        CheckpointError: the file has changed or cannot be read.
        UnsupportedError: a storage type that cannot be dequantised.
    """
    file.check_unchanged()
    plain = PLAIN.get(stored.dtype)
    if plain is not None and dtype in (None, plain):
        return _view(file, stored, plain)
    if plain is not None or stored.dtype == "BOOL":
        return _convert(file, stored, dtype)
    return _dequantize(file, stored, torch.float32 if dtype is None else dtype)


def read_rows(file: BinaryFile, stored: StoredTensor, first: int, count: int) -> Tensor:
    """Some rows of a tensor as float32, [count, last dimension]; all dimensions but the last count as one.

    They are read by position, so that no page of a mapped file becomes resident.

    Args:
        file: which holds it.
        stored: its entry, checked against the file.
        first: the first row.
        count: how many.

    Raises:
        CheckpointError: the file has changed or cannot be read.
        UnsupportedError: a storage type that cannot be dequantised, or no numbers.
    """
    raw = read_row_bytes(file, stored, first, count)
    plain = PLAIN.get(stored.dtype)
    if plain is not None:
        return raw.view(plain).float()
    check_supported(stored.dtype)
    kind = BY_NAME[stored.dtype]
    blocks = raw.view(-1, kind.nbytes)
    out = torch.empty(count, stored.shape[-1])
    flat, step = out.view(-1, kind.block), SLICE_VALUES // kind.block
    for at in range(0, len(blocks), step):
        flat[at : at + step] = dequantize_blocks(blocks[at : at + step], stored.dtype)
    return out


def read_row_bytes(file: BinaryFile, stored: StoredTensor, first: int, count: int) -> Tensor:
    """The bytes of some rows as the file has them, uint8 [count, bytes a row]; see `read_rows`.

    Raises:
        CheckpointError: there are no such rows, the file has changed, or it cannot be read.
    """
    n_rows = prod(stored.shape[:-1])
    if not 0 <= first <= first + count <= n_rows:
        raise CheckpointError(f"tensor {stored.name} has {n_rows} rows, and not those from {first} to {first + count}")
    width = stored.nbytes // n_rows if n_rows else 0
    raw = torch.empty(count, width, dtype=torch.uint8)
    _fetch(file, stored.offset + first * width, raw.view(-1))
    return raw


def _view(file: BinaryFile, stored: StoredTensor, plain: torch.dtype) -> Tensor:
    """The tensor in place; a copy where it stands at an address that its type cannot be read from at once."""
    if stored.n_elements == 0:
        return torch.empty(stored.shape, dtype=plain)
    if stored.offset % plain.itemsize:
        copy = torch.empty(stored.nbytes, dtype=torch.uint8)
        return _fetch(file, stored.offset, copy).view(plain).view(stored.shape)
    flat = torch.frombuffer(file.map(), dtype=plain, count=stored.n_elements, offset=stored.offset)
    return flat.view(stored.shape)


def _convert(file: BinaryFile, stored: StoredTensor, dtype: torch.dtype | None) -> Tensor:
    plain = PLAIN.get(stored.dtype)
    out = torch.empty(stored.shape, dtype=torch.bool if dtype is None else dtype)
    flat = out.view(-1)
    size = 1 if plain is None else plain.itemsize
    step = SLICE_BYTES // size
    scratch = _scratch(min(stored.nbytes, step * size))
    for first in range(0, stored.n_elements, step):
        count = min(step, stored.n_elements - first)
        raw = _fetch(file, stored.offset + first * size, scratch[: count * size])
        flat[first : first + count] = raw != 0 if plain is None else raw.view(plain)
    return out


def _dequantize(file: BinaryFile, stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    check_supported(stored.dtype)
    kind = BY_NAME[stored.dtype]
    out = torch.empty(stored.shape, dtype=dtype)
    flat = out.view(-1, kind.block)
    step = SLICE_VALUES // kind.block
    scratch = _scratch(min(stored.nbytes, step * kind.nbytes))
    for first in range(0, len(flat), step):
        count = min(step, len(flat) - first)
        raw = _fetch(file, stored.offset + first * kind.nbytes, scratch[: count * kind.nbytes])
        flat[first : first + count] = dequantize_blocks(raw.view(count, kind.nbytes), stored.dtype)
    return out


def _scratch(nbytes: int) -> Tensor:
    """Room for a slice, in pages of its own: what is freed goes back to the system, whatever was allocated since.

    From the allocator's heap, each tensor would strand a slice between itself and the next.
    """
    return torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.uint8) if nbytes else torch.empty(0, dtype=torch.uint8)


def _fetch(file: BinaryFile, offset: int, target: Tensor) -> Tensor:
    """Fill a uint8 tensor from the file, and return it."""
    file.readinto(offset, target.numpy().data)
    return target
