"""ggml's blocks of 4 bits as levels and scales of our own int4: what a value is stays what it was.

A value of ours is scale * q + minimum, q from -8 to 7, with 32 inputs to a scale. Q4_0 has such scales itself; Q4_1's q
counts from 0, so its minimum moves by 8 scales; a Q4_K block has eight sub-blocks of 32, whose scales and minima are
products. Sums and products are rounded to float16 once.

Shape suffixes: N rows, K inputs, G groups of 32 inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sash.checkpoint.dequantize import half, nibbles, scales_and_minima
from sash.checkpoint.ggml_types import BY_NAME
from sash.errors import CheckpointError

FOUR_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"})
"""Storage types that int4 holds as they are."""

WITH_MINIMA = FOUR_BITS - {"Q4_0"}
"""Those of them whose groups have a minimum beside their scale."""

GROUP = 32
"""Inputs that share a scale in all of them."""


def levels(raw_NB: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows of blocks as int4.

    Args:
        raw_NB: uint8, whole rows of blocks.
        kind: one of `FOUR_BITS`.

    Returns:
        int8 [N, K] from -8 to 7, float16 scales [N, G], and float16 minima [N, G] but for Q4_0.

    Raises:
        CheckpointError: scales that are no finite float16.

    >>> one = torch.tensor([[*torch.tensor([0.5, -3.0]).half().view(torch.uint8), *[0xF0] * 16]], dtype=torch.uint8)
    >>> q, scale, minimum = levels(one, "Q4_1")  # q from 0: 16 times 0, then 16 times 15
    >>> q[0, [0, 16]].tolist(), scale.tolist(), minimum.tolist()
    ([-8, 7], [[0.5]], [[1.0]])
    """
    n = len(raw_NB)
    blocks = raw_NB.view(-1, BY_NAME[kind].nbytes)
    if kind == "Q4_K":
        scale, low = (part.view(-1, 8) for part in scales_and_minima(blocks))
        q = nibbles(blocks[:, 16:144].reshape(-1, 4, 32))
        minimum = 8 * scale - low
    elif kind == "Q4_1":
        scale, q = half(blocks, 0), nibbles(blocks[:, None, 4:20])
        minimum = half(blocks, 2) + 8 * scale
    else:
        scale, q, minimum = half(blocks, 0), nibbles(blocks[:, None, 2:18]), None
    scale_NG = scale.half().view(n, -1)
    minimum_NG = None if minimum is None else minimum.half().view(n, -1)
    if not all(bool(part.isfinite().all()) for part in (scale_NG, minimum_NG) if part is not None):
        raise CheckpointError("a weight has values that are not finite, or too large for int4: use int8 weights")
    return q.view(torch.int8).reshape(n, -1) - 8, scale_NG, minimum_NG
