"""A word of warning when an instruction leaves the window: which sentence, what still carries it, and the cure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sash.explain.audit import Audit, Part
from sash.explain.instruction import Instruction, Leaving, leaving
from sash.explain.labels import numbers
from sash.network.config import ModelConfig
from sash.text.pins import BUDGET_SHARE


def leaving_note(
    config: ModelConfig,
    instruction: Instruction,
    position: int,
    pinned: Sequence[int] = (),
    audited: Callable[[Sequence[Part], int], Audit] | None = None,
) -> str | None:
    """One line if some layer does not show all of an instruction to the token written at `position`; else None.

    `audited` tells what that token can know where windows do not roll.
    """
    gone = leaving(config, instruction, position, pinned, audited)
    return None if gone is None else leaving_words(gone)


def leaving_words(gone: Leaving) -> str:
    """What leaves, what still brings it, and what would keep it, in one line."""
    where = f"{gone.n_layers - len(gone.layers)} of {gone.n_layers} layers"
    return f"{gone.sentence}, of {gone.instruction}, is out of the window of {where}: {_carried(gone)}; {_cure(gone)}"


def _carried(gone: Leaving) -> str:
    """What still brings a part to the token."""
    if gone.layers:
        several = len(gone.layers) > 1
        return f"layer{'s' if several else ''} {numbers(gone.layers)} still see{'' if several else 's'} it"
    if gone.verdict == "out":
        return "nothing brings it to the answer"
    if gone.verdict == "summarised":
        return "only summaries of it reach the answer"
    if gone.verdict == "recalled":
        return "recall has brought it back, and may leave it out again"
    if gone.verdict == "relay" and gone.moves is not None:
        return f"it reaches the answer through deeper layers only, passed on {gone.moves} times or more"
    return "a part of it reaches the answer"


def _cure(gone: Leaving) -> str:
    if gone.size > gone.window:
        return f"it is longer than the window of {gone.window:,}: use a larger --window, or say it again"
    budget = f" --pin-budget {gone.size}" if gone.size > gone.window // BUDGET_SHARE else ""
    return f"--pin {gone.pin}{budget} keeps it, or a larger --window, or say it again"
