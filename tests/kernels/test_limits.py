"""The loops that measure the machine do what they say: every byte is read, every operation counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sash.errors import UsageError
from sash.kernels import native
from sash.kernels.limits import multiply_numbers, read_memory

needs_native = pytest.mark.skipif(not native.available(), reason="no native kernels serve here")
PIECE = 2**18


def checksum(data: np.ndarray) -> int:
    """Of each piece of 256 KiB, the exclusive or of its lines of 64 bytes as digits to the base of 31; their sum."""
    total = 0
    for start in range(0, len(data), PIECE):
        lines = data[start : start + PIECE].view(np.uint32).reshape(-1, 16)
        digits = 0
        for lane in np.bitwise_xor.reduce(lines, axis=0):
            digits = digits * 31 + int(lane)
        total += digits
    return total % 2**64


@needs_native
@pytest.mark.parametrize("n_bytes", [512, 5 * 1024, PIECE, 3 * PIECE + 5632])
def test_every_byte_is_read_once(n_bytes: int):
    data = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(n_bytes))
    assert read_memory(data) == checksum(data.numpy())
    data[n_bytes - 1] ^= 1
    assert read_memory(data) == checksum(data.numpy())


@needs_native
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_operations_grow_with_rounds_and_threads(kind: str):
    before = native.threads()
    try:
        native.set_threads(1)
        one = multiply_numbers(kind, 100)  # type: ignore[arg-type]
        native.set_threads(3)
        assert multiply_numbers(kind, 200) == 6 * one > 0  # type: ignore[arg-type]
    finally:
        native.set_threads(before)


def test_odd_sizes_are_refused():
    with pytest.raises(UsageError, match="512 bytes"):
        read_memory(torch.zeros(100, dtype=torch.uint8))
