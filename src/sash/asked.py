"""A prompt with what is asked of it beside an answer: what is pinned, and what is audited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sash.completion import Completion
from sash.engine.overlap import Overlap
from sash.explain.audit import Audit, Part, audit, audit_reading
from sash.explain.prompt_parts import marked_parts, prompt_parts
from sash.explain.visible_keys import Beside
from sash.network.config import ModelConfig
from sash.text.pins import Contract
from sash.text.sight import Sight
from sash.text.tokenizer import Tokenizer

Marks = str | Sequence[str | range]
"""Parts of a prompt, in the words of `sash.text.pins` or as ranges of positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A prompt.

    Attributes:
        ids: its tokens.
        pins: those that stay visible to all later ones.
        seers: those that are global: they stay, and see all that came before. Those after the prompt are to be written.
        parts: what an audit tells of; None for no audit.
    """

    ids: list[int]
    pins: tuple[range, ...] = ()
    seers: tuple[range, ...] = ()
    parts: tuple[Part, ...] | None = None

    @property
    def pinned(self) -> list[int]:
        """Positions of the pins."""
        return [at for span in self.pins for at in span]

    @property
    def global_positions(self) -> list[int]:
        """Positions that are global."""
        return [at for span in self.seers for at in span]

    def ends(self, completion: Completion) -> tuple[int, int]:
        """Where the first and the last token of an answer to it are written."""
        first = len(self.ids)
        return first, first + max(0, len(completion.token_ids) - 1)

    @property
    def n_flagged(self) -> int:
        """Slots that pins and global tokens take together."""
        return len(set().union(*self.pins, *self.seers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is asked of every prompt of a call.

    Attributes:
        contract: what is pinned.
        sight: what is global, in the words that pin; "answer" is what is written.
        audit: whether an audit is wanted, of every sentence or of the parts that are named.
    """

    contract: Contract
    sight: Sight = field(default_factory=Sight)
    audit: bool | Marks = False

    @staticmethod
    def of(
        pins: Marks, budget: int | None, overflow: str, audit: bool | Marks, config: ModelConfig, sight: Marks = ()
    ) -> Wishes:
        """Checked; the first positions that a model pins anyway are a part of the contract.

        Raises:
            UsageError, PinsError: what cannot be.
        """
        held = max(pattern.pins for pattern in config.patterns)
        contract = Contract.of(pins, budget=budget, overflow=overflow)
        contract = replace(contract, first=held) if contract or sight else contract
        return Wishes(contract=contract, sight=Sight.of(sight), audit=audit)

    def ask(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        ids: list[int],
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        n_written: int = 0,
        **options: Any,
    ) -> Asked:
        """A prompt with its pins and parts; `messages` and `options` are those of `encode_chat`.

        `n_written` tokens are written after it at most.

        Raises:
            UsageError: something is named that is not in it.
            PinsError: more pins than the budget, or pins where no layer has a window.
        """
        pins: tuple[range, ...] = ()
        if self.contract:
            chosen = self.contract.choose(tokenizer, ids, messages, **options)
            pins = self.contract.fit(chosen, self.contract.room(config.windows))
        parts: list[Part] | None = None
        if self.audit is True:
            parts = prompt_parts(tokenizer, ids, messages, **options)
        elif self.audit is not False:
            marks = [self.audit] if isinstance(self.audit, str) else self.audit
            parts = marked_parts(tokenizer, ids, marks, messages, **options)
        seers: tuple[range, ...] = ()
        if self.sight:
            seers = self.sight.fit(
                self.sight.choose(tokenizer, ids, n_written, messages, **options),
                pins,
                self.contract.room(config.windows),
            )
        return Asked(ids=ids, pins=pins, seers=seers, parts=None if parts is None else tuple(parts))


def audit_at(
    config: ModelConfig,
    overlap: Overlap | None,
    position: int,
    parts: Sequence[Part],
    pinned: Sequence[int] = (),
    seers: Sequence[int] = (),
    *,
    leads: bool = False,
    recalled: Sequence[Sequence[range]] | None = None,
) -> Audit:
    """What the token written at `position` can know of `parts`, through windows that roll or overlap.

    `recalled` are the positions that each layer has brought back for it, as far as that is known.
    """
    if overlap is None:
        beside = Beside.of(config, recalled)
        return audit(
            config.patterns, position, parts, pinned_positions=pinned, global_positions=seers, beside=beside
        )  # fmt: skip
    in_sight = overlap.in_sight(position, pinned, leads=leads)
    return audit_reading(config.patterns, position, in_sight, parts, pinned)
