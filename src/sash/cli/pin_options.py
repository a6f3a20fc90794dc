"""Options that say what stays in sight and what is looked after: pins, their budget, instructions, audits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer

from sash.errors import UsageError
from sash.text.pins import Contract

Pin = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="WHAT",
        help="Keep in sight: system, user:1, message:3, text:WORDS or tokens START:END; repeatable.",
    ),
]
Budget = Annotated[
    int | None,
    typer.Option("--pin-budget", metavar="N", help="Tokens that --pin may keep; half of the smallest window."),
]
PinOverflow = Annotated[
    str, typer.Option("--pin-overflow", help="error, head, tail or head+tail, for pins over the budget.")
]
Instruction = Annotated[
    list[str] | None,
    typer.Option(
        "--instruction", metavar="TEXT", help="Say when this part of the prompt leaves the window; repeatable."
    ),
]
Mark = Annotated[
    list[str] | None, typer.Option("--mark", metavar="START:END", help="The same for tokens START to END - 1.")
]
Audit = Annotated[
    bool, typer.Option("--audit", help="Tell what the first and the last token written could know of the prompt.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What of a prompt stays in sight, and what is looked after.

    Attributes:
        contract: what is pinned, beside the first tokens that a model pins anyway.
        marks: parts that the user calls instructions, in the words of `sash.text.pins`.
        audit: whether all parts of the prompt are told of at the end.
    """

    contract: Contract = field(default_factory=Contract)
    marks: tuple[str, ...] = ()
    audit: bool = False

    @staticmethod
    def of(
        pin: Sequence[str] | None,
        budget: int | None,
        overflow: str,
        instruction: Sequence[str] | None = None,
        mark: Sequence[str] | None = None,
        audit: bool = False,
    ) -> Watched:
        """Checked.

        Raises:
            UsageError, PinsError: something that cannot be.
        """
        if (budget is not None or overflow != "error") and not pin:
            raise UsageError("--pin-budget and --pin-overflow are about what --pin keeps: add --pin system, say")
        marks = (*(f"text:{text}" for text in instruction or ()), *(mark or ()))
        if any(Contract.of([words]).pins[0].of_messages for words in marks):
            raise UsageError("--mark takes tokens as START:END, the end not included")
        return Watched(contract=Contract.of(pin or (), budget=budget, overflow=overflow), marks=marks, audit=audit)

    @property
    def whole(self) -> bool:
        """Whether the whole prompt must be known before any of it is read."""
        return bool(self.contract or self.marks or self.audit)

    def check_local(self) -> None:
        """Refuse all of it for a server: what it lets be pinned is a field of its own.

        Raises:
            UsageError: something of it was asked for.
        """
        if self.whole:
            raise UsageError("--pin, --instruction, --mark and --audit need the model here: leave out --server")

    def holding(self, first: int) -> Contract:
        """The contract, with the first tokens that are pinned anyway; empty where only those are."""
        return replace(self.contract, first=first) if self.contract else self.contract
