"""The rolling buffer step by step: which slot holds the key and value of which token (Mistral 7B, figure 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sash.attention.pattern import AttentionPattern
from sash.errors import UnsupportedError, UsageError
from sash.explain.labels import numbers, padded, visible, widest

MOST_STEPS = 64
EMPTY = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The buffer after one token.

    Attributes:
        position: the token's position, from 0.
        slot: its slot in the ring; None for a pinned token.
        pin_slot: its slot among the pins; None for all others.
        evicted: the position that it overwrote; None where the slot was empty.
        ring: position in each slot that is shown; -1 for an empty one.
        pins: position in each pin slot; -1 for an empty one.
    """

    position: int
    slot: int | None
    pin_slot: int | None
    evicted: int | None
    ring: tuple[int, ...]
    pins: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class."""
        return {
            "position": self.position,
            "slot": self.slot,
            "pin_slot": self.pin_slot,
            "evicted": self.evicted,
            "ring": list(self.ring),
            "pins": list(self.pins),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingBuffer:
    """The buffer of one layer and sequence over time.

    Attributes:
        ring_size: slots of the ring; `Frame.ring` shows the first of them, which are all that the tokens touch.
        pins: slots beside the ring.
        labels: one a token, or empty to show positions.
        frames: one a token.
        layers: numbers, from 1, of the model's layers that hold such a buffer; empty where there is no model.
    """

    ring_size: int
    pins: int
    labels: tuple[str, ...]
    frames: tuple[Frame, ...]
    layers: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class."""
        return {
            "ring_size": self.ring_size,
            "pins": self.pins,
            "layers": list(self.layers),
            "labels": list(self.labels),
            "frames": [frame.to_json() for frame in self.frames],
        }


def rolling_buffer(
    pattern: AttentionPattern,
    n_tokens: int,
    *,
    labels: Sequence[str] = (),
    pinned_positions: Sequence[int] = (),
    layers: Sequence[int] = (),
) -> RollingBuffer:
    """What the buffer of a layer with `pattern` holds after each of `n_tokens` tokens, at most `MOST_STEPS`.

    Position i goes to slot i mod ring size; a pinned position goes to a slot of its own and leaves the ring's alone, as
    does a global one where pins hold those (`AttentionPattern.holds_global`): it counts among `pinned_positions`.

    Raises:
        UsageError: no tokens, more than can be drawn, labels that do not match, or more flags than pins.
        UnsupportedError: a pattern whose cache must grow.

    >>> buffer = rolling_buffer(AttentionPattern(window=4), 6)
    >>> buffer.frames[-1].ring, buffer.frames[-1].slot, buffer.frames[-1].evicted
    ((4, 5, 2, 3), 1, 1)
    """
    capacity = pattern.capacity()
    if capacity is None:
        raise UnsupportedError(
            "only a causal window has a rolling buffer; this layer keeps every token: add --window N"
        )
    if n_tokens < 1:
        raise UsageError(f"a rolling buffer needs 1 token or more; got {n_tokens}")
    if n_tokens > MOST_STEPS:
        raise UsageError(f"a rolling buffer is drawn for at most {MOST_STEPS} tokens; got {n_tokens:,}: give fewer")
    if labels and len(labels) != n_tokens:
        raise UsageError(f"{len(labels)} labels for {n_tokens} tokens: give one each, or none")
    by_flag = pattern.pin_by == "flag"
    pinned = sorted(set(pinned_positions)) if by_flag else list(range(pattern.pins))
    if len(pinned) > pattern.pins:
        raise UsageError(f"{len(pinned)} tokens are flagged as pins, and the pattern holds {pattern.pins}")
    ring_size = capacity - pattern.pins - pattern.annex
    return RollingBuffer(
        ring_size=ring_size,
        pins=pattern.pins,
        labels=tuple(visible(text) for text in labels),
        frames=tuple(_frames(n_tokens, ring_size, pattern.pins, pinned)),
        layers=tuple(layers),
    )


def _frames(n_tokens: int, ring_size: int, n_pins: int, pinned: Sequence[int]) -> Iterator[Frame]:
    """The buffer after each token; `pinned` are the positions that go to pin slots, in order."""
    ring = [EMPTY] * (ring_size if ring_size <= MOST_STEPS else n_tokens)
    pins = [EMPTY] * n_pins
    for position in range(n_tokens):
        pin_slot = pinned.index(position) if position in pinned else None
        slot = position % ring_size if pin_slot is None else None
        evicted = None
        if pin_slot is not None:
            pins[pin_slot] = position
        elif slot is not None:
            evicted = None if ring[slot] == EMPTY else ring[slot]
            ring[slot] = position
        yield Frame(
            position=position, slot=slot, pin_slot=pin_slot, evicted=evicted, ring=tuple(ring), pins=tuple(pins)
        )


def draw_rolling_buffer(buffer: RollingBuffer) -> str:
    """One row a token, one column a slot; the newest entry stands in brackets, what it overwrote at the end of its row.

    >>> print(draw_rolling_buffer(rolling_buffer(AttentionPattern(window=2, pins=1), 4)))
    Rolling buffer of 2 slots and 1 for pins: position i is kept in slot i mod 2, a pin in a slot of its own
      i  pin 0  slot 0  slot 1
      0  [0]    .       .
      1   0     .       [1]
      2   0     [2]      1
      3   0      2      [3]     1 slid out
    """
    shown = len(buffer.frames[0].ring)
    names = buffer.labels or tuple(str(frame.position) for frame in buffer.frames)
    heads = [f"pin {i}" for i in range(buffer.pins)] + [f"slot {i}" for i in range(shown)]
    columns = [max(widest([head]), widest(names) + 2) for head in heads]

    edge = max(3, len(str(len(buffer.frames) - 1)))

    def row(head: str, cells: Sequence[str], note: str = "") -> str:
        fields = [padded(cell, width) for cell, width in zip(cells, columns, strict=True)]
        return "  ".join([padded(head, edge, right=True), *fields, note]).rstrip()

    lines = [row("i", heads)]
    for frame in buffer.frames:
        held = [*frame.pins, *frame.ring]
        cells = ["." if p == EMPTY else f"[{names[p]}]" if p == frame.position else f" {names[p]}" for p in held]
        lines.append(
            row(str(frame.position), cells, "" if frame.evicted is None else f"{names[frame.evicted]} slid out")
        )
    slots = f"{buffer.ring_size:,} slots" + (f" and {buffer.pins} for pins" if buffer.pins else "")
    which = f" in layers {numbers(buffer.layers)}" if buffer.layers else ""
    title = f"Rolling buffer of {slots}{which}: position i is kept in slot i mod {buffer.ring_size:,}"
    title += ", a pin in a slot of its own" if buffer.pins else ""
    if buffer.ring_size > shown:
        lines.append(f"{buffer.ring_size - shown:,} more slots stay empty")
    return "\n".join([title, *lines])
