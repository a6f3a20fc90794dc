"""Ways to read a prompt that is longer than the window, by name, all over the same weights; see `DESCRIPTIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sash.errors import UsageError, WindowError
from sash.evaluation.prompts import Trial
from sash.lm import LM

SINKS = 4
"""First tokens that are kept: what StreamingLLM keeps (arXiv 2309.17453)."""

OVERLAP = 4
"""Of overlapping windows, how many of the tokens of a reading are new: one in so many."""

SUMMARY = 64
"""Tokens of the smallest summary of a hierarchy, or a quarter of a window that is small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is read of a prompt, and how.

    Attributes:
        ids: the tokens.
        pins: those that stay visible.
        seers: those that see all that came before them; "answer" is what is written.
        budget: tokens that may be flagged; by default half of the smallest window.
    """

    ids: list[int]
    pins: tuple[range, ...] = ()
    seers: tuple[range | str, ...] = ()
    budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to read prompts.

    Attributes:
        name: see `DESCRIPTIONS`.
        lm: the model that reads.
        reading: what it reads of a prompt.
    """

    name: str
    lm: LM
    reading: Callable[[Trial], Reading]


def window_of(lm: LM, window: int | None = None) -> int:
    """The window that lengths and distances are told in: the one that is forced, or the model's own.

    Raises:
        WindowError: it has none, and none is forced.
    """
    size = lm.config.window if window is None else window
    if size is None:
        raise WindowError(f"{lm.name or 'the model'} has no window of its own: give one (--window N)")
    return size


def methods(lm: LM, names: Sequence[str], window: int | None = None) -> list[Method]:
    """Ways to read, in the order of their names.

    Args:
        lm: the model, with no forced window.
        names: which.
        window: forced in every layer; None leaves the model its own.

    Raises:
        UsageError: a name that is not known, or none at all.
        WindowError, PinsError: a window that cannot be, or none where one is needed.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise UsageError(f"{unknown[0]!r} is no method: use {', '.join(METHODS)}")
    if not names:
        raise UsageError(f"there are no methods to compare: use {', '.join(METHODS)}")
    size = window_of(lm, window)
    windowed = lm if window is None else lm.with_window(window)
    return [METHODS[name](name, lm, windowed, size) for name in dict.fromkeys(names)]


def _whole(trial: Trial) -> Reading:
    return Reading(ids=list(trial.ids))


def _full(name: str, lm: LM, windowed: LM, size: int) -> Method:
    full = all(window is None for window in lm.config.windows)
    return Method(name=name, lm=lm if full else lm.with_window("full"), reading=_whole)


def _own(name: str, lm: LM, windowed: LM, size: int) -> Method:
    return Method(name=name, lm=lm, reading=_whole)


def _window(name: str, lm: LM, windowed: LM, size: int) -> Method:
    return Method(name=name, lm=windowed, reading=_whole)


def _sinks(name: str, lm: LM, windowed: LM, size: int) -> Method:
    return Method(name=name, lm=windowed, reading=lambda trial: Reading(ids=list(trial.ids), pins=(range(SINKS),)))


def _pins(name: str, lm: LM, windowed: LM, size: int) -> Method:
    def reading(trial: Trial) -> Reading:
        return Reading(ids=list(trial.ids), pins=(range(SINKS), trial.span))

    return Method(name=name, lm=windowed, reading=reading)


def _truncate(name: str, lm: LM, windowed: LM, size: int) -> Method:
    return Method(name=name, lm=windowed, reading=lambda trial: Reading(ids=head_and_tail(trial, size)))


def _overlap(name: str, lm: LM, windowed: LM, size: int) -> Method:
    return Method(name=name, lm=windowed.with_overlap(max(1, size // OVERLAP)), reading=_whole)


def summarising(lm: LM, window: int | None) -> LM:
    """The model with windows, its first tokens and summaries of what left them."""
    block = max(1, min(SUMMARY, window_of(lm, window) // OVERLAP))
    return lm.with_window(window, SINKS).with_hierarchy(block=block)


def _hierarchy(name: str, lm: LM, windowed: LM, size: int) -> Method:
    own = None if windowed is lm else size
    return Method(name=name, lm=summarising(lm, own), reading=_whole)


def _recall(name: str, lm: LM, windowed: LM, size: int) -> Method:
    return Method(name=name, lm=windowed.with_recall(), reading=_whole)


def _global(name: str, lm: LM, windowed: LM, size: int) -> Method:
    smallest = min((window for window in windowed.config.windows if window is not None), default=size)

    def reading(trial: Trial) -> Reading:
        # A question and its answer may be longer than half of a small window, and nothing else is to be held.
        seers = (trial.question, "answer")
        return Reading(ids=list(trial.ids), pins=(range(SINKS),), seers=seers, budget=smallest)

    return Method(name=name, lm=windowed, reading=reading)


def head_and_tail(trial: Trial, window: int) -> list[int]:
    """The prompt without its middle, so that it and the answer fit a window: LongBench's baseline (arXiv 2308.14508).

    Raises:
        UsageError: a window that has no room beside the answer.
    """
    room = window - trial.n_answer
    if room < 2:
        raise UsageError(f"a window of {window} tokens leaves a prompt no room beside {trial.n_answer} of the answer")
    if len(trial.ids) <= room:
        return list(trial.ids)
    head = room // 2
    return [*trial.ids[:head], *trial.ids[len(trial.ids) - (room - head) :]]


METHODS: dict[str, Callable[[str, LM, LM, int], Method]] = {
    "full": _full,
    "own": _own,
    "window": _window,
    "sinks": _sinks,
    "pins": _pins,
    "truncate": _truncate,
    "overlap": _overlap,
    "global": _global,
    "hierarchy": _hierarchy,
    "recall": _recall,
}
"""What makes each: from its name, the model, the model with its windows, and their size."""

DESCRIPTIONS: dict[str, str] = {
    "full": "full attention in every layer: what the others are held against",
    "own": "the model as it is, with the windows and full layers that it was trained with",
    "window": "windows alone",
    "sinks": f"windows; the first {SINKS} tokens stay visible",
    "pins": f"windows; the first {SINKS} tokens and the passage that is asked for stay visible",
    "truncate": "the head and the tail of the prompt only, as many tokens as the window has keys",
    "overlap": f"windows that do not roll: they are read anew when a {OVERLAP}th of their tokens is new",
    "global": f"windows and the first {SINKS} tokens; the question and the answer see all that was read",
    "hierarchy": f"windows and the first {SINKS} tokens; summaries of what left, coarser with distance",
    "recall": "windows; what left is brought back, as much as the window holds, where it is wanted",
}
"""What each does."""
