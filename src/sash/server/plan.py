"""What a request comes to: prompts, how to write, and how answers are written down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from sash.engine.grammar import Grammar
from sash.engine.request import Sequence, Token
from sash.sampling import SamplingParams
from sash.server.prompt import Looks
from sash.server.tools import Calling
from sash.server.window import Frame
from sash.server.writing import Part
from sash.text.tools import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a request comes to.

    Attributes:
        prompts: token ids of each prompt.
        n: answers for each prompt.
        params: how to write.
        frame: the window to read through.
        looks: what the first answer tells of the parts of its prompt.
        stream: whether to stream.
        wants_usage: whether a stream's account comes in a chunk of its own.
        progress: whether a stream tells how much of the prompt was read.
        continues: whether the text goes on the prompt's.
        prompt_logprobs: alternatives of each token of the prompt; None for nothing of the prompt.
        grammars: of each answer; empty for none.
        calling: the tools that may be called.
        session: the name to keep the end of the conversation under.
        headers: further headers of the answer.
    """

    prompts: tuple[tuple[int, ...], ...]
    params: SamplingParams
    frame: Frame
    looks: Looks = field(default_factory=Looks)
    n: int = 1
    stream: bool = False
    wants_usage: bool = False
    progress: bool = False
    continues: bool = False
    prompt_logprobs: int | None = None
    grammars: tuple[Grammar, ...] = ()
    calling: Calling = field(default_factory=Calling)
    session: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def n_answers(self) -> int:
        """Answers to all prompts."""
        return self.n * len(self.prompts)


@dataclass(slots=True, kw_only=True)
class Answer:
    """A whole answer, gathered from its parts.

    Attributes:
        index: which answer of the request.
        text: what it says.
        calls: the tools that it calls.
        tokens: those written, where their log-probabilities were asked for.
        reason: why it ended.
        sequence: how it was made.
    """

    index: int
    text: str
    calls: tuple[ToolCall, ...]
    tokens: list[Token]
    reason: str
    sequence: Sequence

    @staticmethod
    def of(parts: list[Part]) -> Answer:
        """An answer that has ended."""
        last = parts[-1]
        if last.ended is None:
            raise RuntimeError("an answer was taken for whole before its end")
        return Answer(
            index=last.index,
            text="".join(part.text for part in parts),
            calls=tuple(call for part in parts for call in part.calls),
            tokens=[token for part in parts for token in part.tokens],
            reason=last.reason,
            sequence=last.ended,
        )


class Shape(Protocol):
    """How a route writes its answers down. An answer's `index` counts through all prompts, `n` for each."""

    prefix: str
    whole_kind: str
    chunk_kind: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first choice of a streamed answer."""

    def pieces(self, part: Part) -> list[dict[str, Any]]:
        """What a step adds to a streamed answer, as choices; the last one with the reason for its end."""

    def choice(self, answer: Answer) -> dict[str, Any]:
        """A whole answer."""
