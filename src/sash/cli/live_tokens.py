"""Text in pieces to tokens in pieces, the same tokens that the whole text would give.

A piece is encoded up to the start of a line, with a little of what is before and after it, and only tokens that end
there are let go: so neither a word nor a run of line ends is cut, and no space is put in front of a piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sash.text.tokenizer import Tokenizer

LOOKAHEAD = 64
"""Characters after a cut that are encoded with what is before it."""

LONGEST_HELD = 1 << 14
"""Characters that wait for the start of a line; a text without any is cut at a space, or anywhere."""

_LINE_START = re.compile(r"\n(?=\S)")
_ANY_LINE = re.compile(r"\n")
_WORD_END = re.compile(r"\S(?=\s)")


class LiveEncoder:
    """Encodes a text that arrives in pieces."""

    def __init__(self, tokenizer: Tokenizer, *, bos: bool, context: str = "", pending: str = "") -> None:
        """Starts a text, or goes on with one.

        Args:
            tokenizer: whose ids are wanted.
            bos: whether to begin with the begin-of-text id, for models that have one.
            context: text that was encoded before, of which the end may matter.
            pending: text that was added, and of which no ids were given yet.
        """
        self._tokenizer, self._bos, self._context = tokenizer, bos, context
        self._pending = pending

    @property
    def bos(self) -> bool:
        """Whether the begin-of-text id is still to come."""
        return self._bos

    @property
    def context(self) -> str:
        """The end of the text whose ids were given."""
        return self._context

    @property
    def pending(self) -> str:
        """Text whose ids depend on what follows."""
        return self._pending

    def add(self, text: str) -> list[int]:
        """The ids that are settled by now; perhaps none yet."""
        # A cut needs one character after the line end, so the search starts where the last one could not see it.
        start = max(0, len(self._pending) - 1)
        self._pending += text
        cut = _last_end(_LINE_START, self._pending, start)
        if cut is None and len(self._pending) > LONGEST_HELD:
            rules = (_LINE_START, _ANY_LINE, _WORD_END)
            cuts = (_last_end(rule, self._pending, 0) for rule in rules)
            cut = next((found for found in cuts if found is not None), len(self._pending) - LOOKAHEAD)
        return [] if cut is None else self._take(cut)

    def finish(self) -> list[int]:
        """The ids of what is left: the text is whole."""
        return self._take(len(self._pending))

    def _take(self, cut: int) -> list[int]:
        text, self._pending = self._pending, self._pending[cut:]
        bos = self._tokenizer.encode("", bos=True) if self._bos else []
        self._bos = False
        if not cut:
            return bos
        ids = self._encode_between(self._context, text[:cut], text[cut : cut + LOOKAHEAD])
        self._context = text[cut - 1]
        return bos + ids

    def _encode_between(self, before: str, text: str, after: str) -> list[int]:
        for follows in dict.fromkeys((after, "")):
            ids = self._tokenizer.encode(before + text + follows, bos=False)
            start, stop = len(before.encode()), len((before + text).encode())
            first, last = self._places(ids, (start, stop))
            if first is not None and last is not None:
                return ids[first:last]
        return self._tokenizer.encode(text, bos=False)

    def _places(self, ids: Sequence[int], ends: tuple[int, int]) -> tuple[int | None, int | None]:
        """How many of the ids spell exactly the first `ends` bytes; None where a token lies across that place."""
        found: list[int | None] = [0 if end == 0 else None for end in ends]
        done = 0
        for index, token_id in enumerate(ids):
            done += len(self._tokenizer.token_bytes(token_id, first=index == 0))
            for place, end in enumerate(ends):
                if done == end and found[place] is None:
                    found[place] = index + 1
            if done > ends[1]:
                break
        return found[0], found[1]


def _last_end(rule: re.Pattern[str], text: str, start: int) -> int | None:
    last = None
    for match in rule.finditer(text, start):
        last = match.end()
    return last


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFrame:
    """The ids that a chat format puts around the last user message; `context` is for the `LiveEncoder` between."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    context: str


_PROBES = ("alpha", "Zulu", "The 1st line\n\nand  another: one\nlast")


def chat_frame(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, safe_prompt: bool) -> ChatFrame | None:
    """What surrounds a user message that follows `messages`; None where the format cannot be taken apart.

    Found by encoding messages that differ; it is only used if a longer message, put together, encodes to the same.

    Raises:
        TokenizerError: the model has no chat format, or its format refuses the conversation.
    """

    def encoded(text: str) -> list[int]:
        return tokenizer.encode_chat([*messages, {"role": "user", "content": text}], safe_prompt=safe_prompt)

    first, second, whole = (encoded(text) for text in _PROBES)
    start = _common(first, second)
    end = _common(first[start:][::-1], second[start:][::-1])
    before, after = tuple(first[:start]), tuple(first[len(first) - end :])
    for context in ("", "\n"):
        encoder = LiveEncoder(tokenizer, bos=False, context=context)
        if [*before, *encoder.add(_PROBES[2]), *encoder.finish(), *after] == whole:
            return ChatFrame(before=before, after=after, context=context)
    return None


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class LivePrompt:
    """A prompt that arrives in pieces: what its format puts around the text, and the encoder of the text.

    Attributes:
        encoder: of the text.
        before, after: ids around it.
    """

    def __init__(self, encoder: LiveEncoder, before: Sequence[int] = (), after: Sequence[int] = ()) -> None:
        self.encoder, self.before, self.after = encoder, before, after

    def ids(self, pieces: Iterable[str], *, whole: bool = True) -> Iterator[list[int]]:
        """The ids as the text arrives; unless it is then `whole`, only those that more text cannot change."""
        yield list(self.before)
        for piece in pieces:
            yield self.encoder.add(piece)
        if whole:
            yield self.encoder.finish()
            yield list(self.after)


def live_text(tokenizer: Tokenizer) -> LivePrompt:
    """A plain text, with the begin-of-text id."""
    return LivePrompt(LiveEncoder(tokenizer, bos=True))


def live_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], *, safe_prompt: bool) -> LivePrompt | None:
    """A conversation whose last message, the user's, arrives; None where its format cannot be taken apart."""
    frame = chat_frame(tokenizer, messages, safe_prompt=safe_prompt)
    if frame is None:
        return None
    return LivePrompt(LiveEncoder(tokenizer, bos=False, context=frame.context), frame.before, frame.after)


def encode_live(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[list[int]]:
    """The ids of a plain text in pieces, begin-of-text id included."""
    yield from live_text(tokenizer).ids(pieces)


def encode_chat_live(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]], pieces: Iterable[str], *, safe_prompt: bool
) -> Iterator[list[int]]:
    """The ids of a conversation whose last message, the user's, arrives in pieces.

    Where the chat format cannot be taken apart around the message, all of it is awaited first.
    """
    prompt = live_chat(tokenizer, messages, safe_prompt=safe_prompt)
    if prompt is None:
        content = "".join(pieces)
        yield tokenizer.encode_chat([*messages, {"role": "user", "content": content}], safe_prompt=safe_prompt)
        return
    yield from prompt.ids(pieces)
