"""Who sees whom: the one predicate that every mask, kernel bound, test and picture derives from.

`window` counts keys, the query's own included: the query at position i sees keys j with i - W < j <= i.
Nothing here needs torch. `allows` is written with broadcasting operators only, so its arguments may be Python
integers, numpy arrays or torch tensors of any broadcastable shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sash.attention.pairs import count_pairs
from sash.errors import ConfigError, PinsError, WindowError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMeta:
    """What a pattern may know of tokens: scalars or arrays that broadcast against each other.

    Attributes:
        position: absolute position in its sequence; -1 marks an empty slot, which nobody sees.
        sequence: which sequence (document, row) the token belongs to; tokens of two sequences never see each other.
        pinned: flagged to stay visible to all later queries; only read by patterns with `pin_by="flag"`.
        is_global: flagged as a global token (Longformer); only read by patterns with `global_tokens`.
        annexed: brought beside the window from outside of it, at the position that it stands for; only read by patterns
            with an `annex`. No token of a text is by itself.
    """

    position: Any
    sequence: Any = 0
    pinned: Any = False
    is_global: Any = False
    annexed: Any = False

    def reshape(self, *shape: int) -> TokenMeta:
        """The same tokens with every array field reshaped, e.g. to (T, 1) for queries; scalars stay."""

        def shaped(field: Any) -> Any:
            return field.reshape(*shape) if hasattr(field, "reshape") else field

        return TokenMeta(
            position=shaped(self.position),
            sequence=shaped(self.sequence),
            pinned=shaped(self.pinned),
            is_global=shaped(self.is_global),
            annexed=shaped(self.annexed),
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
            annexed=taken(self.annexed),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPattern:
    """Which keys a query may see in one layer.

    Attributes:
        window: keys a query sees, its own included; None for all. With `causal=False` it counts both sides and the
            query's own key, so it is odd: 513 is what Longformer configurations call 512.
        pins: how many positions of a sequence stay visible beyond the window (attention sinks, system prompts).
        pin_by: which positions those are: the "first" n of the sequence, or up to n tokens that carry a "flag".
        global_tokens: whether flagged tokens see all and are seen by all (Longformer, section 3.1). Causal, they see
            all that came before, and with pins by flag they take the slots of pins: see `holds_global`.
        global_reach: how many tokens back a causal global query sees, itself included; None for all. Keys that are
            pinned or global it sees from anywhere.
        dilation: distance between neighbouring keys of the window (Longformer, figure 2c); 1 for none.
        causal: whether a query sees only keys at its own position and before.
        annex: slots beside ring and pins for keys that are brought in from outside of the window
            (`sash.network.annex`); every later query sees those that are filled.
        pin_reach: how far from the last pin queries are rotated at most against pins, where a window was forced on a
            layer that was trained to see farther; None for as far as the window could be.
    """

    window: int | None = None
    pins: int = 0
    pin_by: Literal["first", "flag"] = "first"
    global_tokens: bool = False
    dilation: int = 1
    causal: bool = True
    annex: int = 0
    global_reach: int | None = None
    pin_reach: int | None = None

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
        if self.pin_reach is not None and self.pins and self.pin_reach <= (self.reach_back or 0):
            raise PinsError(f"a reach of {self.pin_reach} to pins has to be larger than the window's")
        if self.pins and self.window is None:
            raise PinsError("pins hold tokens back from sliding out, and a full pattern lets none slide out")
        if self.pins and not self.causal:
            raise PinsError("pins are for causal windows; flag global tokens for an encoder")
        if self.window is not None and self.pins > self.window:
            raise PinsError(f"{self.pins} pins do not fit a window of {self.window}: use at most {self.window}")
        if self.annex < 0:
            raise ConfigError(f"an annex counts slots, so it is 0 or more; got {self.annex}")
        if self.annex and (self.window is None or not self.causal):
            raise ConfigError("an annex holds what a causal window lost, and this pattern loses nothing")
        if self.annex and self.holds_global:
            raise ConfigError("an annex would show global queries twice what they see in the log: use one of the two")
        if self.global_reach is not None:
            if not self.causal or not self.global_tokens or self.window is None:
                raise ConfigError("global_reach bounds what global tokens of causal windows see")
            if self.pins and self.pin_by == "first":
                raise ConfigError("global_reach goes with pins by flag, or with none")
            if self.global_reach < (self.window - 1) * self.dilation + 1:
                raise ConfigError(
                    f"global_reach is no smaller than the window of {self.window}; got {self.global_reach}"
                )

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
            far = query.is_global if self.global_reach is None else query.is_global & (distance < self.global_reach)
            near = near | far | key.is_global
        if self.annex:
            near = near | key.annexed
        return same & near

    @property
    def holds_global(self) -> bool:
        """Whether global tokens live in a rolling buffer: their keys in slots of pins, what their queries see in a log.

        So does a causal pattern with pins by flag. The ring keeps W slots and the pins', whatever the length; global
        tokens and pinned ones share the pins' slots, and meet queries at the clamped distance. A global query sees its
        window, all pins, and what is older in the log behind the ring, there at the true distance; a ring of such a
        pattern always has a log. Without pins a causal pattern is Longformer's to the letter, in a cache that grows.
        """
        return self.global_tokens and self.causal and self.pins > 0 and self.pin_by == "flag"

    def flagged(self, pinned: Any, is_global: Any) -> Any:
        """Of tokens with these flags, which take a slot of a pin where pins are chosen by flag."""
        return pinned | is_global if self.holds_global else pinned

    def is_pin(self, key: TokenMeta) -> Any:
        """Whether each key is one that stays visible beyond the window.

        >>> AttentionPattern(window=8, pins=2).is_pin(TokenMeta(position=1))
        True
        """
        if not self.pins:
            return key.position != key.position
        chosen = self.flagged(key.pinned, key.is_global) if self.pin_by == "flag" else key.position < self.pins
        pinned = chosen & (key.position >= 0)
        return pinned & (key.annexed == 0) if self.annex else pinned

    def clamp(self, position: Any, last_pin: Any) -> Any:
        """The position at which a query is rotated against pinned keys: never farther than the window could be.

        As long as the last pin is within the window, all is as it was; from then on the pins keep the distance that
        they had at that moment, so that rotary embedding never sees a distance that the model was not trained on.
        For the first n positions this is StreamingLLM's re-indexing inside the cache (arXiv 2309.17453, section 3.2);
        with a `pin_reach` true distances are kept as far as that.

        >>> pattern = AttentionPattern(window=8, pins=2)
        >>> [pattern.clamp(position, last_pin=1) for position in (3, 9, 1000)]
        [3, 9, 9]
        >>> AttentionPattern(window=8, pins=2, pin_reach=500).clamp(1000, last_pin=1)
        501
        """
        limit = last_pin + ((self.reach_back or 0) + 1 if self.pin_reach is None else self.pin_reach)
        farther = position > limit
        return position * (1 - farther) + limit * farther if isinstance(position, int) else position.minimum(limit)

    @property
    def reach_back(self) -> int | None:
        """The largest distance to a key of the window itself; None for all.

        >>> AttentionPattern(window=4096).reach_back
        4095
        >>> AttentionPattern(window=3, dilation=2).reach_back
        4
        """
        return None if self.window is None else self.arm * self.dilation

    @property
    def arm(self) -> int:
        """Keys of a window on one side of the query, its own not included.

        >>> AttentionPattern(window=4).arm, AttentionPattern(window=5, causal=False).arm
        (3, 2)
        """
        window = self.window or 1
        return window - 1 if self.causal else window // 2

    def capacity(self) -> int | None:
        """Slots that attention needs for any length of a sequence, pins and annex included; None where they must grow.

        A causal query flagged global sees all that came before, so such a pattern has no bound; but where a log has
        what only global queries see, `holds_global`, the others need no more than window and pins.

        >>> AttentionPattern(window=4096, pins=4).capacity()
        4100
        >>> AttentionPattern(window=4096, pins=64, pin_by="flag", global_tokens=True).capacity()
        4160
        >>> AttentionPattern(window=4096, global_tokens=True).capacity() is None
        True
        """
        if self.window is None or not self.causal or (self.global_tokens and not self.holds_global):
            return None
        return (self.window - 1) * self.dilation + 1 + self.pins + self.annex

    def visible_pairs(
        self, n_tokens: int, global_positions: Sequence[int] = (), pinned_positions: Sequence[int] = ()
    ) -> int:
        """(query, key) pairs that one head computes for a sequence of `n_tokens`: the pairs that `allows` allows.

        Time depends on the number of flagged positions only, not on `n_tokens` or the window.

        Args:
            n_tokens: tokens of the sequence.
            global_positions: positions flagged global; like `allows`, only patterns with `global_tokens` read them.
            pinned_positions: positions flagged to stay; only patterns with `pin_by="flag"` read them. Positions that
                the sequence does not reach count nothing.

        Raises:
            UsageError: a negative `n_tokens`.
            PinsError: more positions flagged to stay than the pattern has pins.

        >>> AttentionPattern().visible_pairs(16_384), AttentionPattern(window=4096).visible_pairs(16_384)
        (134225920, 58722304)
        >>> AttentionPattern(window=3, causal=False, global_tokens=True).visible_pairs(5, global_positions=[0])
        19
        """
        return count_pairs(self, n_tokens, global_positions, pinned_positions)

    def flops(
        self,
        n_tokens: int,
        n_heads: int,
        head_dim: int,
        global_positions: Sequence[int] = (),
        pinned_positions: Sequence[int] = (),
    ) -> int:
        """Floating-point operations of the attention operator of one layer: q.k and p.v, 2 per multiply-add.

        >>> AttentionPattern(window=4096).flops(16_384, n_heads=32, head_dim=128) // 10**9
        962
        """
        return 4 * n_heads * head_dim * self.visible_pairs(n_tokens, global_positions, pinned_positions)


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
