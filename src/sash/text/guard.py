"""Keeps the control tokens that a chat template writes apart from those that somebody typed.

Spellings of control tokens inside messages, tools and arguments are wrapped in private-use characters before the
template is rendered, and what comes back wrapped is tokenised as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sash.errors import TokenizerError, UsageError
from sash.text.grammar_source import MAX_DEPTH
from sash.text.messages import Message

if TYPE_CHECKING:
    from sash.text.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    Attributes:
        text: what it says.
        plain: whether control tokens spelled in it are only text.
    """

    text: str
    plain: bool


class Guard:
    """Keeps the spellings of control tokens inside messages apart from those that a template writes."""

    def __init__(self, control_texts: Iterable[str]) -> None:
        """Takes the spellings to guard."""
        texts = sorted({text for text in control_texts if text}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        # Where a message ends in the first half of a control token, the template's next words might complete it.
        self._heads = frozenset(text[:cut] for text in texts for cut in range(1, len(text)))
        self._tails = frozenset(text[cut:] for text in texts for cut in range(1, len(text)))
        self._longest = max(map(len, texts), default=0)

    def pieces(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        continue_final: bool = False,
    ) -> list[Piece]:
        """The rendered conversation. One piece where nothing in it comes near a control token.

        Raises:
            TokenizerError: from `ChatTemplate.render`; or the template changes words that spell a control token.
            UsageError: arguments or parameters that nest too deeply.
        """
        given = _Words(messages, tools)
        opening, closing, other = _unused_characters(given, template.source)
        guarded = given.changed(lambda text: self._mark(text, opening, closing))
        spelled = any(self.control.search(text) for text in given.strings())

        def rendered(words: _Words) -> str:
            return template.render(words.messages, tools=words.tools, continue_final=continue_final)

        if not spelled:
            text = rendered(given)
            if guarded == given:
                return [Piece(text, plain=False)]
        pieces = _split(rendered(guarded), opening, closing, self.control)
        written = sum(len(self.control.findall(piece.text)) for piece in pieces if not piece.plain)
        if not spelled:
            return [Piece(text, plain=False)] if written == len(self.control.findall(text)) else pieces
        # A template that rewrites what it is given may take the marks off; then nobody could tell the tokens apart.
        own = rendered(given.changed(lambda text: self.control.sub(other, text)))
        if written > len(self.control.findall(own)):
            raise TokenizerError("the chat template rewrites a message that spells one of its control tokens")
        return pieces

    def _mark(self, content: str, opening: str, closing: str) -> str:
        """Content with every control token wrapped, and cut off from its surroundings where it could join them."""
        body = content.strip()
        marked = self.control.sub(lambda match: f"{opening}{match[0]}{closing}", body)
        if self._ends_with(body, self._heads) or self._ends_with(content, self._heads):
            marked += closing
        if self._starts_with(body, self._tails) or self._starts_with(content, self._tails):
            marked = closing + marked
        start = content.find(body)
        return content[:start] + marked + content[start + len(body) :]

    def _ends_with(self, text: str, ends: frozenset[str]) -> bool:
        return any(text[-length:] in ends for length in range(1, min(self._longest, len(text) + 1)))

    def _starts_with(self, text: str, starts: frozenset[str]) -> bool:
        return any(text[:length] in starts for length in range(1, min(self._longest, len(text) + 1)))


@dataclass(frozen=True, slots=True)
class _Words:
    """Everything in a request that is not of Sash's own making."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]]

    def changed(self, change: Callable[[str], str]) -> _Words:
        """The same with every text in it changed."""
        messages = []
        for message in self.messages:
            changed = {
                key: value if key == "role" else change(value) for key, value in message.items() if key != _CALLS
            }
            if _CALLS in message:
                changed[_CALLS] = [{**_deep(call, change), "type": "function"} for call in message[_CALLS]]
            messages.append(changed)
        return _Words(messages, [{**_deep(tool, change), "type": "function"} for tool in self.tools])

    def strings(self) -> set[str]:
        """Every text in it."""
        found: set[str] = set()

        def note(text: str) -> str:
            found.add(text)
            return text

        self.changed(note)
        return found


_CALLS = "tool_calls"


def _deep(value: Any, change: Callable[[str], str], room: int = MAX_DEPTH) -> Any:
    """A value of JSON with every string in it changed, the names of a schema's or an argument's own keys too."""
    if room == 0:
        raise UsageError(f"the tools or their arguments nest deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _deep(inner, change, room - 1) for key, inner in value.items()}
    return [_deep(inner, change, room - 1) for inner in value] if isinstance(value, list | tuple) else value


def _unused_characters(given: _Words, source: str) -> tuple[str, str, str]:
    """Three private-use characters that occur nowhere in a conversation or its template."""
    used = set(source).union(*given.strings())
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    try:
        return next(free), next(free), next(free)
    except StopIteration:
        raise TokenizerError("the messages use up every private-use character of Unicode's plane 15") from None


def _split(marked: str, opening: str, closing: str, control: re.Pattern[str]) -> list[Piece]:
    """Cuts a rendered text at its marks.

    A template's own string methods may separate the two marks of a token; a mark that stands alone still cuts.

    >>> [(piece.text, piece.plain) for piece in _split("ab{<s>}d}{<e>", "{", "}", re.compile("<s>|<e>"))]
    [('ab', False), ('<s>', True), ('d', False), ('<e>', False)]
    """
    opened, closed = re.escape(opening), re.escape(closing)
    parts = re.split(f"{opened}({control.pattern}){closed}|[{opened}{closed}]", marked)
    return [Piece(part, plain=index % 2 == 1) for index, part in enumerate(parts) if part]
