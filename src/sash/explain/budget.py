"""Memory and arithmetic of a model at any length, with its windows and without them.

Two kinds of factor are kept apart. The attention operator gains what its pairs shrink by: 2.29 for Mistral 7B at 16,384
tokens. The whole model gains less, because its linear layers do the same work either way: 1.15 there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.explain.labels import table
from sash.network.config import ModelConfig
from sash.network.shapes import n_active_parameters, n_parameters, parameter_shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What reading a sequence takes, in all layers together.

    Attributes:
        kv_bytes: bytes of the keys and values that must be held after the last token.
        pairs: (query, key) pairs that one head computes, summed over layers.
        attention_flops: floating-point operations on these pairs, all heads: q.k and p.v.
        linear_flops: those of the layers' linear maps; the same with and without windows.
    """

    kv_bytes: int
    pairs: int
    attention_flops: int
    linear_flops: int

    @property
    def flops(self) -> int:
        """Operations of the layers: attention and linear maps."""
        return self.attention_flops + self.linear_flops

    def to_json(self) -> dict[str, int]:
        """Fields as in the class, and `flops`."""
        return {
            "kv_bytes": self.kv_bytes,
            "pairs": self.pairs,
            "attention_flops": self.attention_flops,
            "linear_flops": self.linear_flops,
            "flops": self.flops,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A model's cost for one sequence, with full attention everywhere and with its windows.

    Attributes:
        n_tokens: tokens of the sequence.
        itemsize: bytes of one number of the cache.
        windows: the window of each layer; None where it is full.
        full: cost if every layer saw everything.
        windowed: cost with the model's windows and pins.
    """

    n_tokens: int
    itemsize: int
    windows: tuple[int | None, ...]
    full: Cost
    windowed: Cost

    def factors(self) -> dict[str, float]:
        """How many times more full attention takes: of the cache, of pairs, of the whole model's operations."""
        return {
            "kv": self.full.kv_bytes / self.windowed.kv_bytes,
            "pairs": self.full.pairs / self.windowed.pairs,
            "model": self.full.flops / self.windowed.flops,
        }

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class, and `factors`."""
        return {
            "n_tokens": self.n_tokens,
            "itemsize": self.itemsize,
            "windows": list(self.windows),
            "full": self.full.to_json(),
            "windowed": self.windowed.to_json(),
            "factors": self.factors(),
        }


def budget(config: ModelConfig, n_tokens: int, itemsize: int = 2) -> Budget:
    """What one sequence of `n_tokens` costs.

    Keys are counted as the mechanisms need them: a windowed layer holds its slots from the first token on, a full one
    a key a token. `network.sizing` says what the cache allocates for that.

    Raises:
        UsageError: no tokens, or numbers of no bytes.

    >>> from sash.explain.presets import PRESETS
    >>> mistral = PRESETS["mistral-7b"]
    >>> budget(mistral, 32_768).windowed.kv_bytes // 2**20, budget(mistral, 32_768).factors()["kv"]
    (512, 8.0)
    >>> {name: round(factor, 2) for name, factor in budget(mistral, 16_384).factors().items()}
    {'kv': 4.0, 'pairs': 2.29, 'model': 1.15}
    """
    if n_tokens < 1:
        raise UsageError(f"a budget needs 1 token or more; got {n_tokens}")
    if itemsize < 1:
        raise UsageError(f"a number takes 1 byte or more; got {itemsize}")
    everything = tuple(replace(pattern, window=None, pins=0, dilation=1) for pattern in config.patterns)
    return Budget(
        n_tokens=n_tokens,
        itemsize=itemsize,
        windows=config.windows,
        full=_cost(config, everything, n_tokens, itemsize),
        windowed=_cost(config, config.patterns, n_tokens, itemsize),
    )


def _cost(config: ModelConfig, patterns: tuple[AttentionPattern, ...], n_tokens: int, itemsize: int) -> Cost:
    capacities = [pattern.capacity() for pattern in patterns]
    keys = sum(n_tokens if capacity is None else capacity for capacity in capacities)
    counted = {pattern: pattern.visible_pairs(n_tokens) for pattern in set(patterns)}
    pairs = sum(counted[pattern] for pattern in patterns)
    return Cost(
        kv_bytes=2 * keys * config.n_kv_heads * config.head_dim * itemsize,
        pairs=pairs,
        attention_flops=4 * config.n_heads * config.head_dim * pairs,
        linear_flops=n_tokens * linear_flops(config),
    )


def linear_flops(config: ModelConfig) -> int:
    """Operations a token in the linear maps of all layers, 2 per multiply-add; of experts only those chosen.

    Embedding and output head are left out: reading a prompt needs the head for its last token only.

    >>> from sash.explain.presets import PRESETS
    >>> linear_flops(PRESETS["mistral-7b"]) // 32 // 10**6
    436
    """
    matrices = sum(
        prod(shape)
        for name, shape in parameter_shapes(config).items()
        if name.startswith("layers.") and len(shape) == 2
    )
    idle = n_parameters(config) - n_active_parameters(config)
    return 2 * (matrices - idle)


def draw_budget(result: Budget, name: str = "") -> str:
    """The budget as a table for people."""
    full, windowed, factors = result.full, result.windowed, result.factors()
    sizes = sorted({window for window in result.windows if window is not None})
    windows = ", ".join(f"W={size:,} in {result.windows.count(size)}" for size in sizes) or "no window in any"
    title = f"{name + ': ' if name else ''}{result.n_tokens:,} tokens, {windows} of {len(result.windows)} layers"
    rows = [
        ["", "full", "windowed", "full / windowed"],
        ["KV cache", binary(full.kv_bytes), binary(windowed.kv_bytes), f"{factors['kv']:.2f}x"],
        ["attention pairs, a head", f"{full.pairs:,}", f"{windowed.pairs:,}", f"{factors['pairs']:.2f}x"],
        [
            "attention FLOPs",
            decimal(full.attention_flops),
            decimal(windowed.attention_flops),
            f"{factors['pairs']:.2f}x",
        ],
        ["linear layers' FLOPs", decimal(full.linear_flops), decimal(windowed.linear_flops), "1.00x"],
        ["whole model's FLOPs", decimal(full.flops), decimal(windowed.flops), f"{factors['model']:.2f}x"],
    ]
    return "\n".join([title, *table(rows, right=[False, True, True, True])])


def binary(n_bytes: int) -> str:
    """Bytes for people, in units of 1,024.

    >>> binary(512 * 2**20), binary(3), binary(1536)
    ('512.0 MiB', '3 B', '1.5 KiB')
    """
    size, units = float(n_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def decimal(count: int) -> str:
    """A count for people, in units of 1,000.

    >>> decimal(16_384 * 435_000_000), decimal(7)
    ('7.13 T', '7')
    """
    size, units = float(count), ["", "K", "M", "G", "T", "P", "E", "Z"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{count}" if not units[0] else f"{size:,.2f} {units[0]}"
