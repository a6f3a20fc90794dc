"""What a step must read and compute at least, and how long a machine needs for that: its roofline.

Reading a prompt multiplies each weight by many tokens, so the matrix units bound it; writing multiplies each by one or
a few, so the memory does. Whatever takes longer is the bound (Williams et al., "Roofline", 2009).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sash.evaluation.limits import Kind, Limits
from sash.kernels.packed import PackedWeight
from sash.network.cache import KVCache
from sash.network.config import ModelConfig, MoEConfig
from sash.network.fused import FusedDecoder
from sash.network.packed import Network
from sash.network.shapes import n_active_parameters
from sash.network.sizing import kv_slots

Bound = Literal["memory", "matrix"]
Weight = Tensor | PackedWeight


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What has to be done for some tokens.

    Attributes:
        n_tokens: that are read or written by it.
        n_bytes: read from memory: weights once, and the keys and values that are visible.
        linear: multiplications and additions of the linear maps.
        attention: those of queries with keys, and of probabilities with values.
    """

    n_tokens: int
    n_bytes: float
    linear: float
    attention: float

    def tokens_per_second(self, limits: Limits, weights: Kind, attention: Kind) -> tuple[float, Bound]:
        """The most that the machine allows, and what bounds it.

        Args:
            limits: of the machine; both kinds were measured.
            weights, attention: what is multiplied in the linear maps, and in attention.
        """
        reading = self.n_bytes / limits.memory_read
        computing = self.linear / limits.matrix[weights] + self.attention / limits.matrix[attention]
        return self.n_tokens / max(reading, computing), "memory" if reading > computing else "matrix"


def reading(decoder: Network, n_tokens: int) -> Work:
    """Read a prompt from its beginning, all of it at once, and tell what comes next."""
    config = decoder.config
    return Work(
        n_tokens=n_tokens,
        n_bytes=weight_bytes(decoder, n_tokens),
        linear=n_tokens * _layer_operations(config) + 2 * config.vocab_size * config.dim,
        attention=_attention_operations(config, 0, n_tokens),
    )


def writing(decoder: Network, depth: int, n_streams: int, n_tokens: int, key_bytes: float) -> Work:
    """Write `n_tokens` in each of several streams at once, every stream having read `depth` tokens.

    Args:
        decoder: the network.
        depth: tokens before the first that is written.
        n_streams: sequences.
        n_tokens: tokens that each writes.
        key_bytes: bytes of one key and value of one layer, see `key_bytes_of`.
    """
    config = decoder.config
    pairs = sum(_pairs(config, depth, n_tokens))
    return Work(
        n_tokens=n_streams * n_tokens,
        n_bytes=n_tokens * weight_bytes(decoder, n_streams) + n_streams * pairs * key_bytes,
        linear=n_streams * n_tokens * (_layer_operations(config) + 2 * config.vocab_size * config.dim),
        attention=n_streams * _attention_operations(config, depth, n_tokens),
    )


def weight_bytes(decoder: Network, n_tokens: int) -> float:
    """Bytes of weights that a step of `n_tokens` reads, each once, as they are stored.

    A token reads one row of the embedding, which is left out, unless it serves as output head. Of experts those count
    that the tokens are sent to, if the router sends them anywhere with the same chance.
    """
    total = 0.0
    for name, weight in _weights(decoder):
        if name.startswith("tok_embeddings") and not decoder.config.tied_embeddings:
            continue
        share = 1.0
        if ".experts." in name:
            share = _experts_met(decoder.config.layers[int(name.split(".")[1])].moe, n_tokens)
        total += share * weight.nbytes
    return total


def key_bytes_of(cache: KVCache) -> float:
    """Bytes of one key and value of one layer, scales included, from a cache of rows that hold equally many tokens."""
    slots = sum(kv_slots(pattern, length) for length in cache.lengths for pattern in cache.config.patterns)
    return cache.nbytes / slots if slots else 0.0


def stored(decoder: Network) -> dict[str, int]:
    """Bytes of the weights by what they are kept as, the most first: "int4", "int8", "bf16" where they are packed.

    Of others it is their dtype. Whatever has one dimension, norms and biases, is left out.
    """
    sizes: dict[str, int] = {}
    for _, weight in _weights(decoder):
        if isinstance(weight, PackedWeight):
            kind = weight.kind.removesuffix("m")
        elif weight.dim() > 1:
            kind = str(weight.dtype).removeprefix("torch.")
        else:
            continue
        sizes[kind] = sizes.get(kind, 0) + weight.nbytes
    return dict(sorted(sizes.items(), key=lambda size: -size[1]))


def kinds_of(decoder: Network) -> tuple[Kind, Kind]:
    """What is multiplied in the linear maps, and in attention."""
    sizes: dict[Kind, int] = {}
    for _, weight in _weights(decoder):
        if isinstance(weight, PackedWeight):
            kind: Kind = "bf16" if weight.kind == "bf16" else "int8"
        else:
            kind = "float32" if weight.dtype == torch.float32 else "bf16"
        sizes[kind] = sizes.get(kind, 0) + weight.nbytes
    linear = max(sizes, key=lambda kind: sizes[kind])
    return linear, "float32" if linear == "float32" else "bf16"


def _weights(decoder: Network) -> Iterator[tuple[str, Weight]]:
    """Every weight by its name."""
    if isinstance(decoder, FusedDecoder):
        yield from decoder.parts.items()
        return
    yield from decoder.named_parameters()
    yield from decoder.named_buffers()
    for name, module in decoder.named_modules():
        packed = vars(module).get("weight")
        if isinstance(packed, PackedWeight):
            yield f"{name}.weight", packed


def _experts_met(moe: MoEConfig | None, n_tokens: float) -> float:
    """Share of a mixture's experts that at least one of `n_tokens` is sent to, on average.

    >>> [round(_experts_met(MoEConfig(n_experts=8, top_k=2), n), 3) for n in (1, 8, 512)]
    [0.25, 0.9, 1.0]
    """
    if moe is None:
        return 1.0
    chance = moe.top_k / moe.n_experts
    met: float = 1 - (1 - chance) ** n_tokens
    return met * _experts_met(moe.expert, n_tokens * chance / met)


def _layer_operations(config: ModelConfig) -> int:
    """Operations a token in all layers' linear maps, 2 per multiply-add; norms and biases, a thousandth, count too."""
    ends = config.vocab_size * config.dim * (1 if config.tied_embeddings else 2)
    return 2 * (n_active_parameters(config) - ends)


def _pairs(config: ModelConfig, depth: int, n_tokens: int) -> Iterator[int]:
    """(query, key) pairs of `n_tokens` after `depth` others, of each layer."""
    counted = {p: p.visible_pairs(depth + n_tokens) - p.visible_pairs(depth) for p in set(config.patterns)}
    return (counted[pattern] for pattern in config.patterns)


def _attention_operations(config: ModelConfig, depth: int, n_tokens: int) -> float:
    return 4.0 * config.n_heads * config.head_dim * sum(_pairs(config, depth, n_tokens))
