"""Calls of tools found in what a model writes, token by token.

What is no call comes out as text at once; what may become one is held back until it is whole. A call that is malformed
comes out as the text that it is: nothing that a model writes is an error.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from sash.text.stream import Detokenizer
from sash.text.tokenizer import Tokenizer
from sash.text.tool_json import as_call, first_value, list_of_calls, separate_call, whole_value
from sash.text.tools import ARGS, CALL_ID, CALLS, ToolCall, ToolFormat

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Said:
    """What a token adds to an answer: text, and calls that it completes."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolParser:
    """Reads an answer, and tells its text from its calls. All tokens' `Said` together are the answer."""

    def __init__(self, tokenizer: Tokenizer, names: Collection[str], *, continues: bool = False) -> None:
        """Starts an answer.

        Args:
            tokenizer: of the model.
            names: of the tools. A call of another is a call, too, where the format marks calls; JSON without a mark is
                one only if it names one of these.
            continues: whether the answer goes on a text that was written before.
        """
        self._tokenizer = tokenizer
        self._names = frozenset(names)
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
        form = tokenizer.tool_format
        self._reader = _NoCalls() if form is None else _reader(form, self._names)
        self._marks = {} if form is None else _marks(form)

    def add(self, token_id: int) -> Said:
        """What this token adds.

        Raises:
            TokenizerError: a negative id.
        """
        mark = self._marks.get(token_id)
        said = self._read(self._detokenizer.add(token_id))
        return said if mark is None else _joined(said, self._reader.mark(mark))

    def flush(self) -> Said:
        """What the end of the answer adds."""
        return _joined(self._read(self._detokenizer.flush()), self._reader.flush())

    def _read(self, text: str) -> Said:
        return self._reader.read(text) if text else Said()


def parse_calls(tokenizer: Tokenizer, ids: Collection[int], names: Collection[str]) -> Said:
    """The text and the calls of a whole answer."""
    parser = ToolParser(tokenizer, names)
    return _joined(*(parser.add(token_id) for token_id in ids), parser.flush())


def _joined(*parts: Said) -> Said:
    return Said("".join(part.text for part in parts), tuple(call for part in parts for call in part.calls))


def _marks(form: ToolFormat) -> dict[int, str]:
    if form.style == "hermes":
        marked = {form.calls_id: _OPENING, form.end_id: _CLOSING}
    else:
        marked = {form.calls_id: CALLS, form.args_id: ARGS, form.call_id_id: CALL_ID}
    return {token_id: mark for token_id, mark in marked.items() if token_id is not None}


def _reader(form: ToolFormat, names: frozenset[str]) -> _Reader:
    if form.style in ("list", "args"):
        return _Marked(separate=form.style == "args")
    return _Wrapped() if form.style == "hermes" else _Bare(names)


class _Reader:
    """Reads the text of an answer, and the control tokens in it that belong to calls."""

    def read(self, text: str) -> Said:
        raise NotImplementedError

    def mark(self, mark: str) -> Said:
        return Said()

    def flush(self) -> Said:
        return Said()


class _NoCalls(_Reader):
    def read(self, text: str) -> Said:
        return Said(text)


class _Marked(_Reader):
    """Mistral's formats: all that follows [TOOL_CALLS] is calls, to the next one or to the end."""

    def __init__(self, *, separate: bool) -> None:
        self._separate = separate
        self._held: list[str] | None = None

    def read(self, text: str) -> Said:
        if self._held is None:
            return Said(text)
        self._held.append(text)
        return Said()

    def mark(self, mark: str) -> Said:
        if mark == CALLS:
            said = self.flush()
            self._held = []
            return said
        if self._held is not None:
            self._held.append(mark)
        return Said()

    def flush(self) -> Said:
        if self._held is None:
            return Said()
        text, self._held = "".join(self._held), None
        calls = separate_call(text) if self._separate else list_of_calls(text)
        return Said(calls=calls) if calls else Said(CALLS + text)


class _Wrapped(_Reader):
    """Hermes' format: calls between <tool_call> and </tool_call>, which may be control tokens or plain text."""

    def __init__(self) -> None:
        self._pending = ""
        self._held: list[str] | None = None
        self._space: str | None = None

    def read(self, text: str) -> Said:
        self._pending += text
        parts: list[Said] = []
        while True:
            marker = _OPENING if self._held is None else _CLOSING
            at = self._pending.find(marker)
            if at < 0:
                break
            parts.append(self._take(self._pending[:at]))
            self._pending = self._pending[at + len(marker) :]
            parts.append(self._turn())
        kept = next(size for size in range(len(_CLOSING), -1, -1) if self._pending.endswith(marker[:size]))
        cut = len(self._pending) - kept
        parts.append(self._take(self._pending[:cut]))
        self._pending = self._pending[cut:]
        return _joined(*parts)

    def mark(self, mark: str) -> Said:
        return self.read(mark)

    def flush(self) -> Said:
        said = self._take(self._pending)
        self._pending = ""
        if self._held is None:
            return said
        text, self._held = "".join(self._held), None
        call = as_call(whole_value(text))
        return Said(calls=(call,)) if call else Said(_OPENING + text)

    def _take(self, text: str) -> Said:
        """Text of the present state; white space that follows a call waits for more."""
        if self._held is not None:
            self._held.append(text)
            return Said()
        if self._space is None:
            return Said(text)
        self._space += text
        if not self._space.strip():
            return Said()
        shown, self._space = self._space, None
        return Said(shown)

    def _turn(self) -> Said:
        """A marker stands here."""
        if self._held is None:
            self._held, self._space = [], None
            return Said()
        text, self._held = "".join(self._held), None
        call = as_call(whole_value(text))
        if call is None:
            return Said(_OPENING + text + _CLOSING)
        self._space = ""
        return Said(calls=(call,))


class _Bare(_Reader):
    """Llama's format: the whole answer is a call, or several with semicolons or line breaks between them."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held: list[str] | None = []
        self._head = ""

    def read(self, text: str) -> Said:
        if self._held is None:
            return Said(text)
        self._held.append(text)
        if len(self._head) < _LONGEST_HEAD:
            self._head = (self._head + text)[:_LONGEST_HEAD]
            if not _HEAD.fullmatch(self._head):
                return self._give_up()
        return Said()

    def flush(self) -> Said:
        if self._held is None:
            return Said()
        text = "".join(self._held)
        calls: list[ToolCall] = []
        rest = text.strip()
        while rest:
            value, rest = first_value(rest)
            call = as_call(value, strict=True)
            if call is None or call.name not in self._names:
                return self._give_up()
            calls.append(call)
            rest = rest.lstrip(" \n\t\r;")
        self._held = None
        return Said(calls=tuple(calls)) if calls else Said(text)

    def _give_up(self) -> Said:
        text, self._held = "".join(self._held or ()), None
        return Said(text)


_LONGEST_HEAD = 64
# How a call may begin: cut anywhere, and after the first key anything.
_HEAD = re.compile(
    r'\s*(\{\s*("(n(a(m(e(".*)?)?)?)?|t(y(p(e(".*)?)?)?)?|p(a(r.*)?)?|a(r(g.*)?)?|i(d(".*)?)?)?)?)?', re.DOTALL
)
