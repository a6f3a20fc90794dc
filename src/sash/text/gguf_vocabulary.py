"""The vocabulary inside a GGUF file: SentencePiece-style ("llama") and byte-level BPE ("gpt2").

Key names and their meaning: the GGUF specification of the ggml project. Everything is checked before it is used, for a
file may say anything.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sash.errors import TokenizerError
from sash.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from sash.text.sentencepiece_proto import PieceType, encode_pieces, encode_settings
from sash.text.template import ChatTemplate
from sash.text.templated import TemplatedTokenizer
from sash.text.tokenizer import REPLACEMENT, TURN_ENDS, Tokenizer, check_id, check_vocabulary_size, foreign_code

_log = logging.getLogger(__name__)

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_UNKNOWN_SURFACE = " \N{DOUBLE QUESTION MARK} ".encode()
MAX_TOKEN = 4096
"""Characters that one token may have; the longest in use have a few hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The checked contents of the metadata that every kind of vocabulary has.

    Attributes:
        tokens: spellings by id, all different.
        types: `PieceType` by id.
        special: ids by name ("bos", "eos", "eot", "eom", "unknown", "mask"), where given.
        template: the chat template.
    """

    tokens: list[str]
    types: list[int]
    special: Mapping[str, int]
    template: ChatTemplate | None

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control type."""
        return frozenset(index for index, kind in enumerate(self.types) if kind == PieceType.CONTROL)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a turn or a text: those named so, and control tokens known by their spelling."""
        named = {self.special[name] for name in ("eos", "eot", "eom") if name in self.special}
        return frozenset(named | {index for index in self.control_ids if self.tokens[index] in TURN_ENDS})


def open_vocabulary(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata.

    Raises:
        TokenizerError: the vocabulary is missing, inconsistent, or of an unknown kind.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model == "llama":
        return SentencePieceVocabulary(metadata)
    if model == "gpt2":
        return open_byte_pairs(metadata)
    if model is None:
        raise TokenizerError("this GGUF file has no tokenizer (no tokenizer.ggml.model): use a file that has one")
    raise TokenizerError(f"GGUF tokenizer model {str(model)[:40]!r} is not known: 'llama' and 'gpt2' are")


def _sequence(metadata: Mapping[str, object], name: str, size: int | None = None) -> list[Any]:
    """A list of the metadata, of a given length."""
    key = f"tokenizer.ggml.{name}"
    value: Any = metadata.get(key)
    if value is None:
        raise TokenizerError(f"this GGUF file lacks {key}")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise TokenizerError(f"{key} must be a list; got {type(value).__name__}")
    if size is not None and len(value) != size:
        raise TokenizerError(f"{key} has {len(value):,} entries for a vocabulary of {size:,}")
    return list(value)


def _flag(metadata: Mapping[str, object], name: str, default: bool) -> bool:
    """A boolean of the metadata."""
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise TokenizerError(f"tokenizer.ggml.{name} must be a boolean; got {value!r:.40}")
    return value


def read_vocabulary(metadata: Mapping[str, object]) -> Vocabulary:
    """What every kind of vocabulary has, checked.

    Raises:
        TokenizerError: something is missing, of a wrong type, or out of range.
    """
    tokens = _sequence(metadata, "tokens")
    check_vocabulary_size(len(tokens))
    # Looked through as a whole first: a vocabulary may have hundreds of thousands, and all are well as a rule.
    well = set(map(type, tokens)) <= {str} and max(map(len, tokens)) <= MAX_TOKEN and "" not in tokens
    for index, token in enumerate(() if well else tokens):
        if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN:
            raise TokenizerError(f"token {index} must be a string of 1 to {MAX_TOKEN} characters; got {token!r:.40}")
    if len(set(tokens)) != len(tokens):
        raise TokenizerError("two tokens of tokenizer.ggml.tokens have the same spelling")
    types: list[Any] = [PieceType.NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in metadata:
        types = _sequence(metadata, "token_type", len(tokens))
    known = set(PieceType)
    well = set(map(type, types)) <= {int} and known.issuperset(types)
    for index, kind in enumerate(() if well else types):
        if type(kind) is bool or kind not in known:
            raise TokenizerError(f"token {index} has the type {kind!r:.40}; 1 to 6 are known")
    special: dict[str, int] = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "mask"):
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(tokens):
            raise TokenizerError(f"tokenizer.ggml.{name}_token_id is {value!r:.40}: use 0 to {len(tokens) - 1}")
        special[name] = value
    source = metadata.get("tokenizer.chat_template")
    if source is not None and not isinstance(source, str):
        raise TokenizerError(f"tokenizer.chat_template must be a string; got {type(source).__name__}")
    spelled = {f"{name}_token": tokens[special[name]] for name in ("bos", "eos") if name in special}
    template = None if source is None else ChatTemplate(source=source, special=spelled)
    return Vocabulary(tokens=tokens, types=[int(kind) for kind in types], special=special, template=template)


class SentencePieceVocabulary(TemplatedTokenizer):
    """A SentencePiece-style vocabulary: SentencePiece itself tokenises, from a model written in memory.

    Control tokens are never found in text by SentencePiece; those of a chat template are cut out first. After each of
    them a text starts anew, so a vocabulary that puts a space in front of texts does so there, as llama.cpp and
    Meta's and Mistral's own code do (transformers puts one at the very start only).
    """

    def __init__(self, metadata: Mapping[str, object]) -> None:
        """Checks the metadata and builds the model.

        Raises:
            TokenizerError: see `read_vocabulary`; also scores that are no numbers, or no unknown token.
        """
        vocabulary = read_vocabulary(metadata)
        tokens, types = vocabulary.tokens, vocabulary.types
        scores = _sequence(metadata, "scores", len(tokens))
        for index, score in enumerate(scores):
            if type(score) not in (float, int) or not math.isfinite(score) or abs(score) > 1e30:
                raise TokenizerError(f"token {index} has the score {score!r:.40}, which is no finite number")
        unknown = _unknown_id(vocabulary)
        types = [PieceType.CONTROL if kind == PieceType.UNKNOWN else kind for kind in types]
        types[unknown] = PieceType.UNKNOWN
        # Files spell runs of spaces as they are; the model's own pieces spell them with U+2581, as SentencePiece does.
        pieces = [token.replace(" ", _SPACE) for token in tokens]
        self._bytes = _byte_values(tokens, types)
        self._pieces = encode_pieces(pieces, scores, types)
        self._settings: dict[str, Any] = {
            "size": len(tokens),
            "unknown_id": unknown,
            "byte_fallback": bool(self._bytes),
        }
        self._texts, self._unknown = pieces, unknown
        self._adds_prefix = _flag(metadata, "add_space_prefix", True)
        self.vocab_size = len(tokens)
        self.control_ids = frozenset(index for index, kind in enumerate(types) if kind == PieceType.CONTROL)
        self.bos_id = vocabulary.special.get("bos") if _flag(metadata, "add_bos_token", True) else None
        self.eos_ids = vocabulary.eos_ids
        self.mask_id = vocabulary.special.get("mask")
        self.template = vocabulary.template
        self.kind = "SentencePiece (GGUF)"
        self._prefixed = self._processor(self._adds_prefix)

    def _processor(self, dummy_prefix: bool) -> Any:
        from sentencepiece import SentencePieceProcessor

        proto = self._pieces + encode_settings(dummy_prefix=dummy_prefix, **self._settings)
        with foreign_code("building the GGUF file's vocabulary"):
            return SentencePieceProcessor(model_proto=proto)

    @cached_property
    def _unprefixed(self) -> Any:
        return self._processor(False) if self._adds_prefix else self._prefixed

    @cached_property
    def _ids_of_control(self) -> dict[str, int]:
        return {self.token_text(token_id): token_id for token_id in self.control_ids}

    def _encode_piece(self, text: str, *, plain: bool, first: bool) -> list[int]:
        if plain:
            with foreign_code("tokenising"):
                return list((self._prefixed if first else self._unprefixed).encode(text))
        ids: list[int] = []
        start = 0
        for match in self.guard.control.finditer(text):
            if match.start() > start:
                ids += self._encode_piece(text[start : match.start()], plain=True, first=first)
            ids.append(self._ids_of_control[match[0]])
            start, first = match.end(), True
        if start < len(text):
            ids += self._encode_piece(text[start:], plain=True, first=first)
        return ids

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        check_id(token_id)
        if token_id >= self.vocab_size:
            return REPLACEMENT
        if token_id in self._bytes:
            return self._bytes[token_id]
        if token_id == self._unknown:
            return _UNKNOWN_SURFACE
        text = self._texts[token_id]
        if first and self._adds_prefix:
            text = text.removeprefix(_SPACE)
        return text.replace(_SPACE, " ").encode("utf-8")


def _unknown_id(vocabulary: Vocabulary) -> int:
    """The one token that stands for characters the vocabulary lacks; files often mark it as control."""
    marked = [index for index, kind in enumerate(vocabulary.types) if kind == PieceType.UNKNOWN]
    named = vocabulary.special.get("unknown", marked[0] if marked else None)
    if named is None:
        named = next((index for index, token in enumerate(vocabulary.tokens) if token == "<unk>"), None)
    if named is None:
        raise TokenizerError("this vocabulary has no unknown token, and SentencePiece needs one")
    return named


def _byte_values(tokens: Sequence[str], types: Sequence[int]) -> dict[int, bytes]:
    """Bytes by the ids of the byte type; each byte once, or no byte at all."""
    values: dict[int, bytes] = {}
    for index, kind in enumerate(types):
        if kind == PieceType.BYTE:
            try:
                values[index] = bytes([int(tokens[index].removeprefix("<0x").removesuffix(">"), 16)])
            except ValueError:
                raise TokenizerError(f"token {index} is of the byte type but spelled {tokens[index]!r:.40}") from None
    if values and len(set(values.values())) != 256:
        raise TokenizerError(f"a vocabulary with byte tokens needs all 256 of them; this one has {len(values)}")
    return values


def open_byte_pairs(metadata: Mapping[str, object]) -> Tokenizer:
    """A byte-level BPE vocabulary, run by the `tokenizers` library.

    Raises:
        TokenizerError: see `read_vocabulary`; also an unknown pre-tokenizer, or merges that do not fit the tokens.
    """
    from sash.text.huggingface import BackendTokenizer, Spelling

    vocabulary = read_vocabulary(metadata)
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        _log.warning("the GGUF file names no pre-tokenizer (tokenizer.ggml.pre): GPT-2's is assumed")
        pre = "default"
    style = PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
    if style is None:
        raise TokenizerError(f"pre-tokenizer {str(pre)[:40]!r} is not known: {', '.join(PRE_TOKENIZERS)} are")
    with foreign_code("building the GGUF file's vocabulary"):
        backend = _byte_pair_backend(vocabulary, _merges(metadata), style)
    return BackendTokenizer(
        backend,
        spelling=Spelling(byte_level=True),
        kind=f"byte-level BPE, {pre} (GGUF)",
        special={"mask_token": vocabulary.tokens[vocabulary.special["mask"]]} if "mask" in vocabulary.special else {},
        bos_id=vocabulary.special.get("bos") if _flag(metadata, "add_bos_token", style.adds_bos) else None,
        eos_ids=vocabulary.eos_ids,
        template=vocabulary.template,
    )


def _merges(metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    """The merges, best first; each is two tokens with a space between, and no token has a space in it."""
    merges: list[tuple[str, str]] = []
    for number, merge in enumerate(_sequence(metadata, "merges")):
        parts = merge.split(" ") if isinstance(merge, str) else []
        if len(parts) != 2 or not all(parts):
            raise TokenizerError(f"merge {number} must be two tokens with a space between; got {merge!r:.40}")
        merges.append((parts[0], parts[1]))
    return merges


def _byte_pair_backend(vocabulary: Vocabulary, merges: list[tuple[str, str]], style: PreTokenizer) -> Any:
    """The pipeline. Control tokens are added tokens, so that they can be switched off for plain text."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    lacking = next(((a, b) for a, b in merges if a not in ids or b not in ids or a + b not in ids), None)
    if lacking is not None:
        raise TokenizerError(f"the merge {' '.join(lacking)[:40]!r} names a token that the vocabulary lacks")
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=style.whole_words))
    if style.composes:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if style.digits_first else []
    steps.append(pre_tokenizers.Split(Regex(style.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    typed = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    control = [token for token, kind in typed if kind == PieceType.CONTROL]
    own = [token for token, kind in typed if kind == PieceType.USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in own])
    return backend
