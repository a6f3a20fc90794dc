"""The `window` object: what a request may ask of the window, and what an answer says the model could see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sash.attention.pattern import AttentionPattern
from sash.engine.lanes import Lane, lane_config
from sash.errors import PinsError, UsageError, WindowError
from sash.explain.spans import Spans
from sash.explain.visible_keys import Flagged
from sash.network.config import ModelConfig
from sash.network.hierarchy import Hierarchy
from sash.server.errors import too_long
from sash.server.fields import Pins, Window
from sash.server.prompt import Prompt
from sash.text.pins import PIN_ROLES, Contract
from sash.text.sight import Sight as FlaggedSight

LEAST_ROOM = 64
"""Pins that a lane has room for at least; beyond that the next power of two, so that requests share lanes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the last token of a sequence can know of.

    Attributes:
        n_tokens: tokens of the sequence.
        direct: positions that the window of at least one layer shows to it.
        pinned: positions that a layer shows to it only because they are pinned.
        relayed: positions that only deeper layers can bring to it.
        lost: positions that nothing brings to it.
    """

    n_tokens: int
    direct: Spans
    pinned: Spans
    relayed: Spans
    lost: Spans

    @staticmethod
    def of(
        patterns: Sequence[AttentionPattern],
        n_tokens: int,
        pins: Sequence[range] = (),
        seers: Sequence[range] = (),
        hierarchy: Hierarchy | None = None,
    ) -> Sight:
        """The last of `n_tokens` tokens, through layers with these patterns, where `pins` are flagged to stay.

        `seers` are global; what is seen for that counts as pinned; what a `hierarchy` of summaries shows, as
        relayed.

        Layer by layer from the output down: what is reached is all that any position reached so far can see.
        """
        pinned = Spans.of((run.start, run.stop) for run in pins)
        is_global = Spans.of((run.start, run.stop) for run in seers).within(0, n_tokens)
        flags = Flagged(n=n_tokens, pinned=pinned, is_global=is_global, hierarchy=hierarchy)
        last = Spans.points([n_tokens - 1])
        direct, held, reached = Spans(), Spans(), last
        for pattern in reversed(patterns):
            direct |= flags.window_keys(pattern, last)
            held |= flags.pin_keys(pattern, last) | flags.global_keys(pattern, last)
            reached = flags.keys(pattern, reached)
        held = held - direct
        every = Spans.of([(0, n_tokens)])
        return Sight(
            n_tokens=n_tokens,
            direct=direct,
            pinned=held,
            relayed=reached - direct - held,
            lost=every - reached - direct - held,
        )

    def counts(self, first: int = 0, end: int | None = None) -> dict[str, int]:
        """Positions of each kind from `first` to `end`; they add up to all there are."""
        end = self.n_tokens if end is None else end
        kinds = {"direct": self.direct, "pinned": self.pinned, "relayed": self.relayed, "out_of_reach": self.lost}
        return {name: len(spans.within(first, end)) for name, spans in kinds.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The window that a request is read through.

    Attributes:
        config: the model with that window.
        lane: what the engine is told.
        pins: positions that stay.
        seers: positions that are global; those after the prompt are to be written.
    """

    config: ModelConfig
    lane: Lane
    pins: tuple[range, ...] = ()
    seers: tuple[range, ...] = ()

    def n_pins(self, length: int) -> int:
        """Positions of a sequence of `length` tokens that stay, each counted once."""
        first = _own_pins(self.config)
        return len(
            Spans.of(
                [(0, min(first, length)), *((run.start, min(run.stop, length)) for run in (*self.pins, *self.seers))]
            )
        )

    def sight(self, length: int) -> Sight:
        """What the last of `length` tokens can know of."""
        return Sight.of(self.config.patterns, length, self.pins, self.seers, self.config.hierarchy)

    def account(self, length: int, reuse: str, cached: int) -> dict[str, Any]:
        """What the model could see when `length` tokens were known, as answers say it."""
        size = self.config.window
        n_windowed = sum(window is not None for window in self.config.windows)
        first_visible = 0 if size is None else max(0, length - size)
        counts = self.sight(length).counts()
        gone = Spans.of([(0, first_visible)]) - self.sight(length).pinned
        return {
            "size": size,
            "layers": self.config.n_layers,
            "windowed_layers": n_windowed,
            "first_visible": first_visible,
            "evicted": len(gone),
            "pinned": counts["pinned"],
            "relayed": counts["relayed"],
            "out_of_reach": counts["out_of_reach"],
            "reuse": reuse,
            "cached_tokens": cached,
        }


def own_frame(config: ModelConfig) -> Frame:
    """The model as it is."""
    return Frame(config=config, lane=Lane(None, 0))


def frame(config: ModelConfig, asked: Window | None, prompt: Prompt, n_written: int | None = None) -> Frame:
    """The window that a request asks for.

    Args:
        config: the model.
        asked: the request's `window`.
        prompt: what is to be read.
        n_written: tokens to be written at most, where the request says.

    Raises:
        WindowError: a window larger than the model's.
        PinsError: pins that cannot be.
        UsageError: a rule that is none, or that names nothing.
        ApiError: 400, a longer prompt than the window, where the request forbids sliding.
    """
    asked = asked or Window()
    size, n_prompt = _smaller(config, asked.size), len(prompt.ids)
    narrowed = config.with_window(size) if size is not None else config
    _check_annexes(narrowed, asked)
    # Another lane has no pins of its own: those of the model are told to it.
    own = _own_pins(config)
    pins = _pins(asked.pins, narrowed, own, prompt) if asked.pins else ()
    if not pins and (size is not None or asked.global_) and own:
        pins = (range(min(own, n_prompt)),)
    seers = _seers(asked, narrowed, pins, prompt, n_written) if asked.global_ else ()
    n_pins = len(set().union(*pins, *seers))
    if asked.overflow == "error" and narrowed.window is not None and n_prompt > narrowed.window:
        message = (
            f"the prompt has {n_prompt} tokens and the window {narrowed.window}: send"
            ' "window": {"overflow": "slide"} to read it with the sliding window'
        )
        raise too_long(message, n_prompt, narrowed.window)
    lane = Lane(size, _room(narrowed, n_pins), bool(seers))
    if lane.own:
        return own_frame(config)
    return Frame(config=lane_config(config, lane), lane=lane, pins=pins, seers=seers)


def _check_annexes(config: ModelConfig, asked: Window) -> None:
    """Refuse what cannot be beside summaries and what is brought back."""
    if asked.global_ and config.n_annex:
        raise UsageError("this server remembers what left the window in its own way: leave out window.global")
    block = 0 if config.hierarchy is None else config.hierarchy.block
    if any(pattern.window < block for pattern in config.patterns if pattern.window is not None and pattern.annex):
        raise WindowError(f"what leaves the window is summed up in blocks of {block} tokens: window.size is no smaller")


def _own_pins(config: ModelConfig) -> int:
    """The first positions that the model itself keeps."""
    return max(pattern.pins if pattern.pin_by == "first" else 0 for pattern in config.patterns)


def _smaller(config: ModelConfig, size: int | None) -> int | None:
    """The size as the engine takes it: None where it changes nothing."""
    if size is None:
        return None
    largest = config.window if all(window is not None for window in config.windows) else config.context or None
    if largest is not None and size > largest:
        raise WindowError(
            f"window.size can only be made smaller: this model sees {largest} tokens, {size} were asked for"
        )
    return None if config.with_window(size).windows == config.windows else size


def _room(config: ModelConfig, n_pins: int) -> int:
    """Pins that the lane has room for: few different numbers, for each is a lane of its own."""
    if not n_pins:
        return 0
    smallest = min(window for window in config.windows if window is not None)
    if n_pins > smallest:
        raise PinsError(f"{n_pins} pinned tokens do not fit a window of {smallest}: pin fewer, or shorter messages")
    return min(smallest, max(LEAST_ROOM, 1 << (n_pins - 1).bit_length()))


def _pins(asked: Pins, config: ModelConfig, own: int, prompt: Prompt) -> tuple[range, ...]:
    """The positions to pin, as few runs in order: what is asked for, and the model's own first ones."""
    messages = prompt.messages or ()
    for index in asked.messages or ():
        if index >= len(messages):
            raise PinsError(f"window.pins.messages names message {index}, and there are {len(messages)}, from 0")
    rules = [role for role in asked.roles or () if role in PIN_ROLES] if messages else []
    rules += [f"message:{index + 1}" for index in sorted(set(asked.messages or ()))]
    contract = Contract.of(
        list(dict.fromkeys([*rules, *(asked.rules or ())])),
        first=max(asked.first or 0, own if rules or asked.rules or asked.first else 0),
        budget=asked.budget,
        overflow=asked.overflow or "error",
    )
    if not contract:
        return ()
    names = ("window.pins.budget", "window.pins.overflow")
    return contract.fit(prompt.choose(contract), _budget(contract, config), names)


def _budget(contract: Contract, config: ModelConfig) -> int:
    """Tokens that may be flagged: as many as the smallest window has keys, where nothing else is said."""
    smallest = min((window for window in config.windows if window is not None), default=None)
    if smallest is None:
        raise PinsError("pins hold tokens back from sliding out, and this model has no window: give window.size too")
    return smallest if contract.budget is None else contract.room(config.windows)


def _seers(
    asked: Window, config: ModelConfig, pins: tuple[range, ...], prompt: Prompt, n_written: int | None
) -> tuple[range, ...]:
    """The positions that are global."""
    sight = FlaggedSight.of(asked.global_ or [])
    if sight.answer and n_written is None:
        raise PinsError("what is written is global only up to a length: say max_tokens")
    chosen = sight.choose(
        prompt.tokenizer, prompt.ids, n_written or 0, prompt.messages, spans=lambda: prompt.spans, **prompt.options
    )
    contract = Contract(budget=None if asked.pins is None else asked.pins.budget)
    return sight.fit(chosen, pins, _budget(contract, config), "window.pins.budget")
