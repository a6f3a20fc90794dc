"""A decoder over packed weights: natively where the kernels serve, else with torch and packed linear layers.

Shape suffixes: T packed tokens, D dim.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sash.attention.segment import Backend
from sash.errors import UsageError
from sash.kernels.packed import PackedWeight
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder, Parts, why_not
from sash.network.layers import ACTIVATIONS
from sash.network.parts import TILE, parts_of
from sash.quantize import PackedEmbedding, PackedLinear, padded_rows, take_tiles

logger = logging.getLogger(__name__)

Network = Decoder | FusedDecoder
"""What an `LM` runs on."""


class PackedFeedForward(nn.Module):
    """Gated feed-forward network over packed weights; see `sash.network.layers.FeedForward`.

    `w13` has the tiles of w1 and w3 in turn, so both come out of one product.
    """

    def __init__(self, w13: PackedWeight, w2: PackedWeight, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w13, self.w2 = PackedLinear(w13), PackedLinear(w2)
        self.activation = activation

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        both = self.w13(x_TD).view(len(x_TD), -1, 2, TILE)
        up_TH = (self.activation(both[:, :, 0]) * both[:, :, 1]).flatten(1)
        out_TD: Tensor = self.w2(up_TH[:, : self.w2.weight.k])
        return out_TD


def network_of(config: ModelConfig, parts: Parts, dtype: torch.dtype, backend: Backend | None = None) -> Network:
    """The network of packed parts that is fastest here.

    Args:
        config: what it is.
        parts: as `sash.network.parts` names them.
        dtype: of what runs between its layers, and of keys and values.
        backend: what computes attention; None for the fastest, which may be the native kernels.
    """
    reason = why_not(config) if dtype == torch.bfloat16 else f"they compute keys and values in bfloat16, not {dtype}"
    if backend is None and reason is None:
        logger.info("network: native kernels")
        return FusedDecoder(config, parts)
    logger.info("network: torch with packed linear layers, since %s", reason or "an attention backend is forced")
    return packed_decoder(config, parts, dtype, backend)


def packed_decoder(config: ModelConfig, parts: Parts, dtype: torch.dtype, backend: Backend | None = None) -> Decoder:
    """A `Decoder` whose linear layers and embedding are packed.

    Args:
        config, parts, dtype: see `network_of`; norms and routers are given this dtype.
        backend: what computes attention; None for the torch backend.

    Raises:
        UsageError: a part is not packed that has to be.
    """
    with torch.device("meta"):
        decoder = Decoder(config) if backend is None else Decoder(config, backend)
    for name, part in parts_of(config).items():
        value = parts[name]
        if isinstance(value, PackedWeight):
            _put_packed(decoder, name, value, part.rows, parts, dtype)
        elif part.join != "plain":
            raise UsageError(f"{name} is not packed: give the parts that a quantised checkpoint has")
        elif len(part.sources) == 1:
            path, _, last = part.sources[0].rpartition(".")
            parameter = nn.Parameter(value.to(dtype), requires_grad=False)
            decoder.get_submodule(path)._parameters[last] = parameter
    for module in decoder.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    return decoder.eval()


def _put_packed(
    decoder: Decoder, name: str, weight: PackedWeight, rows: tuple[int, ...], parts: Parts, dtype: torch.dtype
) -> None:
    """Put a packed part in the place of what it replaces."""
    if name == "tok_embeddings":
        decoder.tok_embeddings = PackedEmbedding(weight, dtype)
        return
    path, _, last = name.rpartition(".")
    parent = decoder.get_submodule(path)
    if last == "w13":
        second = parts[f"{path}.w2"]
        if not isinstance(second, PackedWeight):
            raise UsageError(f"{path}.w2 is not packed, and {name} is")
        above, _, own = path.rpartition(".")
        feed_forward = PackedFeedForward(weight, second, ACTIVATIONS[decoder.config.activation])
        setattr(decoder.get_submodule(above), own, feed_forward)
        return
    if last == "w2":
        return
    if last != "wqkv":
        setattr(parent, last, PackedLinear(weight))
        return
    bias, first = parts.get(f"{name}.bias"), 0
    for which, n in zip(("wq", "wk", "wv"), rows, strict=True):
        own_bias = bias[first : first + n] if isinstance(bias, Tensor) else None
        setattr(parent, which, PackedLinear(take_tiles(weight, first, n), own_bias))
        first += padded_rows(n)
