"""A prompt cut into the parts that an audit tells of: its messages' sentences, or those of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sash.explain.audit import Part
from sash.text.pins import Contract
from sash.text.spans import content_spans, sentences
from sash.text.tokenizer import Tokenizer


def prompt_parts(
    tokenizer: Tokenizer, ids: Sequence[int], messages: Sequence[Mapping[str, Any]] | None = None, **options: Any
) -> list[Part]:
    """The sentences of a prompt, those of a conversation with whose they are in front.

    Args:
        tokenizer: the prompt's.
        ids: the prompt.
        messages: what it renders; None for plain text.
        **options: those of `encode_chat` with which it was rendered.
    """
    if messages is None:
        return [(f"“{found.text}”", found.span) for found in sentences(tokenizer, ids)]
    spans = content_spans(tokenizer, messages, ids=ids, **options)
    roles = Counter(str(message["role"]) for message in messages)
    counted: Counter[str] = Counter()
    parts: list[Part] = []
    for message, span in zip(messages, spans, strict=True):
        role = str(message["role"])
        counted[role] += 1
        name = role if roles[role] == 1 else f"{role} {counted[role]}"
        said = [] if span is None else sentences(tokenizer, ids, within=span)
        parts += [(f"{name}: “{found.text}”", found.span) for found in said]
    return parts


def marked_parts(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    marks: Sequence[str | range],
    messages: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[Part]:
    """The parts that `marks` name, in the words that pin them; see `sash.text.pins`.

    Raises:
        UsageError: a mark that names nothing in this prompt.
    """
    chosen = Contract.of(marks).choose(tokenizer, ids, messages, **options)
    return [(words.removeprefix("text:"), span) for words, spans in chosen.items() for span in spans]
