"""A prompt as the window is told of it: its tokens, what it renders, and which of its parts are looked after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sash.engine.request import Recalled
from sash.errors import UsageError
from sash.explain.audit import Audit, Part, audit
from sash.explain.instruction import Instruction, leaving, of_marks, of_messages
from sash.explain.prompt_parts import prompt_parts
from sash.explain.visible_keys import Beside
from sash.network.config import ModelConfig
from sash.server.conversation import MAX_RENDERED, spans_of
from sash.server.errors import bad_field
from sash.server.fields import Window
from sash.text.pins import Contract
from sash.text.tokenizer import Tokenizer

MAX_PARTS = 2048
"""Parts of a prompt that one audit tells of."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt.

    Attributes:
        tokenizer: of the model.
        ids: its tokens.
        messages: the conversation that it renders; None for plain text.
        options: those of `encode_chat` with which it was rendered.
    """

    tokenizer: Tokenizer
    ids: Sequence[int]
    messages: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def spans(self) -> list[range]:
        """Where each message lies."""
        return spans_of(self.tokenizer, self.messages or (), list(self.ids), **self.options)

    def choose(self, contract: Contract) -> dict[str, tuple[range, ...]]:
        """The tokens that each rule of a contract names.

        Raises:
            UsageError: one names nothing.
        """
        return contract.choose(
            self.tokenizer, self.ids, self.messages, spans=lambda: self.spans, **self.options
        )  # fmt: skip

    def parts(self, rules: Sequence[str] | None) -> tuple[Part, ...]:
        """The parts that rules name; None for every sentence.

        Raises:
            UsageError: a rule that names nothing.
            ApiError: 400, more parts than an audit tells of, or a conversation that takes too long to be cut.
        """
        found: Sequence[Part]
        if rules is not None:
            found = [(words, span) for words, spans in self.choose(_rules(rules)).items() for span in spans]
        elif len(self.ids) * len(self.messages or ()) > MAX_RENDERED:
            raise bad_field("the conversation is too long to audit all of it: name its parts", "window.audit")
        else:
            found = prompt_parts(self.tokenizer, self.ids, self.messages, **self.options)
        if len(found) > MAX_PARTS:
            message = f"the prompt has {len(found):,} sentences, and an audit tells of {MAX_PARTS:,}: name its parts"
            raise bad_field(message, "window.audit")
        return tuple(found)

    def instructions(self, rules: Sequence[str] | None) -> tuple[Instruction, ...]:
        """What rules name as instructions; None for the system prompt, or else the first message of the user.

        Raises:
            UsageError: a rule that names nothing.
        """
        if rules is not None:
            chosen = self.choose(_rules(rules))
            return tuple(
                of_marks(self.tokenizer, self.ids, [("", span) for spans in chosen.values() for span in spans])
            )
        found = of_messages(self.tokenizer, self.ids, self.messages or (), **self.options)
        return () if found is None else (found,)


def _rules(rules: Sequence[str]) -> Contract:
    return Contract.of(list(rules))


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """What an answer tells of the parts of its prompt.

    Attributes:
        n_prompt: tokens of the prompt.
        parts: what an audit tells of; None for no audit.
        instructions: what is looked after; None for nothing.
    """

    n_prompt: int = 0
    parts: tuple[Part, ...] | None = None
    instructions: tuple[Instruction, ...] | None = None

    @staticmethod
    def of(asked: Window | None, prompt: Prompt) -> Looks:
        """What a request's `window` asks for.

        Raises:
            UsageError, ApiError: it cannot be told.
        """
        audited, watched = (asked.audit, asked.watch) if asked is not None else (None, None)
        return Looks(
            n_prompt=len(prompt.ids),
            parts=prompt.parts(None if audited is True else audited) if audited else None,
            instructions=prompt.instructions(None if watched is True else watched) if watched else None,
        )

    def __bool__(self) -> bool:
        return self.parts is not None or self.instructions is not None

    def account(
        self,
        config: ModelConfig,
        pins: Sequence[range],
        seers: Sequence[range],
        n_output: int,
        recalled: tuple[Recalled | None, Recalled | None] = (None, None),
    ) -> dict[str, Any]:
        """`audit`, of the first and the last token written, and `leaving`, as far as they were asked for.

        `recalled` is what was brought back for these two tokens, as far as that is known.
        """
        pinned, is_global = ([at for span in spans for at in span] for spans in (pins, seers))
        told: dict[str, Any] = {}

        def audited(parts: Sequence[Part], at: int) -> Audit:
            beside = Beside.of(config, recalled[at > self.n_prompt])
            return audit(
                config.patterns, at, parts, pinned_positions=pinned, global_positions=is_global, beside=beside
            )  # fmt: skip

        if self.parts is not None:
            ends = {"first": self.n_prompt, "last": self.n_prompt + max(0, n_output - 1)}
            told["audit"] = {name: audited(self.parts, at).to_json() for name, at in ends.items()}
        if self.instructions is not None:
            found = (
                leaving(config, one, at, pinned, audited)
                for at in (self.n_prompt, self.n_prompt + n_output)
                for one in self.instructions
            )
            gone = next((one for one in found if one is not None), None)
            told["leaving"] = None if gone is None else gone.to_json()
        return told


def refuse_rules(asked: Window | None) -> None:
    """Refuse what names parts of a prompt, for a request that has several.

    Raises:
        UsageError: something does.
    """
    if asked is not None and (
        asked.audit or asked.watch or asked.global_ or (asked.pins is not None and asked.pins.rules)
    ):
        raise UsageError("window.pins.rules, audit, watch and global tell of one prompt: send the others apart")
