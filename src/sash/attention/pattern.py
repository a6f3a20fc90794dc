"""Who sees whom: the one predicate that every mask, kernel bound, test and picture derives from.

`window` counts keys, the query's own included: the query at position i sees keys j with i - W < j <= i.
Nothing here needs torch. `allows` is written with broadcasting operators only, so its arguments may be Python
integers, numpy arrays or torch tensors of any broadcastable shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sash.errors import ConfigError, PinsError, WindowError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMeta:
    """What a pattern may know of tokens: scalars or arrays that broadcast against each other.

    Attributes:
        position: absolute position in its sequence; -1 marks an empty slot, which nobody sees.
        sequence: which sequence (document, row) the token belongs to; tokens of two sequences never see each other.
        pinned: flagged to stay visible to all later queries; only read by patterns with `pin_by="flag"`.
        is_global: flagged as a global token (Longformer); only read by patterns with `global_tokens`.
    """

    position: Any
    sequence: Any = 0
    pinned: Any = False
    is_global: Any = False

    def reshape(self, *shape: int) -> TokenMeta:
        """The same tokens with every array field reshaped, e.g. to (T, 1) for queries; scalars stay."""

        def shaped(field: Any) -> Any:
            return field.reshape(*shape) if hasattr(field, "reshape") else field

        return TokenMeta(
            position=shaped(self.position),
            sequence=shaped(self.sequence),
            pinned=shaped(self.pinned),
            is_global=shaped(self.is_global),
        )

    def take(self, index: Any) -> TokenMeta:
        """The tokens at `index` (a slice or index array) of one-dimensional fields; scalars stay."""

        def taken(field: Any) -> Any:
            return field[index] if hasattr(field, "__getitem__") else field

        return TokenMeta(
            position=taken(self.position),
            sequence=taken(self.sequence),
            pinned=taken(self.pinned),
            is_global=taken(self.is_global),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPattern:
    """Which keys a query may see in one layer.

    Attributes:
        window: keys a query sees, its own included; None for all. With `causal=False` it counts both sides and the
            query's own key, so it is odd: 513 is what Longformer configurations call 512.
        pins: how many positions of a sequence stay visible beyond the window (attention sinks, system prompts).
        pin_by: which positions those are: the "first" n of the sequence, or up to n tokens that carry a "flag".
        global_tokens: whether flagged tokens see all and are seen by all (Longformer, section 3.1).
        dilation: distance between neighbouring keys of the window (Longformer, figure 2c); 1 for none.
        causal: whether a query sees only keys at its own position and before.
    """

    window: int | None = None
    pins: int = 0
    pin_by: Literal["first", "flag"] = "first"
    global_tokens: bool = False
    dilation: int = 1
    causal: bool = True

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise WindowError(f"a window of {self.window} sees nothing: use 1 or more keys, or 'full'")
        if not self.causal and self.window is not None and self.window % 2 == 0:
            raise WindowError(
                f"a symmetric window counts both sides and the token itself, so it is odd; got {self.window}"
            )
        if self.dilation < 1:
            raise ConfigError(f"dilation is a distance of 1 or more; got {self.dilation}")
        if self.dilation > 1 and self.window is None:
            raise ConfigError("dilation spreads a window, and this pattern has none")
        if self.pin_by not in ("first", "flag"):
            raise ConfigError(f"pin_by is 'first' or 'flag'; got {self.pin_by!r}")
        if self.pins < 0:
            raise PinsError(f"pins counts tokens, so it is 0 or more; got {self.pins}")
        if self.pins and self.window is None:
            raise PinsError("pins hold tokens back from sliding out, and a full pattern lets none slide out")
        if self.pins and not self.causal:
            raise PinsError("pins are for causal windows; flag global tokens for an encoder")
        if self.window is not None and self.pins > self.window:
            raise PinsError(f"{self.pins} pins do not fit a window of {self.window}: use at most {self.window}")

    def allows(self, query: TokenMeta, key: TokenMeta) -> Any:
        """Whether each query may see each key: a bool, or an array of the broadcast shape.

        >>> three = AttentionPattern(window=3)
        >>> [j for j in range(8) if three.allows(TokenMeta(position=5), TokenMeta(position=j))]
        [3, 4, 5]
        """
        distance = query.position - key.position
        same = (query.sequence == key.sequence) & (key.position >= 0) & (query.position >= 0)
        if self.causal:
            same = same & (distance >= 0)
        if self.window is None:
            return same
        if self.causal:
            near = distance < self.window * self.dilation
        else:
            half = self.window // 2 * self.dilation
            near = (distance <= half) & (distance >= -half)
        if self.dilation > 1:
            near = near & (distance % self.dilation == 0)
        if self.pins:
            near = near | (key.pinned if self.pin_by == "flag" else key.position < self.pins)
        if self.global_tokens:
            near = near | query.is_global | key.is_global
        return same & near

    @property
    def reach_back(self) -> int | None:
        """The largest distance to a key of the window itself; None for all.

        >>> AttentionPattern(window=4096).reach_back
        4095
        >>> AttentionPattern(window=3, dilation=2).reach_back
        4
        """
        if self.window is None:
            return None
        steps = self.window - 1 if self.causal else self.window // 2
        return steps * self.dilation

    def capacity(self) -> int | None:
        """Slots that a cache needs for any length of a sequence, pins included; None where it must grow.

        A causal query flagged global sees all that came before, so such a pattern has no bound.

        >>> AttentionPattern(window=4096, pins=4).capacity()
        4100
        """
        if self.window is None or not self.causal or self.global_tokens:
            return None
        return (self.window - 1) * self.dilation + 1 + self.pins

    def visible_pairs(self, n_tokens: int, n_global: int = 0) -> int:
        """(query, key) pairs that one head computes for a sequence of `n_tokens`; exact, in constant time.

        `n_global` global tokens are counted as standing at the positions where they cost most: outside every window.

        >>> AttentionPattern().visible_pairs(16_384), AttentionPattern(window=4096).visible_pairs(16_384)
        (134225920, 58722304)
        """
        n = n_tokens
        if self.window is None:
            return n * (n + 1) // 2 if self.causal else n * n
        pairs = _pairs_behind(n, self.window, self.dilation)
        if not self.causal:
            pairs = 2 * _pairs_behind(n, self.window // 2 + 1, self.dilation) - n
        if self.pins and self.pin_by == "first":
            pairs += sum(self._pairs_with_pin(n, pin) for pin in range(min(self.pins, n)))
        elif self.pins:
            beyond = max(0, n - self.window * self.dilation)
            pairs += self.pins * beyond
        if n_global:
            full = n if not self.causal else (n + 1) // 2
            pairs += n_global * 2 * max(0, full - self.window)
        return pairs

    def _pairs_with_pin(self, n: int, pin: int) -> int:
        """Queries of a sequence of n tokens that see position `pin` as a pin but not through the window."""
        later = n - 1 - pin
        through_window = min(later // self.dilation, (self.window or 1) - 1)
        return later - through_window

    def flops(self, n_tokens: int, n_heads: int, head_dim: int, n_global: int = 0) -> int:
        """Floating-point operations of the attention operator of one layer: q.k and p.v, 2 per multiply-add."""
        return 4 * n_heads * head_dim * self.visible_pairs(n_tokens, n_global)


def _pairs_behind(n: int, window: int, dilation: int) -> int:
    """Causal pairs of n tokens under a (dilated) window, own key included.

    >>> _pairs_behind(8, 4, 1), sum(min(i + 1, 4) for i in range(8))
    (26, 26)
    """
    return sum(max(0, n - step * dilation) for step in range(window)) if dilation > 1 else (
        n * (n + 1) // 2 - max(0, n - window) * (max(0, n - window) + 1) // 2
    )


def reach(patterns: tuple[AttentionPattern, ...]) -> int | None:
    """How far back a stack of layers can carry information, pins and globals aside; None for all.

    Mistral 7B's paper (section 2) rounds this product of 32 layers to 131K.

    >>> reach((AttentionPattern(window=4096),) * 32)
    131040
    """
    total = 0
    for pattern in patterns:
        back = pattern.reach_back
        if back is None:
            return None
        total += back
    return total
