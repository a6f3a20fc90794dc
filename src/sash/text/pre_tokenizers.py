"""How byte-level vocabularies cut text before byte pairs are merged, by the names that GGUF files use.

The regular expressions are those of the models' own tokenizer.json files; llama.cpp keeps the same list by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}"
)
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACES}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenizer:
    """How text is cut before byte pairs are merged.

    Attributes:
        pattern: each match is merged on its own.
        digits_first: whether every digit is cut off before the pattern sees the text.
        whole_words: whether a stretch that is a token as it stands skips the merging.
        composes: whether text is brought to Unicode's composed form (NFC) first.
        adds_bos: whether texts begin with a begin-of-text token where the file does not say.
    """

    pattern: str
    digits_first: bool = False
    whole_words: bool = False
    composes: bool = False
    adds_bos: bool = False


_LLAMA3_STYLE = PreTokenizer(pattern=_LLAMA3, whole_words=True, adds_bos=True)
_DIGITS_STYLE = PreTokenizer(pattern=_GPT2, digits_first=True)
_QWEN2_STYLE = PreTokenizer(pattern=_QWEN2, composes=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer(pattern=_GPT2),
    "gpt-2": PreTokenizer(pattern=_GPT2),
    "smollm": _DIGITS_STYLE,
    "starcoder": _DIGITS_STYLE,
    "llama-bpe": _LLAMA3_STYLE,
    "llama3": _LLAMA3_STYLE,
    "llama-v3": _LLAMA3_STYLE,
    "pixtral": _LLAMA3_STYLE,
    "qwen2": _QWEN2_STYLE,
    "deepseek-r1-qwen": _QWEN2_STYLE,
    "tekken": PreTokenizer(pattern=_TEKKEN, whole_words=True, adds_bos=True),
}
"""Values of `tokenizer.ggml.pre`. A wrong one silently costs quality, so an unknown one is refused."""
