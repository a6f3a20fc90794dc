"""Filling in the middle: the tokens that models of code were trained with, prefix and suffix first, then the middle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
)
"""In front of the text before the gap, of the text behind it, and of what fills it."""

MARKERS = frozenset(marker for markers in SPELLINGS for marker in markers)


@dataclass(frozen=True, slots=True)
class FimFormat:
    """The ids of the three markers."""

    prefix_id: int
    suffix_id: int
    middle_id: int


def fim_format(spelled: Mapping[str, int]) -> FimFormat | None:
    """The format of a vocabulary, by the ids of its control tokens; None where it was not made for this.

    >>> fim_format({"<fim_prefix>": 1, "<fim_suffix>": 3, "<fim_middle>": 2})
    FimFormat(prefix_id=1, suffix_id=3, middle_id=2)
    """
    for markers in SPELLINGS:
        if all(marker in spelled for marker in markers):
            return FimFormat(*(spelled[marker] for marker in markers))
    return None
