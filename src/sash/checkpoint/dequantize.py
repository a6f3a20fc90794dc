"""GGUF's quantised blocks back into numbers, bit for bit as ggml's own (ggml-quants.c, `dequantize_row_*`).

A block is a fixed run of bytes: a scale `d` (a minimum `m` or `dmin` in some types) in half precision, and small
integers `q` packed into nibbles and bit planes. K types hold 256 values in sub-blocks of 16 or 32 with scales of their
own, themselves quantised. All arithmetic is float32 in ggml's order of operations; whole slices of blocks at a time.

Letters in comments: n blocks, uint8 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sash.checkpoint.ggml_types import BY_NAME
from sash.errors import CheckpointError, UnsupportedError

# Values dequantised at once: intermediates of half a MiB stay in the processor's caches, and the allocator may strand
# one or two of them a tensor.
SLICE_VALUES = 2**17


def dequantize(raw: Tensor, kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor that `raw` stands for.

    Args:
        raw: uint8, contiguous, exactly the tensor's bytes.
        kind: ggml's name of the storage type, "Q4_K" say.
        shape: in torch's order; its last dimension is a multiple of the type's block.
        dtype: of the result; values are computed in float32 and rounded once.

    Returns:
        A fresh tensor of `shape` and `dtype`.

    Raises:
        UnsupportedError: a storage type that is not read here.
        CheckpointError: `raw` and `shape` do not belong together.
    """
    check_supported(kind)
    block, nbytes = BY_NAME[kind].block, BY_NAME[kind].nbytes
    out = torch.empty(shape, dtype=dtype)
    if out.numel() % block or raw.numel() != out.numel() // block * nbytes:
        raise CheckpointError(f"{raw.numel()} bytes of {kind} do not make up a tensor of shape {tuple(shape)}")
    blocks, flat = raw.view(-1, nbytes), out.view(-1, block)
    step = max(1, SLICE_VALUES // block)
    for first in range(0, len(blocks), step):
        flat[first : first + step] = dequantize_blocks(blocks[first : first + step], kind)
    return out


def check_supported(kind: str) -> None:
    """Raise UnsupportedError unless tensors stored as `kind` can be dequantised."""
    if kind not in _READERS:
        raise UnsupportedError(
            f"the storage type {kind} is not read: download another quantisation of the model, "
            f"one of {', '.join(_READERS)}"
        )


def dequantize_blocks(blocks: Tensor, kind: str) -> Tensor:
    """Whole blocks, uint8 [n, bytes a block], as float32 [n, values a block]; `kind` is supported."""
    return _READERS[kind](blocks)


def half(blocks: Tensor, at: int) -> Tensor:
    """The half-precision number at byte `at` of each block: float32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def nibbles(packed: Tensor) -> Tensor:
    """[n, groups, width] bytes as [n, groups, 2, width]: low nibbles, then high ones."""
    return torch.stack((packed & 15, packed >> 4), dim=2)


def _planes(packed: Tensor, bits: int) -> Tensor:
    """[n, groups, width] bytes as [n, groups, 8 / bits, width]: fields of `bits` bits, from the lowest up.

    >>> _planes(torch.tensor([[[0b11_10_01_00]]], dtype=torch.uint8), 2).tolist()
    [[[[0], [1], [2], [3]]]]
    """
    return torch.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], dim=2)


def _f32(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float32)


def _f16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.float16).float()


def _bf16(blocks: Tensor) -> Tensor:
    return blocks.contiguous().view(torch.bfloat16).float()


def _q4_0(blocks: Tensor) -> Tensor:
    # d[2] q[16]
    q = nibbles(blocks[:, None, 2:18]).view(torch.int8) - 8
    return q.reshape(-1, 32).float().mul_(half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    # d[2] m[2] q[16]
    q = nibbles(blocks[:, None, 4:20])
    return q.reshape(-1, 32).float().mul_(half(blocks, 0)).add_(half(blocks, 2))


def _five_bits(fifth: Tensor, low: Tensor) -> Tensor:
    """Values of 5 bits: [n, 4] bytes, a bit a value in order, over [n, 16] bytes of nibbles: [n, 32]."""
    high = _planes(fifth[:, :, None], 1).view(-1, 32)
    return nibbles(low[:, None]).view(-1, 32) | high << 4


def _q5_0(blocks: Tensor) -> Tensor:
    # d[2] fifth[4] q[16]
    q = _five_bits(blocks[:, 2:6], blocks[:, 6:22]).view(torch.int8) - 16
    return q.float().mul_(half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    # d[2] m[2] fifth[4] q[16]
    q = _five_bits(blocks[:, 4:8], blocks[:, 8:24])
    return q.float().mul_(half(blocks, 0)).add_(half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    # d[2] q[32], signed
    return blocks[:, 2:34].view(torch.int8).float().mul_(half(blocks, 0))


def _q2_k(blocks: Tensor) -> Tensor:
    # scale and minimum[16], a nibble each; q[64], 2 bits each; d[2] dmin[2]
    scales = blocks[:, :16]
    d = ((scales & 15).float() * half(blocks, 80))[:, :, None]
    m = ((scales >> 4).float() * half(blocks, 82))[:, :, None]
    q = _planes(blocks[:, 16:80].reshape(-1, 2, 32), 2).view(-1, 16, 16)
    return q.float().mul_(d).sub_(m).view(-1, 256)


def _q3_k(blocks: Tensor) -> Tensor:
    # high[32], a bit a value; q[64], 2 bits each; scales[12], 6 bits each; d[2]
    packed = blocks[:, 96:108]
    low = nibbles(packed[:, None, :8]).view(-1, 16)
    high = _planes(packed[:, None, 8:], 2).view(-1, 16)
    scales = (low | high << 4).view(torch.int8) - 32
    d = (scales.float() * half(blocks, 108))[:, :, None]
    two = _planes(blocks[:, 32:96].reshape(-1, 2, 32), 2).view(-1, 16, 16)
    third = _planes(blocks[:, None, :32], 1).view(-1, 16, 16)
    q = (two | third << 2).view(torch.int8) - 4  # A high bit that is not set stands for -4.
    return q.float().mul_(d).view(-1, 256)


def scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The head of Q4_K and Q5_K, d[2] dmin[2] packed[12], as scales and minima, float32 [n, 8, 1] each.

    Eight scales and eight minima of 6 bits: the first four of each are whole bytes without their two high bits, which
    hold the high bits of the last four; their low nibbles share the last four bytes.
    """
    first_d, first_m, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first_d & 63, last & 15 | first_d >> 2 & 48), dim=1)
    minima = torch.cat((first_m & 63, last >> 4 | first_m >> 2 & 48), dim=1)
    return (scales.float() * half(blocks, 0))[:, :, None], (minima.float() * half(blocks, 2))[:, :, None]


def _q4_k(blocks: Tensor) -> Tensor:
    # d[2] dmin[2] packed[12] q[128]
    d, m = scales_and_minima(blocks)
    q = nibbles(blocks[:, 16:144].reshape(-1, 4, 32)).view(-1, 8, 32)
    return q.float().mul_(d).sub_(m).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    # d[2] dmin[2] packed[12] fifth[32], a bit a value; q[128]
    d, m = scales_and_minima(blocks)
    fifth = _planes(blocks[:, None, 16:48], 1).view(-1, 8, 32)
    q = nibbles(blocks[:, 48:176].reshape(-1, 4, 32)).view(-1, 8, 32) | fifth << 4
    return q.float().mul_(d).sub_(m).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    # q[128], low nibbles; high[64], 2 bits each; scales[16], signed; d[2]
    d = (blocks[:, 192:208].view(torch.int8).float() * half(blocks, 208))[:, :, None]
    low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).view(-1, 8, 32)
    high = _planes(blocks[:, 128:192].reshape(-1, 2, 32), 2).view(-1, 8, 32)
    q = (low | high << 4).view(torch.int8) - 32
    return q.view(-1, 16, 16).float().mul_(d).view(-1, 256)


_READERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
