"""Which tokens are global: said in the words that pin, with one more for what is written. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sash.errors import PinsError
from sash.text.pins import NAMES, Contract, runs_of
from sash.text.tokenizer import Tokenizer

ANSWER = "answer"
"""What names the tokens that are written, among global ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Which tokens are global: they see all that came before them, and stay visible to all that come after.

    Attributes:
        contract: the rules, as those of pins.
        answer: whether what is written is global, too.
    """

    contract: Contract = field(default_factory=Contract)
    answer: bool = False

    @staticmethod
    def of(rules: str | Sequence[str | range]) -> Sight:
        """From rules in words, or ranges of positions; "answer" is what is written.

        Raises:
            UsageError: a rule that is none.
        """
        words = [rules] if isinstance(rules, str) else list(rules)
        return Sight(contract=Contract.of([one for one in words if one != ANSWER]), answer=ANSWER in words)

    @property
    def words(self) -> tuple[str, ...]:
        """The rules as they were said."""
        return (*(pin.words for pin in self.contract.pins), *([ANSWER] if self.answer else []))

    def __bool__(self) -> bool:
        return self.answer or bool(self.contract)

    def choose(
        self,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        n_written: int,
        messages: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> dict[str, tuple[range, ...]]:
        """Of each rule the tokens that it names; see `Contract.choose`. `n_written` tokens may follow the prompt."""
        chosen = self.contract.choose(tokenizer, ids, messages, **options)
        if self.answer and n_written:
            chosen[ANSWER] = (range(len(ids), len(ids) + n_written),)
        return chosen

    def fit(
        self, chosen: Mapping[str, Sequence[range]], pins: Sequence[range], room: int, budget: str = NAMES[0]
    ) -> tuple[range, ...]:
        """The global tokens, in ascending runs, which take slots together with those that are pinned.

        Raises:
            PinsError: more than there is room for.
        """
        positions = sorted({at for spans in chosen.values() for span in spans for at in span})
        together = len({*positions, *(at for span in pins for at in span)})
        if together > room:
            figures = ", ".join(f"{words}: {sum(map(len, spans)):,}" for words, spans in chosen.items())
            fewer = ", write fewer (--max-tokens)" if ANSWER in chosen and budget == NAMES[0] else ""
            raise PinsError(
                f"{together:,} tokens are to be pinned or global (global are {figures:.200}), and the budget is"
                f" {room:,}: raise it ({budget} {together}){fewer}, or flag less"
            )
        return runs_of(positions)
