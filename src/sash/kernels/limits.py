"""What this machine can do at most, by native loops that do nothing else: read memory, and multiply in registers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sash.errors import UsageError
from sash.kernels import native

PIECE = 512
"""Bytes that memory is read by; a tensor's number of bytes is a multiple of it."""


def read_memory(tensor: Tensor) -> int:
    """Read every byte of a tensor once, with all threads of the kernels.

    Returns:
        A number that depends on each of them.

    Raises:
        UsageError: not contiguous, or not a multiple of `PIECE` bytes.
        UnsupportedError: no native kernels serve here.
    """
    if tensor.nbytes % PIECE:
        raise UsageError(f"memory is read by {PIECE} bytes at a time; got {tensor.nbytes}")
    return int(native.module().read_memory(native.address(tensor), tensor.nbytes))


def multiply_numbers(kind: Literal["bf16", "int8"], rounds: int) -> int:
    """Multiply and add numbers in registers, `rounds` times on every thread of the kernels.

    They go the way that products with packed weights take on this machine: AMX tiles, or vector instructions (which
    multiply float32 where the processor has none for bfloat16).

    Returns:
        How many multiplications and additions that were; 2 for a product that is added to a sum.

    Raises:
        UnsupportedError: no native kernels serve here.
    """
    return int(native.module().multiply_numbers({"bf16": 0, "int8": 1}[kind], rounds))
