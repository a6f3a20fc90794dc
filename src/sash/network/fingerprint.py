"""What a network is, in a few digits: what one has computed another of the same fingerprint can go on from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from sash.kernels.isa import serving_isa
from sash.kernels.packed import PackedWeight
from sash.network.fused import FusedDecoder
from sash.network.packed import Network
from sash.quantize import PackedEmbedding, PackedLinear

_PIECES, _PIECE = 16, 256
"""So many pieces of so many bytes of each tensor are looked at: few pages of a file that is mapped."""


def fingerprint(network: Network, kv: str) -> str:
    """Of a network's configuration and weights, of what computes it, and of what keys and values are kept as; hex.

    Of each tensor a few pieces, spread over all of it, stand for the whole: reading a large checkpoint twice would cost
    more than a start may. Weights of another training differ there; a single number that was changed may not.

    Args:
        network: what has computed, or is to go on.
        kv: as `sash.network.cache.KVCache` takes it.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in (type(network).__name__, network.config, network.dtype, kv, *computed_by(network)):
        digest.update(repr(part).encode() + b"\0")
    digest.update(weights_digest(network))
    return digest.hexdigest()


def computed_by(network: Network) -> tuple[str, ...]:
    """What numbers may depend on beside network and text: versions, instruction sets, the device."""
    return _version(), serving_isa(), torch.backends.cpu.get_cpu_capability(), torch.__version__, str(network.device)


def weights_digest(network: Network) -> bytes:
    """Of a network's weights, as `fingerprint` looks at them."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in _tensors(network):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + b"\0")
        digest.update(_sample(tensor))
    return digest.digest()


def _version() -> str:
    try:
        return version("sash")
    except PackageNotFoundError:  # run from its source
        return ""


def _tensors(network: Network) -> Iterator[tuple[str, Tensor]]:
    parts: dict[str, Tensor | PackedWeight]
    if isinstance(network, FusedDecoder):
        parts = dict(network.parts)
    else:
        parts = dict(network.state_dict())
        for name, module in network.named_modules():
            if isinstance(module, PackedLinear | PackedEmbedding):
                parts[f"{name}.packed"] = module.weight
    for name, part in sorted(parts.items()):
        if not isinstance(part, PackedWeight):
            yield name, part
            continue
        yield f"{name} {part.form}", part.data
        others = (("scale", part.scale), ("minimum", part.minimum), ("multiplier", part.multiplier))
        yield from ((f"{name}.{label}", tensor) for label, tensor in others if tensor is not None)


def _sample(tensor: Tensor) -> bytes:
    """Pieces of a tensor at even distances, the first and the last of it among them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    last = len(flat) - _PIECE
    if last < _PIECES * _PIECE:
        return flat.numpy().tobytes()
    starts = [last * piece // (_PIECES - 1) for piece in range(_PIECES)]
    return b"".join(flat[start : start + _PIECE].numpy().tobytes() for start in starts)
