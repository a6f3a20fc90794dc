"""The native kernels' side of packed weights: addresses of tensors that were checked, and the calls that take them.

Every handle keeps the tensors that it points into alive. Float32 in, float32 out, all contiguous.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sash.errors import CheckpointError, UnsupportedError, UsageError
from sash.kernels import isa, layout
from sash.kernels.packed import PackedWeight

_KINDS = {"bf16": 0, "int8": 1, "int4": 2, "int4m": 2}


def available() -> bool:
    """Whether native kernels serve on this machine; see `sash.kernels.isa`."""
    return isa.serving_isa() != isa.NONE


@cache
def module() -> ModuleType:
    """The extension module; the instruction set that serves is settled here, once a process.

    Raises:
        UnsupportedError: no native kernels serve here.
    """
    extension = isa.extension()
    if extension is None or not available():
        raise UnsupportedError(f"native kernels do not serve here ({isa.why_none()}): see sash doctor")
    return extension


def set_threads(count: int) -> None:
    """Share work out over so many threads, the caller's included; by default one for each core."""
    if available():
        module().set_threads(count)


def threads() -> int:
    """Threads that native kernels run on; 0 where none serve."""
    return int(module().threads()) if available() else 0


def address(tensor: Tensor | None) -> int:
    """Where a tensor's values begin; 0 for None.

    Raises:
        UsageError: values that do not lie on the CPU, one after the other.
    """
    if tensor is None:
        return 0
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise UsageError(f"native kernels read contiguous tensors on the CPU; got {tensor.device}, {tensor.stride()}")
    return tensor.data_ptr()


class Linear:
    """A packed weight, and perhaps a bias, as the kernels know it.

    Attributes:
        weight: the weight.
        native: the extension's own object.
    """

    def __init__(self, weight: PackedWeight, bias_N: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = None if bias_N is None else F.pad(bias_N.float(), (0, -len(bias_N) % 16)).contiguous()
        self.native = module().Linear(
            _KINDS[weight.kind],
            weight.n,
            weight.k,
            address(weight.data),
            address(weight.scale),
            address(weight.minimum),
            address(weight.multiplier),
            weight.group,
            weight.rotation,
            address(self.bias),
        )

    def __call__(self, x_TK: Tensor) -> Tensor:
        """[T, k] -> [T, n], float32."""
        check_rows(x_TK, self.weight.k)
        n_rows, k = x_TK.shape
        out_TN = torch.empty(n_rows, self.weight.n)
        if n_rows:
            module().multiply(self.native, x_TK.data_ptr(), k, n_rows, out_TN.data_ptr(), self.weight.n)
        return out_TN

    def rows(self, rows_R: Tensor, factor: float = 1.0) -> Tensor:
        """Some rows of what the packed values stand for, times `factor`, float32 [R, k]: `sash.kernels.packed.rows`.

        Raises:
            IndexError: a row that the weight does not have.
        """
        if rows_R.dim() != 1 or rows_R.dtype != torch.int64:
            raise UsageError(f"rows are told as int64 [rows]; got {rows_R.dtype} {list(rows_R.shape)}")
        count = rows_R.shape[0]
        out_RK = torch.empty(count, self.weight.k)
        module().rows(self.native, address(rows_R), count, factor, out_RK.data_ptr())
        return out_RK


class FeedForward:
    """A gated feed-forward network over packed weights: w2(act(w1 x) * w3 x), the tiles of w1 and w3 alternating."""

    def __init__(self, w13: PackedWeight, w2: PackedWeight, activation: str) -> None:
        self._parts = (Linear(w13), Linear(w2))
        self.dim = w13.k
        self.native = module().FeedForward(
            self._parts[0].native, self._parts[1].native, {"silu": 0, "gelu_tanh": 1}[activation]
        )

    def __call__(self, x_TD: Tensor) -> Tensor:
        """[T, dim] -> [T, dim], float32."""
        check_rows(x_TD, self.dim)
        out_TD = torch.empty_like(x_TD)
        if len(x_TD):
            module().feed(self.native, x_TD.data_ptr(), len(x_TD), out_TD.data_ptr(), self.dim)
        return out_TD


class Norm:
    """Root mean square normalisation with a weight, any offset added to it; without one, none at all."""

    def __init__(self, weight: Tensor | None = None, eps: float = 0.0) -> None:
        self.weight = None if weight is None else weight.float().contiguous()
        self.native: Any = module().Norm(address(self.weight), eps)

    def __call__(self, x_TD: Tensor) -> Tensor:
        """[T, dim] -> [T, dim], float32."""
        if self.weight is None:
            raise UsageError("a norm needs its weight")
        check_rows(x_TD, len(self.weight))
        out_TD = torch.empty_like(x_TD)
        module().normalise(x_TD.data_ptr(), self.native, *x_TD.shape, out_TD.data_ptr())
        return out_TD


def pack_int8(weight_NK: Tensor, rotation: int) -> tuple[Tensor, Tensor]:
    """Rotate rows and round each to int8 with a scale of its own; see `sash.quantize.rounding.int8_rows`.

    Returns:
        int8 [tiles, padded K / 64, 16, 16, 4], and float32 scales [N].

    Raises:
        CheckpointError: a value that is not finite.
    """
    check_rows(weight_NK, weight_NK.shape[-1])
    if not bool(weight_NK.isfinite().all()):
        raise CheckpointError("a weight has values that are not finite: the checkpoint is broken, download it again")
    n, k = weight_NK.shape
    padded_n, padded_k = layout.padded(n, k)
    data = torch.zeros(padded_n // layout.TILE, padded_k // 64, 16, 16, 4, dtype=torch.int8)
    scale_N = torch.empty(n)
    module().pack(weight_NK.data_ptr(), n, k, rotation, data.data_ptr(), scale_N.data_ptr())
    return data, scale_N


def check_rows(x_TK: Tensor, k: int) -> None:
    """Refuse what a kernel would misread.

    Raises:
        UsageError: rows that are not float32 [tokens, k], contiguous, on the CPU.
    """
    if x_TK.dim() != 2 or x_TK.shape[1] != k or x_TK.dtype != torch.float32 or not x_TK.is_contiguous():
        raise UsageError(f"activations are float32 [tokens, {k}], contiguous; got {x_TK.dtype} {list(x_TK.shape)}")
    if x_TK.device.type != "cpu":
        raise UsageError(f"native kernels compute on the CPU; got activations on {x_TK.device}")
