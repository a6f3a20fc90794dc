"""Tokenizers of Hugging Face folders (`tokenizer.json`), through the `tokenizers` library.

Files are a stranger's: their size is capped, regular expressions that could run for exponential time are refused, and
whatever the library throws, Rust panics included, becomes one TokenizerError.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from sash.errors import TokenizerError
from sash.text.byte_spelling import spelled_bytes
from sash.text.fim import MARKERS
from sash.text.template import MAX_SOURCE, ChatTemplate
from sash.text.templated import TemplatedTokenizer
from sash.text.tokenizer import REPLACEMENT, TURN_ENDS, check_id, check_vocabulary_size, foreign_code

MAX_TOKENIZER_FILE = 64 << 20
"""Bytes of a tokenizer.json; Gemma's has 33 million."""

MAX_SMALL_FILE = 8 << 20
"""Bytes of any other JSON file beside it; a tokenizer_config.json with thousands of added tokens has 1 million."""

_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d)")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How a vocabulary's tokens spell text.

    Attributes:
        byte_level: GPT-2's alphabet of visible bytes; otherwise U+2581 stands for a space.
        byte_fallback: whether tokens such as <0x0A> are bytes.
        drops_first_space: whether decoding drops the space that encoding put in front of the text.
    """

    byte_level: bool
    byte_fallback: bool = False
    drops_first_space: bool = False


class BackendTokenizer(TemplatedTokenizer):
    """A pipeline of the `tokenizers` library with Sash's rules around it."""

    def __init__(
        self,
        backend: Backend,
        *,
        spelling: Spelling,
        kind: str,
        special: Mapping[str, str],
        bos_id: int | None,
        eos_ids: frozenset[int],
        template: ChatTemplate | None,
    ) -> None:
        """Wraps a pipeline.

        Args:
            backend: the pipeline; its special added tokens are the control tokens.
            spelling: how its tokens spell text.
            kind: a few words for people.
            special: spellings by name ("mask_token" ...).
            bos_id: what to put in front of texts.
            eos_ids: ids that end a text, besides those known by name.
            template: the chat template.

        Raises:
            TokenizerError: an empty or absurdly large vocabulary.
        """
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        check_vocabulary_size(self.vocab_size)
        self._tokens: list[str | None] = [None] * self.vocab_size
        for token, token_id in vocabulary.items():
            self._tokens[token_id] = token
        self._backend, self._lock, self._spelling = backend, threading.Lock(), spelling
        self._added = {token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()}
        # Some files call the markers for filling in the middle text, which they never are.
        self.control_ids = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special or token.content in MARKERS
        )
        self.kind, self.template, self.bos_id = kind, template, bos_id
        self.mask_id = vocabulary.get(special.get("mask_token", ""))
        self.eos_ids = eos_ids | {token_id for token_id in self.control_ids if self._tokens[token_id] in TURN_ENDS}
        self._anchor = self._run("\n", plain=True)

    @cached_property
    def _unspeakable(self) -> frozenset[int]:
        unknown = getattr(self._backend.model, "unk_token", None)
        return self.control_ids - {self._backend.token_to_id(unknown) if unknown else None}

    def _run(self, text: str, *, plain: bool) -> list[int]:
        with foreign_code("tokenising"), self._lock:
            self._backend.encode_special_tokens = plain
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _encode_piece(self, text: str, *, plain: bool, first: bool) -> list[int]:
        if not first:
            # After a line break no pipeline puts a space in front; the break's own ids come off again.
            ids = self._run("\n" + text, plain=plain)
            if ids[: len(self._anchor)] == self._anchor:
                return ids[len(self._anchor) :]
        return self._run(text, plain=plain)

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """See `Tokenizer.token_bytes`."""
        check_id(token_id)
        if token_id in self._added:
            return self._added[token_id].encode("utf-8", errors="replace")
        token = self._tokens[token_id] if token_id < self.vocab_size else None
        if token is None:
            return REPLACEMENT
        if self._spelling.byte_level:
            return spelled_bytes(token)
        if self._spelling.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        text = token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        if first and self._spelling.drops_first_space:
            text = text.removeprefix(" ")
        return text.encode("utf-8", errors="replace")


class HuggingFaceTokenizer(BackendTokenizer):
    """The tokenizer of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        """Reads tokenizer.json and the small files beside it.

        Raises:
            TokenizerError: a file is too large, broken, or describes a pipeline that Sash does not know.
        """
        path = folder / "tokenizer.json"
        if path.stat().st_size > MAX_TOKENIZER_FILE:
            raise TokenizerError(f"{path.name} is larger than {MAX_TOKENIZER_FILE >> 20} MiB, which no tokenizer needs")
        with foreign_code(f"reading {path.name}"):
            backend = Backend.from_buffer(path.read_bytes())
            backend.no_truncation()
            backend.no_padding()
            _refuse_slow_patterns(backend)
            spelling = _spelling(backend)
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens({**_read_json(folder / "special_tokens_map.json"), **config})
        eos_ids = _declared_ends(folder)
        if (end := backend.token_to_id(special.get("eos_token", ""))) is not None:
            eos_ids |= {end}
        super().__init__(
            backend,
            spelling=spelling,
            kind=f"{type(backend.model).__name__} (tokenizer.json)",
            special=special,
            bos_id=_begin(backend, special, config.get("add_bos_token")),
            eos_ids=eos_ids,
            template=_template(folder, config, special),
        )


def repeats_group(pattern: str) -> bool:
    r"""Whether a regular expression repeats a group, which is what makes backtracking exponential.

    >>> repeats_group("(a+)+$"), repeats_group(r"(?i:'s|'t)|\p{N}{1,3}| ?[^)]+")
    (True, False)
    """
    return _REPEATED_GROUP.search(re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", pattern)) is not None


def _refuse_slow_patterns(backend: Backend) -> None:
    """Looks at every regular expression of a pipeline.

    Raises:
        TokenizerError: one has a repeated group.
    """
    for stage in (backend.normalizer, backend.pre_tokenizer, backend.decoder):
        if stage is None:
            continue
        for pattern in _patterns(json.loads(stage.__getstate__())):
            if repeats_group(pattern):
                raise TokenizerError(f"the regular expression {pattern[:80]!r} repeats a group, which can take forever")


def _patterns(state: Any) -> Iterator[str]:
    """Every value of a "Regex" key, however deep."""
    if isinstance(state, dict):
        for key, value in state.items():
            if key == "Regex" and isinstance(value, str):
                yield value
            else:
                yield from _patterns(value)
    elif isinstance(state, list):
        for item in state:
            yield from _patterns(item)


def _spelling(backend: Backend) -> Spelling:
    """What the pipeline's decoder says of how tokens spell text.

    Raises:
        TokenizerError: a decoder that Sash does not know.
    """
    state: Any = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {"type": "none"}
    steps: list[dict[str, Any]] = state["decoders"] if state["type"] == "Sequence" else [state]
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return Spelling(byte_level=True)
    metaspace, strip = by_type.get("Metaspace"), by_type.get("Strip")
    spaced = any(step["type"] == "Replace" and step.get("content") == " " for step in steps)
    if metaspace is None and not spaced:
        raise TokenizerError(f"the decoder {', '.join(by_type)} is not known: ByteLevel, Metaspace and Replace are")
    drops = strip is not None and strip.get("start", 0) > 0
    if metaspace is not None:
        drops = metaspace.get("prepend_scheme", "always") != "never"
    return Spelling(byte_level=False, byte_fallback="ByteFallback" in by_type, drops_first_space=drops)


def _begin(backend: Backend, special: Mapping[str, str], declared: object) -> int | None:
    """The begin-of-text id, where this tokenizer puts one in front of texts.

    `add_bos_token` decides where it is given, else what the pipeline's own post-processor does.
    """
    bos = backend.token_to_id(special.get("bos_token", special.get("cls_token", "")))
    if bos is None or declared is False:
        return None
    if declared is True:
        return int(bos)
    with foreign_code("tokenising"):
        return int(bos) if backend.encode("a", add_special_tokens=True).ids[:1] == [bos] else None


def _declared_ends(folder: Path) -> frozenset[int]:
    """End-of-text ids that generation_config.json or config.json name: an integer or a list of them."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        declared = _read_json(folder / name).get("eos_token_id")
        for token_id in declared if isinstance(declared, list) else [declared]:
            if isinstance(token_id, int) and not isinstance(token_id, bool) and token_id >= 0:
                ends.add(token_id)
    return frozenset(ends)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Spellings by name; a value may be a string or an object with its "content"."""
    found: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        value = config.get(name)
        spelled = value.get("content") if isinstance(value, dict) else value
        if isinstance(spelled, str):
            found[name] = spelled
    return found


def _template(folder: Path, config: Mapping[str, Any], special: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template: chat_template.jinja, else the one in tokenizer_config.json ("default" of several)."""
    path = folder / "chat_template.jinja"
    source = config.get("chat_template")
    if path.is_file():
        if path.stat().st_size > 4 * MAX_SOURCE:
            raise TokenizerError(f"{path.name} is larger than {4 * MAX_SOURCE >> 10} KiB, which no template needs")
        try:
            source = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path.name} is not UTF-8") from error
    elif isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise TokenizerError("chat_template in tokenizer_config.json must be a string or a list of named templates")
    return ChatTemplate(source=source, special=special)


def _read_json(path: Path) -> dict[str, Any]:
    """A small JSON file's object; empty where there is no such file.

    Raises:
        TokenizerError: too large, not JSON, or not an object.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_SMALL_FILE:
        raise TokenizerError(f"{path.name} is larger than {MAX_SMALL_FILE >> 20} MiB")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} is not JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path.name} must hold a JSON object")
    return content
