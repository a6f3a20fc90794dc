"""Modules over packed weights, in the places of `nn.Linear` and `nn.Embedding`.

Shape suffixes: T tokens, N outputs, K inputs, D dim, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sash.errors import UsageError
from sash.kernels.linear import linear
from sash.kernels.packed import PackedWeight, rows


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed. What comes in is computed with as float32, and comes out as it came in.

    Attributes:
        weight: packed, shared and never changed; no parameter, since it cannot be trained.
        bias: float32 [N], or None.
    """

    bias: Tensor | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        if bias is not None and tuple(bias.shape) != (weight.n,):
            raise UsageError(f"a weight of {weight.n} outputs has as many biases; got {list(bias.shape)}")
        self.weight = weight
        self.register_buffer("bias", None if bias is None else bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return self.logits(x.reshape(-1, self.weight.k)).to(x.dtype).view(*x.shape[:-1], self.weight.n)

    def logits(self, x_TK: Tensor) -> Tensor:
        """[T, K] -> [T, N] float32, not rounded to the type of `x_TK`."""
        out_TN = linear(x_TK.float().contiguous(), self.weight)
        return out_TN if self.bias is None else out_TN + self.bias


class PackedEmbedding(nn.Module):
    """An embedding whose table is packed, for reading rows and, where it is tied, as the output head.

    Attributes:
        weight: packed, [V, D]; shared and never changed.
        dtype: what rows come out as.
    """

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids of any shape -> [..., D]: rows unpacked one by one, a rotation undone."""
        return rows(self.weight, tokens.flatten()).to(self.dtype).view(*tokens.shape, self.weight.k)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, V] float32, with the table as the head."""
        return linear(hidden_TD.float().contiguous(), self.weight)
