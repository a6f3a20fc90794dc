"""Text as it is written: whole characters only, and never a stop string.

Both classes here are automata that see each token or character once, so their cost is linear in the text, and how a
text is cut into pieces cannot change what comes out in the end.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sash.errors import UsageError

if TYPE_CHECKING:
    from sash.text.tokenizer import Tokenizer


class Detokenizer:
    """Turns ids into text one at a time; the pieces joined are `tokenizer.decode(ids)`, for every sequence of ids.

    Bytes of an unfinished character (three at most) are held back until the character is whole, can no longer become
    one, or the text ends.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = True, continues: bool = False) -> None:
        """Starts an empty text.

        Args:
            tokenizer: whose ids are to come.
            skip_control: whether control tokens are left out rather than spelled.
            continues: whether the ids follow text that was shown before, so that a leading space is kept.
        """
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._first = not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes; perhaps nothing yet.

        Raises:
            TokenizerError: a negative id.
        """
        if token_id in self._tokenizer.control_ids:
            tail = self.flush()
            return tail if self._skip_control else tail + self._tokenizer.token_text(token_id)
        raw = self._tokenizer.token_bytes(token_id, first=self._first)
        self._first = False
        return self._utf8.decode(raw)

    def flush(self) -> str:
        """What is still held back, as U+FFFD; the text may go on afterwards."""
        tail = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return tail


class StopMatcher:
    """Holds back text that could become a stop string, and ends the text in front of one.

    The stop that is complete first wins; of two complete at the same character, the longer.

    >>> matcher = StopMatcher(["END"])
    >>> matcher.add("the E"), matcher.add("N"), matcher.add("T, EN"), matcher.add("D. More")
    (('the ', False), ('', False), ('ENT, ', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Starts an empty text.

        Raises:
            UsageError: an empty stop string, which would stop before the first character.
        """
        if isinstance(stops, str):
            raise UsageError("stops is a sequence of strings, not one string: write [stop]")
        if any(not stop for stop in stops):
            raise UsageError("a stop string must have at least one character")
        self._stops = [(stop, _failure_links(stop)) for stop in sorted(set(stops), key=len, reverse=True)]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._hit = False

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is safe to show now, and whether a stop string is complete; after that nothing more comes."""
        if self._hit:
            return "", True
        if not self._stops:
            return text, False
        pending = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            length = self._step(character)
            if length:
                self._hit, self._held = True, ""
                return pending[: end - length], True
        safe = len(pending) - max(self._matched)
        self._held = pending[safe:]
        return pending[:safe], False

    def flush(self) -> str:
        """What is still held back: the text ended before it became a stop string."""
        tail, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return tail

    def _step(self, character: str) -> int:
        """Moves every stop's automaton on; the length of the longest stop that is now complete, or 0."""
        complete = 0
        for index, (stop, links) in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = links[matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                complete = max(complete, matched)
                matched = links[matched - 1]
            self._matched[index] = matched
        return complete


def _failure_links(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix (Knuth, Morris, Pratt 1977).

    >>> _failure_links("ababc")
    [0, 0, 1, 2, 0]
    """
    links = [0]
    for character in pattern[1:]:
        length = links[-1]
        while length and pattern[length] != character:
            length = links[length - 1]
        links.append(length + (pattern[length] == character))
    return links
