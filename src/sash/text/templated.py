"""Tokenizers whose chat format is a template: a conversation is rendered, then tokenised with its control tokens.

The result equals that of transformers' `apply_chat_template` (tested with SmolLM2's), except in two cases on purpose:
control tokens typed inside a message stay text, and a begin-of-text id that a template forgot is added.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property

from sash.errors import TokenizerError
from sash.text.template import ChatTemplate, Guard
from sash.text.tokenizer import Tokenizer, check_messages


class TemplatedTokenizer(Tokenizer):
    """A tokenizer with a `ChatTemplate`, or with none."""

    template: ChatTemplate | None

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template."""
        return self.template is not None

    @cached_property
    def guard(self) -> Guard:
        """Tells the control tokens of a template from those typed in a message."""
        return Guard(self.token_text(token_id) for token_id in self.control_ids)

    @abstractmethod
    def _encode_piece(self, text: str, *, plain: bool, first: bool) -> list[int]:
        """The ids of a stretch of text that is not empty.

        Args:
            text: the stretch.
            plain: whether control tokens spelled in it are only text.
            first: whether it stands at the start or after a control token, where a vocabulary that puts a space in
                front of texts does so.
        """

    def _encode_text(self, text: str) -> list[int]:
        return self._encode_plain(text, first=True)

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        """Ids of plain text. Should a vocabulary spell a control token as a whole, it is cut after one character."""
        ids = self._encode_piece(text, plain=True, first=first)
        if self._unspeakable.isdisjoint(ids):
            return ids
        cut: list[int] = []
        start = 0
        stops = [match.start() + 1 for match in self.guard.control.finditer(text)]
        for stop in [*stops, len(text)]:
            if stop > start:
                cut += self._encode_piece(text[start:stop], plain=True, first=first and start == 0)
            start = stop
        if not self._unspeakable.isdisjoint(cut):
            raise TokenizerError("this vocabulary turns plain text into control tokens, so it cannot be used safely")
        return cut

    @cached_property
    def _unspeakable(self) -> frozenset[int]:
        """Control ids that plain text must never become: all but what stands for unknown characters."""
        return self.control_ids

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, continue_final: bool = False, safe_prompt: bool = False
    ) -> list[int]:
        """See `Tokenizer.encode_chat`."""
        checked = check_messages(messages, continue_final)
        if self.template is None:
            return super().encode_chat(messages)
        if safe_prompt:
            checked = self.template.with_safe_prompt(checked)
        ids: list[int] = []
        for piece in self.guard.pieces(self.template, checked, continue_final=continue_final):
            first = not ids or ids[-1] in self.control_ids
            if piece.plain:
                ids += self._encode_plain(piece.text, first=first)
            else:
                ids += self._encode_piece(piece.text, plain=False, first=first)
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids
