"""Tokenizers whose chat format is a template: a conversation is rendered, then tokenised with its control tokens.

The result equals that of transformers' `apply_chat_template` (tested with SmolLM2's), except in two cases on purpose:
control tokens typed inside a message stay text, and a begin-of-text id that a template forgot is added.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from sash.errors import TokenizerError
from sash.text.fim import FimFormat, fim_format
from sash.text.guard import Guard, Piece
from sash.text.messages import read_messages
from sash.text.template import ChatTemplate, with_parsed_arguments
from sash.text.tokenizer import Tokenizer, check_unicode
from sash.text.tools import ToolFormat, shown_tools, tool_format


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

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """See `Tokenizer.tool_format`."""
        return tool_format(self, None if self.template is None else self.template.source)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        continue_final: bool = False,
        safe_prompt: bool = False,
    ) -> list[int]:
        """See `Tokenizer.encode_chat`."""
        checked, continue_final = read_messages(messages, continue_final)
        if self.template is None:
            return super().encode_chat(messages)
        offered = shown_tools(self, tools, tool_choice)
        readable = [with_parsed_arguments(message) for message in checked]
        if safe_prompt:
            readable = self.template.with_safe_prompt(readable)
        ids: list[int] = []
        for piece in self.guard.pieces(self.template, readable, tools=offered, continue_final=continue_final):
            self._add(ids, piece)
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _add(self, ids: list[int], piece: Piece) -> None:
        first = not ids or ids[-1] in self.control_ids
        if piece.plain:
            ids += self._encode_plain(piece.text, first=first)
        else:
            ids += self._encode_piece(piece.text, plain=False, first=first)

    @cached_property
    def _fim(self) -> FimFormat | None:
        return fim_format({self.token_text(token_id): token_id for token_id in self.control_ids})

    @property
    def has_fim(self) -> bool:
        """See `Tokenizer.has_fim`."""
        return self._fim is not None

    def encode_fim(self, prompt: str, suffix: str = "") -> list[int]:
        """See `Tokenizer.encode_fim`."""
        if self._fim is None:
            return super().encode_fim(prompt, suffix)
        parts = []
        for text in (prompt, suffix):
            check_unicode(text)
            parts.append(self._encode_plain(text, first=False) if text else [])
        ids = [self._fim.prefix_id, *parts[0], self._fim.suffix_id, *parts[1], self._fim.middle_id]
        return ids if self.bos_id is None else [self.bos_id, *ids]
