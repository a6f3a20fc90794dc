"""Options that say what stays in sight and what is looked after: pins, their budget, instructions, audits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sash.errors import UnsupportedError, UsageError
from sash.text.pins import BUDGET_SHARE, Contract
from sash.text.sight import Sight

if TYPE_CHECKING:
    from sash.cli.server_client import Server

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
Global = Annotated[
    list[str] | None,
    typer.Option(
        "--global",
        metavar="WHAT",
        help="Let this see all that was read, and keep it in sight: as --pin, or answer; repeatable.",
    ),
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
        sight: what is global.
        n_written: tokens that are written after the prompt at most.
        audit: whether all parts of the prompt are told of at the end.
    """

    contract: Contract = field(default_factory=Contract)
    sight: Sight = field(default_factory=Sight)
    n_written: int = 0
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
        global_: Sequence[str] | None = None,
        n_written: int = 0,
    ) -> Watched:
        """Checked.

        Raises:
            UsageError, PinsError: something that cannot be.
        """
        if (overflow != "error" and not pin) or (budget is not None and not (pin or global_)):
            raise UsageError("--pin-budget and --pin-overflow are about what --pin keeps: add --pin system, say")
        marks = (*(f"text:{text}" for text in instruction or ()), *(mark or ()))
        if any(Contract.of([words]).pins[0].of_messages for words in marks):
            raise UsageError("--mark takes tokens as START:END, the end not included")
        contract = Contract.of(pin or (), budget=budget, overflow=overflow)
        return Watched(contract=contract, sight=Sight.of(global_ or ()), n_written=n_written, marks=marks, audit=audit)

    @property
    def sight_note(self) -> str | None:
        """One line where parts of the prompt are global and what is written is not."""
        if not self.sight or self.sight.answer:
            return None
        return (
            "no model was trained with such global tokens: beside what is kept in sight they bring back little unless"
            " what is written sees all, too (--global answer)"
        )

    @property
    def whole(self) -> bool:
        """Whether the whole prompt must be known before any of it is read."""
        return bool(self.contract or self.sight or self.marks or self.audit)

    def fields(self, server: Server, window: dict[str, Any]) -> dict[str, Any]:
        """The field `window` of a request with all of it, where `window` is what is asked for beside.

        Instructions are looked after wherever the server can tell of them.

        Raises:
            UnsupportedError: the server is not one of Sash, and would pass over it in silence.
        """
        if not server.tells_windows:
            if self.whole:
                raise UnsupportedError(
                    "--pin, --global, --instruction, --mark and --audit need `sash serve`, and"
                    f" {server.url} runs something else"
                )
            return window
        pins = dict(window.get("pins", {}))
        if self.contract:
            pins["rules"] = [pin.words for pin in self.contract.pins]
            pins["overflow"] = self.contract.overflow
        if self.contract or self.sight:
            budget = self.contract.budget or self._budget(server, window)
            pins |= {} if budget is None else {"budget": budget}
        told: dict[str, Any] = {"watch": list(self.marks) or True}
        told |= {"global": list(self.sight.words)} if self.sight else {}
        told |= {"audit": True} if self.audit else {}
        return window | ({"pins": pins} if pins else {}) | told

    def _budget(self, server: Server, window: dict[str, Any]) -> int | None:
        """The budget that a model here would have: a part of the smallest window."""
        sizes = [size for size in (*server.windows, window.get("size")) if size]
        return max(1, min(sizes) // BUDGET_SHARE) if sizes else None

    def holding(self, first: int) -> Contract:
        """The contract, with the first tokens that are pinned anyway; empty where only those are."""
        return replace(self.contract, first=first) if self.contract or self.sight else self.contract
