"""How many key/value slots a sequence holds, and the bytes that they take. Needs no torch: `plan` runs on this.

A windowed layer holds a ring of fixed size from the first token on. A layer that must grow takes blocks, each at most
as large as all before it together, so that a slot once written never moves: nothing is copied to make room.
"""

from __future__ import annotations

from typing import Literal, get_args

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.network.config import ModelConfig

FIRST_BLOCK = 1024
LARGEST_BLOCK = 8192
LOG_BLOCK = 256
"""Slots of a block of a log (`sash.network.log`); blocks begin at multiples of it."""

KV = Literal["auto", "bf16", "int8"]
"""What keys and values are kept as: as they were computed, as bfloat16, or as int8 with a scale a token and head."""

KV_BYTES: dict[str, tuple[int, int]] = {"float32": (4, 0), "float16": (2, 0), "bfloat16": (2, 0), "int8": (1, 4)}
"""Bytes of one number of the cache, and of the scale of one key or value of a head."""


def check_kv(kv: str, option: str = "kv") -> None:
    """Refuse what is not one of `KV`; `option` is what the message calls it.

    Raises:
        UsageError: no such choice.
    """
    if kv not in get_args(KV):
        raise UsageError(f"{option} {kv!r} is not known: use auto, bf16 or int8")


def kv_numbers(kv: str, dtype: str) -> str:
    """What the cache's numbers are where the network computes in `dtype`.

    Args:
        kv: one of `KV`.
        dtype: by its long name, e.g. "float32".

    Raises:
        UsageError: no such choice.

    >>> kv_numbers("auto", "float32"), kv_numbers("bf16", "float32"), kv_numbers("int8", "bfloat16")
    ('float32', 'bfloat16', 'int8')
    """
    check_kv(kv)
    return {"auto": dtype, "bf16": "bfloat16", "int8": "int8"}[kv]


def block_sizes(context: int) -> tuple[int, ...]:
    """Slots of each block of a growing layer that holds `context` tokens: the shortest list that covers them.

    The total doubles with every block until blocks hold 8,192 slots; from there on it grows by 8,192. Fewer slots
    than the last block has are idle.

    Args:
        context: tokens of the sequence, 0 or more.

    Raises:
        UsageError: a negative context.

    >>> block_sizes(0), block_sizes(1), block_sizes(1024), block_sizes(1025)
    ((), (1024,), (1024,), (1024, 1024))
    >>> block_sizes(30_000)
    (1024, 1024, 2048, 4096, 8192, 8192, 8192)
    >>> sum(block_sizes(32_768))
    32768
    """
    if context < 0:
        raise UsageError(f"a context counts tokens, so it is 0 or more; got {context}")
    sizes: list[int] = []
    total = 0
    while total < context:
        sizes.append(next_block(total))
        total += sizes[-1]
    return tuple(sizes)


def next_block(total: int) -> int:
    """Slots of the block of a growing layer that follows `total` slots; see `block_sizes`."""
    return min(max(total, FIRST_BLOCK), LARGEST_BLOCK)


def next_log_block(position: int) -> int:
    """Slots of the block of a log whose first one holds `position`: up to the next multiple of `LOG_BLOCK`.

    >>> next_log_block(0), next_log_block(512), next_log_block(1000)
    (256, 256, 24)
    """
    return LOG_BLOCK - position % LOG_BLOCK


def log_bytes(config: ModelConfig, tokens: int, itemsize: int, scale_bytes: int = 0) -> int:
    """Bytes of the logs of one sequence that can go back `tokens` tokens: those and the window before, in blocks.

    >>> from sash.network.config import LayerConfig
    >>> windowed = LayerConfig(pattern=AttentionPattern(window=100))
    >>> small = ModelConfig(architecture="small", vocab_size=9, dim=8, n_heads=2, n_kv_heads=1, head_dim=4,
    ...                     hidden_dim=8, layers=(windowed, windowed))
    >>> log_bytes(small, 1000, itemsize=2) == 2 * 2 * 4 * 2 * (100 + 1000 + 2 * LOG_BLOCK)
    True
    """
    slots = sum(pattern.reach_back + tokens + 2 * LOG_BLOCK + 1 for pattern in config.patterns if pattern.reach_back)
    return 2 * slots * config.n_kv_heads * (config.head_dim * itemsize + scale_bytes)


def block_slots(context: int) -> int:
    """The sum of `block_sizes`, without listing them.

    >>> all(block_slots(n) == sum(block_sizes(n)) for n in (0, 1, 1024, 1025, 2049, 8192, 8193, 16385, 99_999))
    True
    """
    if context <= LARGEST_BLOCK:
        return sum(block_sizes(context))
    return -(-context // LARGEST_BLOCK) * LARGEST_BLOCK


def kv_slots(pattern: AttentionPattern, context: int) -> int:
    """Slots that one layer holds for a sequence of `context` tokens.

    A windowed layer holds all its slots from the first token on, and a log where global tokens see one; a full layer
    whole blocks.

    >>> kv_slots(AttentionPattern(window=4096, pins=4), 100), kv_slots(AttentionPattern(window=4096, pins=4), 10**7)
    (4100, 4100)
    >>> kv_slots(AttentionPattern(), 5000)
    8192
    >>> kv_slots(AttentionPattern(window=4096, pins=4, pin_by="flag", global_tokens=True), 10_000)
    14340
    """
    capacity = pattern.capacity()
    if context < 0 or capacity is None:
        return block_slots(context)
    return capacity + (-(-context // LOG_BLOCK) * LOG_BLOCK if pattern.holds_global else 0)


def kv_bytes(config: ModelConfig, context: int, itemsize: int, scale_bytes: int = 0) -> int:
    """Bytes of the keys and values that one sequence of `context` tokens holds in all layers.

    For windowed layers without pins this is 2 x layers x W x n_kv_heads x (head_dim x itemsize + scale_bytes).

    Args:
        config: the model.
        context: tokens of the sequence.
        itemsize: bytes of one number of the cache: 4 for float32, 2 for bfloat16, 1 for int8.
        scale_bytes: bytes of the scale of one key or value of a head: 4 for int8; see `KV_BYTES`.

    >>> from sash.network.config import LayerConfig
    >>> windowed = LayerConfig(pattern=AttentionPattern(window=4096))
    >>> mistral = ModelConfig(architecture="mistral", vocab_size=32000, dim=4096, n_heads=32, n_kv_heads=8,
    ...                       head_dim=128, hidden_dim=14336, layers=(windowed,) * 32)
    >>> kv_bytes(mistral, context=10_000_000, itemsize=2) == 512 * 2**20
    True
    >>> kv_bytes(mistral, 10_000_000, *KV_BYTES["int8"]) / 2**20
    264.0
    """
    slots = sum(kv_slots(layer.pattern, context) for layer in config.layers)
    return 2 * slots * config.n_kv_heads * (config.head_dim * itemsize + scale_bytes)
