"""Mistral's own tokenizers, v1 to v15, through mistral-common, which gives the chat format byte for byte.

What the versions are: v1 (Mistral 7B v0.1, Mixtral 8x7B) writes `[INST]` and `[/INST]` as plain text, so a user who
types `[/INST]` inside a message writes exactly what the format itself writes, and no tokenizer can tell them apart;
only `<s>` and `</s>` are safe there. From v2 on all markers are control tokens, which text can never become.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sash.errors import TokenizerError
from sash.text.messages import read_messages, with_guardrail
from sash.text.mistral_turns import mistral_tools, mistral_turns
from sash.text.tokenizer import (
    REPLACEMENT,
    Tokenizer,
    check_id,
    check_unicode,
    check_vocabulary_size,
    foreign_code,
)
from sash.text.tools import ToolFormat, mistral_format, shown_tools

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Common

MAX_FILE = 64 << 20
"""Bytes of a tokenizer file; the largest tekken.json in use has 19 million."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_UNKNOWN_SURFACE = " \N{DOUBLE QUESTION MARK} ".encode()
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_VERSIONED = re.compile(r"\.model\.v(\d+)(m\d+)?$")
_MARKERS = (("v7", "[SYSTEM_PROMPT]"), ("v3", "[PREFIX]"), ("v2", "[INST]"))


def find_file(folder: Path) -> Path | None:
    """The Mistral tokenizer file of a folder: tekken.json, else the newest *.model.v*, else tokenizer.model.

    A bare tokenizer.model counts only beside a params.json or a config.json of a Mistral model, for other families
    use the same name.
    """
    if (folder / "tekken.json").is_file():
        return folder / "tekken.json"
    versioned = [(match, path) for path in folder.glob("*.model.v*") if (match := _VERSIONED.search(path.name))]
    if versioned:
        return max(versioned, key=lambda pair: (int(pair[0][1]), pair[1].name))[1]
    bare = folder / "tokenizer.model"
    if bare.is_file() and ((folder / "params.json").is_file() or _is_mistral(folder / "config.json")):
        return bare
    return None


def _is_mistral(config: Path) -> bool:
    """Whether a config.json is of Mistral's families."""
    try:
        if config.stat().st_size > MAX_FILE:
            return False
        content = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    kind = content.get("model_type") if isinstance(content, dict) else None
    return isinstance(kind, str) and kind.startswith(("mistral", "mixtral", "ministral"))


class MistralTokenizer(Tokenizer):
    """A tokenizer file of Mistral's. See the module for what version 1 cannot do."""

    def __init__(self, path: Path) -> None:
        """Opens tekken.json or a SentencePiece model.

        The version is in the name; that of a bare tokenizer.model is told by the control tokens that it knows.

        Raises:
            TokenizerError: the file is too large or broken.
        """
        if path.stat().st_size > MAX_FILE:
            raise TokenizerError(f"{path.name} is larger than {MAX_FILE >> 20} MiB, which no tokenizer needs")
        if path.name.endswith(".json"):
            _check_tekken(path)
        with foreign_code(f"reading {path.name}"):
            self._common = _open(path)
            inner: Any = self._common.instruct_tokenizer.tokenizer
            self._inner = inner
            self.vocab_size = int(inner.n_words)
            check_vocabulary_size(self.vocab_size)
            self.control_ids = frozenset(int(token_id) for token_id in inner.special_ids)
            self.bos_id = int(inner.bos_id)
            self.eos_ids = frozenset({int(inner.eos_id)})
            self._unknown = int(inner.unk_id)
            self._is_tekken = hasattr(inner, "id_to_byte_piece")
            kind = "Tekken" if self._is_tekken else "SentencePiece"
            self.kind = f"{kind} {self._common.version.value} (mistral-common)"
            self._pieces: list[str] = [] if self._is_tekken else list(inner.vocab())
        self.mask_id = None
        bytes_known = sum(1 for piece in self._pieces if _BYTE_PIECE.fullmatch(piece))
        self._byte_fallback = bytes_known == 256
        self._drops_space = bool(self._pieces) and self._encode_text("a")[0] in self._starting_with_space()

    def _starting_with_space(self) -> frozenset[int]:
        return frozenset(index for index, piece in enumerate(self._pieces) if piece.startswith(_SPACE))

    @property
    def has_chat(self) -> bool:
        """Always: every Mistral tokenizer comes with its chat format."""
        return True

    @property
    def version(self) -> str:
        """The version of the format: "v1", "v2", "v3", "v7" or later."""
        return str(self._common.version.value)

    def _encode_text(self, text: str) -> list[int]:
        with foreign_code("tokenising"):
            return list(self._inner.encode(text, bos=False, eos=False))

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        check_id(token_id)
        if token_id >= self.vocab_size:
            return REPLACEMENT
        if self._is_tekken:
            if token_id in self.control_ids:
                return str(self._inner.id_to_piece(token_id)).encode()
            return bytes(self._inner.id_to_byte_piece(token_id))
        piece = self._pieces[token_id]
        if token_id == self._unknown:
            return _UNKNOWN_SURFACE
        if self._byte_fallback and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes((int(byte[1], 16),))
        if first and self._drops_space:
            piece = piece.removeprefix(_SPACE)
        return piece.replace(_SPACE, " ").encode()

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """See `Tokenizer.tool_format`."""
        if self.version == "v1":
            return None
        spelled = {self.token_text(token_id): token_id for token_id in self.control_ids}
        return mistral_format(spelled, separate=int(self.version[1:]) >= 11)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        continue_final: bool = False,
        safe_prompt: bool = False,
    ) -> list[int]:
        """See `Tokenizer.encode_chat`. Where system messages go is mistral-common's decision, version by version."""
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        checked, continue_final = read_messages(messages, continue_final)
        offered = shown_tools(self, tools, tool_choice)
        if safe_prompt:
            checked = with_guardrail(checked)
        with foreign_code("encoding the conversation"):
            # Nothing of sampling goes along: mistral-common refuses temperatures that are in common use.
            request = ChatCompletionRequest(
                messages=mistral_turns(checked, continue_final), tools=mistral_tools(offered) if offered else None
            )
            return list(self._common.encode_chat_completion(request).tokens)

    @cached_property
    def has_fim(self) -> bool:
        """See `Tokenizer.has_fim`."""
        return {"[PREFIX]", "[SUFFIX]"} <= {self.token_text(token_id) for token_id in self.control_ids}

    def encode_fim(self, prompt: str, suffix: str = "") -> list[int]:
        """See `Tokenizer.encode_fim`."""
        from mistral_common.protocol.fim.request import FIMRequest

        if not self.has_fim:
            return super().encode_fim(prompt, suffix)
        check_unicode(prompt)
        check_unicode(suffix)
        with foreign_code("encoding the gap"):
            return list(self._common.encode_fim(FIMRequest(prompt=prompt, suffix=suffix or None)).tokens)


def _check_tekken(path: Path) -> None:
    """Looks at what a tekken file's code would believe.

    Raises:
        TokenizerError: not JSON, a vocabulary too large, or a regular expression that repeats a group.
    """
    from sash.text.huggingface import repeats_group

    try:
        content = json.loads(path.read_bytes())
        config = content["config"]
        pattern, sizes = config["pattern"], [config["default_vocab_size"], config["default_num_special_tokens"]]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise TokenizerError(f"{path.name} is not a tekken file: {str(error)[:120]}") from error
    if not isinstance(pattern, str) or repeats_group(pattern):
        raise TokenizerError(f"{path.name}: the regular expression {str(pattern)[:80]!r} could take forever")
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool):
            raise TokenizerError(f"{path.name}: a vocabulary size is {size!r:.40}, which is no integer")
        check_vocabulary_size(size)


def _open(path: Path) -> Common[Any, Any, Any, Any, Any]:
    """The file as mistral-common sees it."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Common

    # mistral-common logs the fillers of a vocabulary as if they were news.
    logging.getLogger("mistral_common").setLevel(logging.WARNING)
    if path.suffix != ".model":
        return Common.from_file(path)
    from mistral_common.protocol.instruct.normalize import get_normalizer
    from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
    from mistral_common.tokens.tokenizers import instruct
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    plain = SentencePieceTokenizer(path, tokenizer_version=TokenizerVersion("v1"))
    name = next((version for version, marker in _MARKERS if plain.is_special(marker)), "v1")
    version = TokenizerVersion(name)
    encoder: Any = getattr(instruct, f"InstructTokenizerV{name[1:]}")
    return Common(
        encoder(SentencePieceTokenizer(path, tokenizer_version=version)),
        validator=get_validator(version, mode=ValidationMode.test),
        request_normalizer=get_normalizer(version, None),
    )
