"""How weights lie in memory, packed for the kernels; and back.

A weight of N outputs and K inputs is cut into tiles of 16 outputs; N is padded to a multiple of 16 and K to one of 64,
with zeros. Within a tile the inputs go by in blocks, and within a block so many inputs as one multiplication takes at
once (two of 16 bits, four of 8) lie side by side for all 16 outputs: the 64 bytes that a vector register holds.

- bf16: [tile][block of 32][pair][output][which of the pair]
- int8: [tile][block of 64][quad][output][which of the quad]
- int4: [tile][block of 64][line][byte]: line j holds quad j of the int8 layout in its low nibbles and quad j + 8 in its
  high ones; a nibble stands for its value less 8. Scales and minima: [tile][group of inputs][output].

Shape suffixes: N outputs, K inputs, both as they are before padding; R chosen outputs, G groups of inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16
"""Outputs of a tile."""

BLOCK = 64
"""What the number of inputs is padded to a multiple of."""


def padded(n: int, k: int) -> tuple[int, int]:
    """Outputs and inputs as they are packed.

    >>> padded(16, 64), padded(17, 100)
    ((16, 64), (32, 128))
    """
    return -(-n // TILE) * TILE, -(-k // BLOCK) * BLOCK


def _pad(x_NK: Tensor) -> Tensor:
    n, k = x_NK.shape
    padded_n, padded_k = padded(n, k)
    return F.pad(x_NK, (0, padded_k - k, 0, padded_n - n))


def _interleave(x_NK: Tensor, depth: int) -> Tensor:
    """[N, K] -> [N / 16, K / (16 depth), 16, 16, depth]."""
    x_NK = _pad(x_NK)
    n, k = x_NK.shape
    return x_NK.reshape(n // TILE, TILE, k // (16 * depth), 16, depth).permute(0, 2, 3, 1, 4).contiguous()


def _separate(data: Tensor, n: int, k: int) -> Tensor:
    """The reverse of `_interleave`."""
    return data.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)[:n, :k].contiguous()


def pack_bf16(weight_NK: Tensor) -> Tensor:
    """Pack a weight of any float type as bfloat16, [tiles, K / 32, 16, 16, 2].

    >>> weight_NK = torch.arange(32.0).tile(16, 1) + 100 * torch.arange(16.0)[:, None]
    >>> packed = pack_bf16(weight_NK)
    >>> packed.shape, packed[0, 0, 0, :2].tolist(), packed[0, 0, 1, 0].tolist()  # K is padded to 64
    (torch.Size([1, 2, 16, 16, 2]), [[0.0, 1.0], [100.0, 101.0]], [2.0, 3.0])
    """
    return _interleave(weight_NK.to(torch.bfloat16), 2)


def unpack_bf16(data: Tensor, n: int, k: int) -> Tensor:
    """The bfloat16 weight, [n, k], of its packed form.

    >>> weight_NK = torch.randn(20, 70).bfloat16()
    >>> torch.equal(unpack_bf16(pack_bf16(weight_NK), 20, 70), weight_NK)
    True
    """
    return _separate(data, n, k)


def pack_int8(q_NK: Tensor) -> Tensor:
    """Pack int8 values, [tiles, K / 64, 16, 16, 4].

    >>> q_NK = torch.arange(64, dtype=torch.int8).tile(16, 1)
    >>> packed = pack_int8(q_NK)
    >>> packed.shape, packed[0, 0, 0, 3].tolist(), packed[0, 0, 15, 3].tolist()
    (torch.Size([1, 1, 16, 16, 4]), [0, 1, 2, 3], [60, 61, 62, 63])
    """
    return _interleave(q_NK, 4)


def unpack_int8(data: Tensor, n: int, k: int) -> Tensor:
    """The int8 values, [n, k], of their packed form.

    >>> q_NK = torch.randint(-127, 128, (20, 70), dtype=torch.int8)
    >>> torch.equal(unpack_int8(pack_int8(q_NK), 20, 70), q_NK)
    True
    """
    return _separate(data, n, k)


def pack_int4(q_NK: Tensor) -> Tensor:
    """Pack int8 values from -8 to 7 as nibbles, uint8 [tiles, K / 64, 8, 64].

    >>> q_NK = (torch.arange(64, dtype=torch.int8) // 4 - 8).tile(16, 1)  # quad j holds j - 8
    >>> packed = pack_int4(q_NK)
    >>> packed.shape, [hex(line[0]) for line in packed[0, 0, :3].tolist()]
    (torch.Size([1, 1, 8, 64]), ['0x80', '0x91', '0xa2'])
    """
    nibbles = (_interleave(q_NK, 4) + 8).view(torch.uint8).flatten(3)
    return nibbles[:, :, :8] | nibbles[:, :, 8:] << 4


def unpack_int4(data: Tensor, n: int, k: int) -> Tensor:
    """The int8 values from -8 to 7, [n, k], of their packed form.

    >>> q_NK = torch.randint(-8, 8, (20, 70), dtype=torch.int8)
    >>> torch.equal(unpack_int4(pack_int4(q_NK), 20, 70), q_NK)
    True
    """
    return _separate(_nibbles(data.view(*data.shape[:3], TILE, 4)), n, k)


def _nibbles(lines: Tensor) -> Tensor:
    """Nibbles of [tiles, blocks, 8, ...] as int8 from -8 to 7, [tiles, blocks, 16, ...]."""
    return torch.cat((lines & 15, lines >> 4), dim=2).view(torch.int8) - 8


def pack_groups(values_NG: Tensor) -> Tensor:
    """Pack scales or minima, one for each output and group of inputs, [tiles, G, 16]; padded outputs get zeros.

    >>> values_NG = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> packed = pack_groups(values_NG)
    >>> packed.shape, packed[0, 1, :3].tolist()
    (torch.Size([1, 2, 16]), [2.0, 4.0, 0.0])
    """
    n = len(values_NG)
    padded_n = padded(n, 0)[0]
    values_NG = F.pad(values_NG, (0, 0, 0, padded_n - n))
    return values_NG.reshape(padded_n // TILE, TILE, -1).transpose(1, 2).contiguous()


def unpack_groups(data: Tensor, n: int) -> Tensor:
    """The scales or minima, [n, G], of their packed form.

    >>> values_NG = torch.randn(20, 3)
    >>> torch.equal(unpack_groups(pack_groups(values_NG), 20), values_NG)
    True
    """
    return data.transpose(1, 2).flatten(0, 1)[:n].contiguous()


def rows_of(data: Tensor, rows_R: Tensor, k: int) -> Tensor:
    """Some outputs' values out of a packed weight, without unpacking the rest: [R, k] of bfloat16 or int8.

    Args:
        data: packed in any of the three layouts.
        rows_R: outputs to read, int64.
        k: inputs.

    >>> q_NK = torch.randint(-8, 8, (40, 70), dtype=torch.int8)
    >>> rows_R = torch.tensor([17, 3, 39])
    >>> torch.equal(rows_of(pack_int4(q_NK), rows_R, 70), q_NK[rows_R])
    True
    """
    if data.dtype == torch.uint8:
        lanes = data.view(*data.shape[:3], TILE, 4)[rows_R // TILE, :, :, rows_R % TILE]
        return _nibbles(lanes).flatten(1)[:, :k]
    return data[rows_R // TILE, :, :, rows_R % TILE].flatten(1)[:, :k]
