"""Which tokens of a prompt are pinned: by role, by message, by what they say, by position, within a budget.

A pinned token stays visible to every later token, however far the window has moved on. Needs no torch.

A rule is written like this:

    system            every system message (any role by itself: system, user, assistant, tool)
    user:1            the first message of the user; -1 counts from the end
    message:3         the third message
    text:WORDS        the passage that says WORDS, where it stands first
    10:40             tokens 10 to 39
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sash.errors import PinsError, UsageError
from sash.text.spans import find_text, message_spans
from sash.text.tokenizer import Tokenizer

Overflow = Literal["error", "head", "tail", "head+tail"]

PIN_ROLES = ("system", "user", "assistant", "tool")
"""Roles whose messages can be pinned."""

BUDGET_SHARE = 2
"""Without a budget of its own, a contract may pin as many tokens as the smallest window has keys, divided by this."""

NAMES = ("--pin-budget", "--pin-overflow")
"""What the budget and the overflow rule are called on a command line."""

_COUNTED = re.compile(r"([a-z]+)(?::(-?[1-9][0-9]*))?")
_POSITIONS = re.compile(r"([0-9]+):([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One rule.

    Attributes:
        words: as it was written.
        role: whose messages; None for a message of any role, or where `text` or `positions` says it.
        number: which of them, from 1 or from -1 back; None for all.
        text: what the passage says.
        positions: the tokens themselves.
    """

    words: str
    role: str | None = None
    number: int | None = None
    text: str | None = None
    positions: range | None = None

    @staticmethod
    def parse(words: str) -> Pin:
        """A rule from its words; see the module.

        Raises:
            UsageError: it is none.

        >>> Pin.parse("user:1").number, Pin.parse("10:40").positions
        (1, range(10, 40))
        """
        if words.startswith("text:") and words[5:].strip():
            return Pin(words=words, text=words[5:])
        if (match := _POSITIONS.fullmatch(words)) and int(match[1]) < int(match[2]):
            return Pin(words=words, positions=range(int(match[1]), int(match[2])))
        match = _COUNTED.fullmatch(words)
        if match and match[1] in PIN_ROLES:
            return Pin(words=words, role=match[1], number=None if match[2] is None else int(match[2]))
        if match and match[1] == "message" and match[2]:
            return Pin(words=words, number=int(match[2]))
        raise UsageError(
            f"{words!r:.60} does not say what to pin: use system, user:1, message:3, text:WORDS or START:END"
        )

    @property
    def of_messages(self) -> bool:
        """Whether it names messages."""
        return self.text is None and self.positions is None

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Indices of the messages that it names; those to come may be more."""
        if not self.of_messages:
            return []
        alike = [at for at, message in enumerate(messages) if self.role in (None, message["role"])]
        if self.number is None:
            return alike
        at = self.number - 1 if self.number > 0 else self.number
        return [alike[at]] if -len(alike) <= at < len(alike) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What is to stay in sight, and how much of it may be.

    Attributes:
        pins: the rules.
        first: so many tokens of the beginning, too.
        budget: pinned tokens at most; None for half of the smallest window.
        overflow: what becomes of a prompt whose pins are over the budget: it is refused ("error"), or of the pinned
            tokens, in their order, the first are kept ("head"), the last ("tail"), or half and half.
    """

    pins: tuple[Pin, ...] = ()
    first: int = 0
    budget: int | None = None
    overflow: Overflow = "error"

    def __post_init__(self) -> None:
        if self.first < 0:
            raise PinsError(f"pins counts tokens, so it is 0 or more; got {self.first}")
        if self.budget is not None and self.budget < 1:
            raise PinsError(f"a budget counts pinned tokens, so it is 1 or more; got {self.budget}")
        if self.overflow not in get_args(Overflow):
            raise UsageError(f"pin overflow is {', '.join(get_args(Overflow))}; got {self.overflow!r}")

    @staticmethod
    def of(
        pins: str | Sequence[str | range] = (),
        *,
        first: int = 0,
        budget: int | None = None,
        overflow: str = "error",
    ) -> Contract:
        """A contract from rules in words, or ranges of positions.

        Raises:
            UsageError, PinsError: a rule, budget or overflow that cannot be.
        """
        words = [pins] if isinstance(pins, str) else [
            f"{pin.start}:{pin.stop}" if isinstance(pin, range) else pin for pin in pins
        ]  # fmt: skip
        return Contract(pins=tuple(map(Pin.parse, words)), first=first, budget=budget, overflow=overflow)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self.pins or self.first)

    def check(self, windows: Sequence[int | None]) -> None:
        """Refuse a contract that layers with these windows cannot keep.

        Raises:
            PinsError: as `room` does.
        """
        if self:
            self.room(windows)

    def room(self, windows: Sequence[int | None]) -> int:
        """Pinned tokens that layers with these windows may hold.

        Raises:
            PinsError: no layer has a window, or the budget is larger than the smallest.
        """
        smallest = min((window for window in windows if window is not None), default=None)
        if smallest is None:
            raise PinsError("pins hold tokens back from sliding out, and this model has no window: add --window N")
        if self.budget is not None and self.budget > smallest:
            raise PinsError(f"a budget of {self.budget:,} pins does not fit the window of {smallest:,}: lower it")
        return max(1, smallest // BUDGET_SHARE) if self.budget is None else self.budget

    def choose(
        self,
        tokenizer: Tokenizer,
        ids: Sequence[int],
        messages: Sequence[Mapping[str, Any]] | None = None,
        *,
        strict: bool = True,
        spans: Callable[[], Sequence[range]] | None = None,
        **options: Any,
    ) -> dict[str, tuple[range, ...]]:
        """Of each rule, by its words, the tokens that it pins of the prompt `ids`; none where it names a later message.

        Args:
            tokenizer: the prompt's.
            ids: the whole prompt.
            messages: what it renders; None for plain text.
            strict: whether what is not there is refused; else it may be still to come.
            spans: finds the tokens of each message, if that is done elsewhere.
            **options: those of `encode_chat` with which it was rendered.

        Raises:
            UsageError: a message is named, and the prompt is plain text; a passage is not there, or positions are past
                the end.
        """
        found: Sequence[range] | None = None
        chosen: dict[str, tuple[range, ...]] = {}
        if self.first:
            chosen[f"the first {self.first}"] = (range(min(self.first, len(ids))),)
        for pin in self.pins:
            if not pin.of_messages:
                chosen[pin.words] = _passage(tokenizer, ids, pin, strict)
            else:
                if messages is None:
                    raise UsageError(f"plain text has no messages, so {pin.words!r} names none: use text:WORDS")
                if found is None:
                    found = message_spans(tokenizer, messages, ids=ids, **options) if spans is None else spans()
                chosen[pin.words] = tuple(found[at] for at in pin.messages(messages) if len(found[at]))
        return chosen

    def fit(
        self, chosen: Mapping[str, Sequence[range]], room: int, names: tuple[str, str] = NAMES
    ) -> tuple[range, ...]:
        """The tokens that are pinned, in ascending runs: all that were chosen, or as the overflow rule reduces them.

        `names` are what the budget and the overflow rule are called where they can be changed.

        Raises:
            PinsError: more than `room`, and the rule is "error".

        >>> long = {"system": (range(0, 6),), "user:1": (range(10, 14),)}
        >>> Contract(overflow="head+tail").fit(long, 5)
        (range(0, 2), range(11, 14))
        """
        positions = sorted({at for spans in chosen.values() for span in spans for at in span})
        if len(positions) > room:
            if self.overflow == "error":
                figures = ", ".join(f"{words}: {sum(map(len, spans)):,}" for words, spans in chosen.items())
                raise PinsError(
                    f"{len(positions):,} tokens are to be pinned ({figures:.200}), and the budget is {room:,}: raise it"
                    f" ({names[0]} {len(positions)}), pin less, or cut them ({names[1]} head, tail or head+tail)"
                )
            head = {"head": room, "tail": 0, "head+tail": room // 2}[self.overflow]
            positions = positions[:head] + positions[len(positions) - (room - head) :]
        return runs_of(positions)


def _passage(tokenizer: Tokenizer, ids: Sequence[int], pin: Pin, strict: bool) -> tuple[range, ...]:
    """The tokens of a rule that names no message."""
    if pin.positions is not None and pin.positions.stop > len(ids) and strict:
        raise UsageError(f"there are no tokens {pin.words} to pin: the prompt has {len(ids):,}")
    try:
        span = find_text(tokenizer, ids, pin.text) if pin.text is not None else pin.positions
    except UsageError:
        if strict:
            raise
        return ()
    return () if span is None or span.start >= len(ids) else (range(span.start, min(span.stop, len(ids))),)


def runs_of(positions: Sequence[int]) -> tuple[range, ...]:
    """Ascending positions as runs.

    >>> runs_of([0, 1, 5])
    (range(0, 2), range(5, 6))
    """
    runs: list[range] = []
    for at in positions:
        if runs and runs[-1].stop == at:
            runs[-1] = range(runs[-1].start, at + 1)
        else:
            runs.append(range(at, at + 1))
    return tuple(runs)
