"""Answers that must follow a grammar, by llguidance over any tokenizer.

llguidance works on bytes, so all it needs of a tokenizer is what each token adds to a text. Tables of a vocabulary are
built once and forgotten with their tokenizer; compiled grammars are kept, the least recently used go first. What a
grammar may cost is bounded on every side: its size and depth in `sash.text.grammar_source`, its states and the work for
one token by llguidance's own limits; a grammar that passes one of them ends its own request with an error.

Control tokens are never allowed, save the end of the text where the grammar may stop, and those that a grammar of
`sash.text.tools` names. Needs no torch.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sash.errors import UsageError
from sash.text.grammar_source import GrammarSource, json_object
from sash.text.tokenizer import REPLACEMENT, Tokenizer, foreign_code

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from numpy.typing import NDArray

MAX_COMPILED = 64
"""Compiled grammars that are kept for a tokenizer."""

MAX_COMPILED_SIZE = 1 << 20
"""Characters that the sources of all compiled grammars kept for a tokenizer may have together."""

_MARKER = b"\xff"
"""What llguidance takes for the beginning of a control token's name; no UTF-8 has it."""

_NOT_TEXT = (REPLACEMENT, " \N{DOUBLE QUESTION MARK} ".encode(), b"")
"""What tokens stand for that add no text of their own: holes of a vocabulary, the unknown token."""

# llguidance's messages go on with the grammar itself, and begin with a place in what was written around it.
_EXCERPT = re.compile(r"\n\s+\d+ \| |<state>|<backtrace>")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")


def open_grammar(tokenizer: Tokenizer, source: GrammarSource, *, continues: bool = False) -> TextGrammar:
    """A new way through a grammar, at its beginning. Any thread.

    Args:
        tokenizer: whose tokens will be taken.
        source: from `json_schema`, `json_object`, `regex`, `lark`.
        continues: whether the answer follows text that was written before; otherwise SentencePiece's first token adds
            no space.

    Raises:
        UsageError: the grammar is wrong, or too complex.
    """
    return _tables(tokenizer).open(source, continues)


def warm(tokenizer: Tokenizer) -> None:
    """Builds a tokenizer's tables now rather than with the first grammar (seconds for a large vocabulary)."""
    _tables(tokenizer)


class TextGrammar:
    """One answer's way through a grammar (`sash.engine.grammar.Grammar`). One thread at a time."""

    def __init__(self, matcher: LLMatcher, permitted: NDArray[np.uint8], first: _FirstToken | None) -> None:
        """Starts where the matcher stands; `first` decides the first token, where that adds other bytes than later."""
        self._matcher = matcher
        self._permitted = permitted
        self._first = first

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def mask(self) -> NDArray[np.uint8]:
        """The tokens that may come next, as bits, the lowest of the first byte being token 0's.

        Raises:
            UsageError: the grammar has become too complex here.
        """
        import numpy as np

        matcher = self._matcher if self._first is None else self._first.matcher
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        _check(matcher, "the grammar cannot be followed further")
        return bits[: len(self._permitted)] & self._permitted

    def take(self, token_id: int) -> None:
        """Go on by a token that `mask` allowed.

        Raises:
            UsageError: the grammar does not allow it.
        """
        ids = [token_id] if self._first is None else self._first.as_later_tokens(token_id)
        self._first = None
        if not self._matcher.consume_tokens(ids):
            raise UsageError(f"token {token_id} does not fit the grammar here")


class _FirstToken:
    """The first token of a text, where it adds fewer bytes than later: SentencePiece's space in front of texts."""

    def __init__(self, matcher: LLMatcher, tables: _Tables) -> None:
        self.matcher = matcher
        self._tables = tables

    def as_later_tokens(self, token_id: int) -> list[int]:
        """Tokens that add the same bytes in the midst of a text."""
        said = self._tables.shortened.get(token_id)
        return [token_id] if said is None else list(self._tables.backend.greedy_tokenize(said))


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokens: list[bytes], special_ids: list[int], eos_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_id
        self.bos_token_id = None

    def __call__(self, text: str | bytes) -> list[int]:
        # Only forced text would be tokenised, and no grammar here forces any.
        return []


class _Tables:
    """A tokenizer as llguidance sees it, and the grammars that were compiled for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import numpy as np

        size, control = tokenizer.vocab_size, tokenizer.control_ids
        said = [tokenizer.token_bytes(index) for index in range(size)]
        hidden = {index for index, raw in enumerate(said) if raw in _NOT_TEXT or raw[:1] == _MARKER}
        self._unsaid = frozenset(index for index in control if index < size) | hidden
        self._ends = sorted(index for index in tokenizer.eos_ids if index < size)
        self.backend = self._backend(said)
        # At the start of a text a token may only lose a space.
        spaced = (index for index, raw in enumerate(said) if raw[:1] == b" " and index not in self._unsaid)
        self.shortened = {
            index: raw.decode("utf-8", errors="replace")
            for index in spaced
            if (raw := tokenizer.token_bytes(index, first=True)) != said[index]
        }
        first = [self.shortened[index].encode() if index in self.shortened else raw for index, raw in enumerate(said)]
        self._first_backend = self._backend(first) if self.shortened else None
        permitted = np.ones(-(-size // 32) * 32, dtype=np.bool_)
        permitted[size:] = False
        permitted[sorted(self._unsaid - set(self._ends))] = False
        self._permitted = np.packbits(permitted, bitorder="little")
        self._lock = threading.Lock()
        self._compiled: OrderedDict[tuple[str, bool], LLMatcher] = OrderedDict()
        self._compiled_size = 0

    def _backend(self, said: list[bytes]) -> LLTokenizer:
        from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

        unsaid = self._unsaid | {index for index, raw in enumerate(said) if not raw}
        tokens = [b"%c<%d>" % (0xFF, index) if index in unsaid else raw for index, raw in enumerate(said)]
        ends = self._ends or [next(iter(sorted(unsaid)), 0)]
        with foreign_code("reading the vocabulary for grammars"):
            wrapped = TokenizerWrapper(_Vocabulary(tokens, sorted(unsaid), ends[0]))
            backend = LLTokenizer(wrapped, n_vocab=len(tokens), eos_token=ends)
            # The first mask of all is many times as slow as any other.
            LLMatcher(backend, LLMatcher.grammar_from_lark(json_object().lark), log_level=0).compute_bitmask()
            return backend

    def open(self, source: GrammarSource, continues: bool) -> TextGrammar:
        import numpy as np

        permitted = self._permitted
        if source.control_ids:
            permitted = permitted.copy()
            for index in source.control_ids:
                permitted[index // 8] |= np.uint8(1 << index % 8)
        matcher = self._matcher(source, self.backend)
        if continues or self._first_backend is None:
            return TextGrammar(matcher, permitted, None)
        return TextGrammar(matcher, permitted, _FirstToken(self._matcher(source, self._first_backend), self))

    def _matcher(self, source: GrammarSource, backend: LLTokenizer) -> LLMatcher:
        from llguidance import LLMatcher

        key = (source.lark, backend is self.backend)
        with self._lock:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
                return known.deep_copy()
        with foreign_code(f"reading the {source.what}"):
            matcher = LLMatcher(backend, LLMatcher.grammar_from_lark(source.lark), log_level=0, limits=_limits())
        _check(matcher, f"the {source.what} is not one that can be followed")
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = matcher
                self._compiled_size += len(source.lark)
            while len(self._compiled) > MAX_COMPILED or self._compiled_size > MAX_COMPILED_SIZE:
                (text, _), _ = self._compiled.popitem(last=False)
                self._compiled_size -= len(text)
        return matcher.deep_copy()


_TABLES: WeakKeyDictionary[Tokenizer, _Tables] = WeakKeyDictionary()
_TABLES_LOCK = threading.Lock()


def _tables(tokenizer: Tokenizer) -> _Tables:
    with _TABLES_LOCK:
        tables = _TABLES.get(tokenizer)
        if tables is None:
            tables = _TABLES[tokenizer] = _Tables(tokenizer)
        return tables


def _limits() -> LLParserLimits:
    """A quarter of llguidance's own limits on memory; a grammar in use needs a hundredth."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=60_000, max_grammar_size=250_000, verbose_errors=False)


def _check(matcher: LLMatcher, what: str) -> None:
    """Raises what a matcher complains of, in one line.

    Raises:
        UsageError: it complains.
    """
    if not matcher.is_error():
        return
    said = " ".join(_EXCERPT.split(matcher.get_error(), maxsplit=1)[0].split())
    detail = "it is too complex" if said.startswith("panic") else _PLACE.sub("", said)[:200]
    raise UsageError(f"{what}: {detail}")
