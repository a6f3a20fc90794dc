"""Instructions that leave the window: which sentence, what still carries it, and what would keep it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from sash.explain.audit import Audit, Part, Verdict, audit
from sash.explain.visible_keys import Beside
from sash.network.config import ModelConfig
from sash.text.spans import content_spans, message_spans, sentences

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A sentence of an instruction that some layer no longer shows whole to the token that is written.

    Attributes:
        sentence: what it says, as far as it is shown.
        instruction: the name of the instruction.
        pin: the words that pin the instruction.
        size: tokens of the instruction.
        window: of the layer with the smallest.
        n_layers: layers of the model.
        layers: numbers of those that still show all of the sentence.
        verdict: what its tokens are; see `PartAudit`.
        moves: the fewest moves from position to position that bring it; None where nothing does.
    """

    sentence: str
    instruction: str
    pin: str
    size: int
    window: int
    n_layers: int
    layers: tuple[int, ...]
    verdict: Verdict
    moves: int | None

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class."""
        return asdict(self) | {"layers": list(self.layers)}

    @staticmethod
    def of_json(told: Mapping[str, Any]) -> Leaving:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        texts = {name: str(told[name]) for name in ("sentence", "instruction", "pin")}
        counts = {name: int(told[name]) for name in ("size", "window", "n_layers")}
        if told["verdict"] not in get_args(Verdict):
            raise ValueError(told["verdict"])
        moves = None if told["moves"] is None else int(told["moves"])
        layers = tuple(map(int, told["layers"]))
        return Leaving(**texts, **counts, layers=layers, verdict=told["verdict"], moves=moves)  # type: ignore[arg-type]


def of_messages(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    messages: Sequence[Mapping[str, Any]],
    *,
    stand_in: bool = False,
    **options: Any,
) -> Instruction | None:
    """The system prompt of a conversation, or else the first message of the user.

    Args:
        tokenizer: the model's.
        ids: the conversation, or as much of its beginning as is known.
        messages: up to the first of the user at least.
        stand_in: whether the user's message only stands for the one that was read, which ends the prompt.
        **options: those of `encode_chat` with which it was rendered.
    """
    first_turn = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    if first_turn is None:
        return None
    has_system = messages[0]["role"] == "system"
    at = 0 if has_system else first_turn
    begun = messages[: first_turn + 1]
    content = content_spans(tokenizer, begun, **options)[at]
    if content is None:
        return None
    name, pin = ("the system prompt", "system") if has_system else ("the first message", "user:1")
    size = len(message_spans(tokenizer, begun, **options)[at])
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


def leaving(
    config: ModelConfig,
    instruction: Instruction,
    position: int,
    pinned: Sequence[int] = (),
    audited: Callable[[Sequence[Part], int], Audit] | None = None,
) -> Leaving | None:
    """The first sentence of an instruction that some layer does not show whole to the token written at `position`.

    `pinned` are the positions that are flagged to stay; `audited` tells what that token can know of parts where
    windows do not roll.
    """
    parts = [part for part in instruction.sentences if part[1].stop <= position]
    if audited is None:
        seen = audit(config.patterns, position, parts, pinned_positions=pinned, beside=Beside.of(config))
    else:
        seen = audited(parts, position)
    gone = next((part for part in seen.parts if len(part.layers) < config.n_layers), None)
    if gone is None:
        return None
    return Leaving(
        sentence=gone.name,
        instruction=instruction.name,
        pin=instruction.pin,
        size=instruction.size,
        window=min(window for window in config.windows if window is not None),
        n_layers=config.n_layers,
        layers=gone.layers,
        verdict=gone.verdict,
        moves=None if gone.hops is None else gone.hops[0],
    )
