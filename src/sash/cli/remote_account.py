"""The account under an answer that a server wrote: its own times, and what it tells of the window. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sash.cli.answer_account import speed_row
from sash.cli.instruction_words import leaving_words
from sash.cli.server_client import Answer
from sash.errors import ServerRefusedError
from sash.explain.audit import Audit
from sash.explain.instruction import Leaving
from sash.explain.labels import table


@dataclass(slots=True)
class Clock:
    """When an answer was asked for, began, and ended; seconds of one clock, 0 where it has not come to it."""

    asked: float
    began: float = 0.0
    ended: float = 0.0


def prompt_tokens(answer: Answer) -> int:
    """Tokens of the prompt, those that the server still had included; 0 where it does not tell."""
    return _count(answer.usage, "prompt_tokens")


def cached_tokens(answer: Answer) -> int:
    """Tokens of the prompt that the server had read before."""
    details = answer.usage.get("prompt_tokens_details")
    return _count(details, "cached_tokens") if isinstance(details, dict) else 0


def draw(answer: Answer, clock: Clock) -> str:
    """Statistics as lines for people; what the server does not tell is taken from the clock, or left out."""
    read, written = prompt_tokens(answer) - cached_tokens(answer), _count(answer.usage, "completion_tokens")
    first = max(0.0, clock.began - clock.asked)
    read_seconds = _seconds(answer.timings, "prompt_ms", first)
    write_seconds = _seconds(answer.timings, "predicted_ms", max(0.0, clock.ended - clock.began))
    speeds = table(
        [
            speed_row("prompt", read, read_seconds, read / read_seconds if read_seconds else 0.0),
            speed_row("answer", written, write_seconds, (written - 1) / write_seconds if write_seconds else 0.0),
        ],
        right=[False, True, True, True],
    )
    lines = [
        speeds[0] + (f"   first token {first:.2f} s" if clock.began else ""),
        f"{speeds[1]}   {answer.finish_reason}",
    ]
    words = view_words(answer)
    return "\n".join(lines + ([f"window  {words}"] if words else []))


def view_words(answer: Answer) -> str:
    """What the last token saw, as far as the server tells.

    >>> answer = Answer(usage={"total_tokens": 600}, window={"size": 512, "layers": 18, "windowed_layers": 15,
    ...                 "evicted": 88, "pinned": 0, "relayed": 88, "out_of_reach": 0})
    >>> view_words(answer)
    '512 of 600 visible directly in 15 of 18 layers, all in 3; 88 only through deeper layers'
    """
    window, length = answer.window, _count(answer.usage, "total_tokens")
    layers, windowed = _count(window, "layers"), _count(window, "windowed_layers")
    if not window or not length:
        return ""
    size = _count(window, "size")
    if not size or not windowed:
        return f"none: all {length:,} tokens visible directly"
    where = f"in {windowed} of {layers} layers"
    gone = _count(window, "evicted")
    if not gone:
        return f"all {length:,} visible directly ({size:,} {where})"
    words = [f"{length - gone:,} of {length:,} visible directly {where}"]
    if windowed < layers:
        words[0] += f", all in {layers - windowed}"
    told = {"pinned": "pinned", "relayed": "only through deeper layers", "out_of_reach": "out of reach"}
    words += [f"{_count(window, name):,} {text}" for name, text in told.items() if _count(window, name)]
    return "; ".join(words)


def overflow_note(answer: Answer) -> str | None:
    """One line for a conversation that is longer than the window; None if it is not."""
    gone, length = _count(answer.window, "evicted"), _count(answer.usage, "total_tokens")
    if not gone:
        return None
    layers, windowed = _count(answer.window, "layers"), _count(answer.window, "windowed_layers")
    pinned = _count(answer.window, "pinned")
    kept = f"{pinned:,} are pinned" if pinned else "--pins N keeps the first N in sight"
    return f"{gone:,} of {length:,} tokens slid out of direct sight in {windowed} of {layers} layers; {kept}"


def leaving_note(answer: Answer) -> str | None:
    """One line for an instruction that is not all in sight any more, where the server was asked for it; else None.

    Raises:
        ServerRefusedError: the server tells something else.
    """
    told = answer.window.get("leaving")
    if told is None:
        return None
    try:
        return leaving_words(Leaving.of_json(told))
    except (KeyError, TypeError, ValueError) as error:
        raise ServerRefusedError("the server tells nothing that can be read of what left the window") from error


def audits(answer: Answer) -> tuple[Audit, Audit] | None:
    """What the first and the last token written could know of the prompt, where the server was asked for it.

    Raises:
        ServerRefusedError: the server tells something else.
    """
    told = answer.window.get("audit")
    if told is None:
        return None
    try:
        return Audit.of_json(told["first"]), Audit.of_json(told["last"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServerRefusedError("the server sent an audit that cannot be read") from error


def _count(told: dict[str, Any], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _seconds(timings: dict[str, Any], name: str, otherwise: float) -> float:
    value = timings.get(name)
    return value / 1000 if isinstance(value, int | float) else otherwise
