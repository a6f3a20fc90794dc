"""What generation gives back: the text, and an account of what the model could see while it wrote."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sash.engine.request import FinishReason, Token
from sash.explain.audit import Audit
from sash.explain.reach import cone
from sash.explain.visible_keys import Beside
from sash.network.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the next token can see of the `length` tokens before it and itself, from the patterns alone.

    Attributes:
        length: tokens of the sequence so far.
        direct: tokens that at least one layer sees through its window.
        pinned: tokens that are visible only because they are pinned.
        global_seen: tokens that are visible only because they are global, or the last token is and sees the log.
        relayed: tokens that reach it through deeper layers only.
        out_of_reach: tokens that no path of layers can carry to it.
        windowed_layers: how many layers have a window; the others see all.
        window: the largest window; None where no layer has one.
        held: tokens that the smallest window lost and that pins hold in sight of its layers.
        summarised: tokens of which only summaries are shown.
    """

    length: int
    direct: int
    pinned: int
    relayed: int
    out_of_reach: int
    windowed_layers: int
    window: int | None
    held: int = 0
    global_seen: int = 0
    summarised: int = 0

    @staticmethod
    def of(config: ModelConfig, length: int, pinned: Sequence[int] = (), seers: Sequence[int] = ()) -> View:
        """The view from the end of a sequence of `length` tokens.

        `pinned` are the positions that are flagged to stay, where the patterns pin by flag; `seers` those that are
        global.

        A pin is read by every later token, so it is never out of reach; neither is anything that a pin has seen,
        which the first positions' own past makes nothing.
        """
        by_flag = any(pattern.pin_by == "flag" for pattern in config.patterns)
        flagged = sorted({at for at in (*pinned, *seers) if at < length}) if by_flag else []
        drawn = by_flag or config.hierarchy is not None
        counts = _drawn_counts(config, length, pinned, seers) if drawn else (*_counts(config, length), 0, 0)
        backs = [pattern.reach_back or 0 for pattern in config.patterns if pattern.window is not None]
        outside = max(0, length - 1 - min(backs)) if backs else 0
        pins = max(pattern.pins for pattern in config.patterns)
        return View(
            length=length,
            direct=counts[0],
            pinned=counts[1],
            relayed=counts[2],
            out_of_reach=length - sum(counts),
            windowed_layers=sum(window is not None for window in config.windows),
            window=config.window,
            held=bisect_left(flagged, outside) if by_flag else min(pins, outside),
            global_seen=counts[3],
            summarised=counts[4],
        )

    @staticmethod
    def of_reading(config: ModelConfig, length: int, in_sight: int, n_lead: int = 0) -> View:
        """The view from the end of a text that is read by overlapping windows: what was not read again is out.

        Args:
            config: the model.
            length: tokens of the text so far.
            in_sight: tokens of the last reading.
            n_lead: those of them that were read again for being pinned.
        """
        return View(
            length=length,
            direct=in_sight - n_lead,
            pinned=n_lead,
            relayed=0,
            out_of_reach=length - in_sight,
            windowed_layers=sum(window is not None for window in config.windows),
            window=config.window,
            held=n_lead,
        )


def _counts(config: ModelConfig, length: int) -> tuple[int, int, int]:
    """Tokens that are direct, pinned and relayed, where the first are pinned."""
    full = any(window is None for window in config.windows)
    back = max(pattern.reach_back or 0 for pattern in config.patterns)
    direct = length if full else min(length, back + 1)
    pinned = min(max(pattern.pins for pattern in config.patterns), length - direct)
    reached = length if config.reach is None else min(length, config.reach + 1)
    return direct, pinned, max(0, reached - direct - max(0, pinned - (length - reached)))


def _drawn_counts(
    config: ModelConfig, length: int, pinned: Sequence[int], seers: Sequence[int]
) -> tuple[int, int, int, int, int]:
    """The same where some are flagged, and what is seen for being global: such tokens relay what they have seen.

    Last, what only summaries show.
    """
    if not length:
        return 0, 0, 0, 0, 0
    flags = [[at for at in flagged if at < length] for flagged in (pinned, seers)]
    beside = Beside(hierarchy=config.hierarchy)
    seen = cone(config.patterns, length, pinned_positions=flags[0], global_positions=flags[1], beside=beside).counts()
    return seen["direct"], seen["pinned"], seen["relay"], seen["global"], seen["summarised"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """How an answer was made.

    Attributes:
        prompt_tokens: tokens read for this answer; in a session only the new ones.
        completion_tokens: tokens written.
        read_seconds: from the start to the end of the prompt.
        first_token_seconds: from the start to the first token written.
        write_seconds: from the first token written to the last.
        view: what the last token could see.
        kv_dtype: what keys and values are kept as; "int8" has a scale a token and head.
        kv_bytes: bytes of keys and values held for the sequence, their scales included.
        kv_bytes_full: bytes that a cache of every token would hold, in the same numbers.
        forced_window: a window that the user forced on the model (an ablation); None where it is the model's own.
        tokens_read: tokens that went through the network. Windows that overlap read tokens again, and pass those over
            that nothing could see any more, so it may be more or less than were asked for and written.
        overlap: new tokens of each reading, where windows overlap; None where they roll.
        drafted_tokens: tokens that were guessed before they were written, right or wrong.
        accepted_tokens: those of them that were right.
    """

    prompt_tokens: int
    completion_tokens: int
    read_seconds: float
    first_token_seconds: float
    write_seconds: float
    view: View
    kv_dtype: str
    kv_bytes: int
    kv_bytes_full: int
    forced_window: int | str | None = None
    tokens_read: int = 0
    overlap: int | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def read_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.read_seconds if self.read_seconds else 0.0

    @property
    def write_speed(self) -> float:
        """Tokens a second after the first."""
        return (self.completion_tokens - 1) / self.write_seconds if self.write_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, speeds included."""
        return {**asdict(self), "read_speed": self.read_speed, "write_speed": self.write_speed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """An answer.

    Attributes:
        text: what was written, without the stop string or end-of-text token that ended it.
        token_ids: every token written, the one that ended it included.
        finish_reason: "stop" (end of text, or a stop string), "length" (max_tokens), "cancelled" or "error".
        logprobs: of each token written, with alternatives, if asked for.
        stats: how it was made.
        audit: what the first and the last token written could know of the parts of the prompt, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[Token, ...] | None
    stats: Statistics
    audit: tuple[Audit, Audit] | None = None


def full_cache_bytes(config: ModelConfig, length: int, itemsize: int, scale_bytes: int = 0) -> int:
    """Bytes of a cache that keeps the keys and values of all `length` tokens in every layer, to the token."""
    return 2 * config.n_layers * length * config.n_kv_heads * (config.head_dim * itemsize + scale_bytes)
