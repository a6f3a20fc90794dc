"""A word of warning when an instruction leaves the window: which sentence, what still carries it, and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sash.explain.audit import Part, PartAudit, audit
from sash.explain.labels import numbers
from sash.network.config import ModelConfig
from sash.text.pins import BUDGET_SHARE
from sash.text.spans import content_spans, message_spans, sentences

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sash.text.tokenizer import Tokenizer

HEAD = 4096
"""Tokens of a prompt that are kept to name a sentence of its beginning, where the prompt itself is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What a user wants followed.

    Attributes:
        name: "the system prompt", say.
        pin: the words that pin it.
        size: its tokens.
        sentences: its parts, in order.
    """

    name: str
    pin: str
    size: int
    sentences: tuple[Part, ...]


def of_messages(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    messages: Sequence[Mapping[str, str]],
    *,
    safe_prompt: bool = False,
    stand_in: bool = False,
) -> Instruction | None:
    """The system prompt of a conversation, or else the first message of the user.

    Args:
        tokenizer: the model's.
        ids: the conversation, or as much of its beginning as is known.
        messages: up to the first of the user at least.
        safe_prompt: as it was rendered.
        stand_in: whether the user's message only stands for the one that was read, which ends the prompt.
    """
    first_turn = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if first_turn is None:
        return None
    has_system = messages[0]["role"] == "system"
    at = 0 if has_system else first_turn
    begun = messages[: first_turn + 1]
    content = content_spans(tokenizer, begun, safe_prompt=safe_prompt)[at]
    if content is None:
        return None
    name, pin = ("the system prompt", "system") if has_system else ("the first message", "user:1")
    size = len(message_spans(tokenizer, begun, safe_prompt=safe_prompt)[at])
    if stand_in and not has_system:
        content = range(content.start, max(content.stop, len(ids)))
        size = len(content)
    return _named(tokenizer, ids, name, pin, content, size)


def of_marks(tokenizer: Tokenizer, ids: Sequence[int], marks: Sequence[Part]) -> list[Instruction]:
    """The parts that the user marked: names and tokens."""
    found = [
        _named(tokenizer, ids, "the instruction", f"{span.start}:{span.stop}", span) for _, span in marks
    ]  # fmt: skip
    return [instruction for instruction in found if instruction is not None]


def _named(
    tokenizer: Tokenizer, ids: Sequence[int], name: str, pin: str, span: range, size: int | None = None
) -> Instruction | None:
    said = sentences(tokenizer, ids, within=range(span.start, min(span.stop, len(ids))))
    parts = tuple((f"“{passage.text}”", passage.span) for passage in said)
    return Instruction(name=name, pin=pin, size=len(span) if size is None else size, sentences=parts) if parts else None


def leaving_note(
    config: ModelConfig, instruction: Instruction, position: int, pinned: Sequence[int] = ()
) -> str | None:
    """One line if some layer does not show all of an instruction to the token written at `position`; else None."""
    parts = [part for part in instruction.sentences if part[1].stop <= position]
    seen = audit(config.patterns, position, parts, pinned_positions=[at for at in pinned if at < position])
    gone = next((part for part in seen.parts if len(part.layers) < config.n_layers), None)
    if gone is None:
        return None
    where = f"{config.n_layers - len(gone.layers)} of {config.n_layers} layers"
    return (
        f"{gone.name}, of {instruction.name}, is out of the window of {where}: {_carried(gone)}; "
        f"{_cure(config, instruction)}"
    )


def _carried(part: PartAudit) -> str:
    """What still brings a part to the token."""
    if part.layers:
        return f"layer{'s' if len(part.layers) > 1 else ''} {numbers(part.layers)} still see it"
    if part.verdict == "out":
        return "nothing brings it to the answer"
    if part.verdict == "relay" and part.hops is not None:
        return f"it reaches the answer through deeper layers only, passed on {part.hops[0]} times or more"
    return "a part of it reaches the answer"


def _cure(config: ModelConfig, instruction: Instruction) -> str:
    smallest = min(window for window in config.windows if window is not None)
    if instruction.size > smallest:
        return f"it is longer than the window of {smallest:,}: use a larger --window, or say it again"
    budget = f" --pin-budget {instruction.size}" if instruction.size > smallest // BUDGET_SHARE else ""
    return f"--pin {instruction.pin}{budget} keeps it, or a larger --window, or say it again"
