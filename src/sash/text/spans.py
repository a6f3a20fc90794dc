"""Which tokens of a prompt a message, a passage or a sentence is. Needs no torch.

A chat format is a black box here: it is asked what it makes of the same conversation with one message said
differently, and what stays the same around that is not the message. So this works for every tokenizer, wherever its
format puts a message (Mistral's puts system prompts into the user's turn), and whatever it adds of its own.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from sash.errors import TokenizerError, UsageError
from sash.text.tokenizer import Tokenizer

OTHER_WORDS = ("Q7", "z", "0k", "#v")
"""What is said instead of a message; the one taken begins and ends unlike it."""

SNIPPET = 60
"""Characters of a sentence that are shown."""

_CUT = b"\xff"  # stands for a control token: no UTF-8 has it
_SENTENCE_END = re.compile(rb"([.!?]+[\"')\]]*)(?:\s+|(?=\xff))|\n\s*\n|\xff+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a prompt.

    Attributes:
        span: its tokens' positions.
        text: what it says, cut to `SNIPPET` characters.
    """

    span: range
    text: str


def message_spans(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, ids: Sequence[int] | None = None, **options: Any
) -> list[range]:
    """The tokens of each message in `tokenizer.encode_chat(messages, **options)`, one range a message.

    A message's range holds what the format writes around it: its role in front, the end of its turn behind; the first
    also begin-of-text. What belongs to no message (a system prompt that the format adds, the cue for an answer) is in
    no range, as far as control tokens tell it from the message; in a format of plain text it goes with the message
    before it. A format may put messages into another order.

    Args:
        tokenizer: with a chat format.
        messages: the conversation.
        ids: what `encode_chat` makes of it, if that is known already.
        **options: those of `encode_chat`.

    Raises:
        TokenizerError, UsageError: as `encode_chat` does.
    """
    whole = list(tokenizer.encode_chat(messages, **options) if ids is None else ids)
    contents = content_spans(tokenizer, messages, ids=whole, **options)
    spans: list[range | None] = [None] * len(messages)
    order = sorted((span.start, span.stop, index) for index, span in enumerate(contents) if span is not None)
    starts = {}
    edges = [(0, 0, -1), *order, (len(whole), len(whole), -1)]
    for (_, stop, before), (start, _, after) in pairwise(edges):
        ends_at, begins_at = _turn_edge(tokenizer, whole, stop, start, inner=before >= 0 and after >= 0)
        starts[after] = begins_at if before >= 0 or begins_at > stop else 0
        if before >= 0:
            spans[before] = range(starts[before], ends_at)
    return _filled(spans, len(whole))


def content_spans(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, ids: Sequence[int] | None = None, **options: Any
) -> list[range | None]:
    """The tokens of what each message says, without what the format writes around it; see `message_spans`.

    None where a message says nothing that the format shows.
    """
    whole = list(tokenizer.encode_chat(messages, **options) if ids is None else ids)
    return [_content(tokenizer, messages, index, whole, options) for index in range(len(messages))]


def _content(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], index: int, whole: list[int], options: dict[str, Any]
) -> range | None:
    """The tokens of what one message says; None where the format does not show it."""
    content = messages[index].get("content")
    if not isinstance(content, str):
        return None
    said = content.strip().lower() or " "
    other = next(words for words in OTHER_WORDS if words[0] != said[0] and words[-1] != said[-1])
    changed = [{**message, "content": other} if at == index else message for at, message in enumerate(messages)]
    try:
        ids = list(tokenizer.encode_chat(changed, **options))
    except (TokenizerError, UsageError):
        return None
    if ids == whole:
        return None
    most = min(len(ids), len(whole))
    head = next((at for at in range(most) if ids[at] != whole[at]), most)
    tail = next((at for at in range(most - head) if ids[-1 - at] != whole[-1 - at]), most - head)
    return range(head, len(whole) - tail)


def _turn_edge(tokenizer: Tokenizer, ids: list[int], first: int, end: int, *, inner: bool) -> tuple[int, int]:
    """Of the format's own tokens [first, end) between two messages: where one turn ends, and where the next begins."""
    turns = [at for at in range(first, end) if ids[at] in tokenizer.eos_ids]
    if turns:
        return tuple(_past_space(tokenizer, ids, at + 1, end) for at in (turns[0], turns[-1]))  # type: ignore[return-value]
    control = [at for at in range(first, end) if ids[at] in tokenizer.control_ids]
    if inner and len(control) > 1:
        return control[-1], control[-1]
    return (end, end) if inner or end == len(ids) else (first, first)


def _past_space(tokenizer: Tokenizer, ids: list[int], at: int, end: int) -> int:
    while at < end and ids[at] not in tokenizer.control_ids and not tokenizer.token_bytes(ids[at]).strip():
        at += 1
    return at


def _filled(spans: list[range | None], length: int) -> list[range]:
    """Messages that could not be found get what is left between their neighbours."""
    filled: list[range] = []
    for index, span in enumerate(spans):
        if span is None:
            start = filled[-1].stop if filled else 0
            stop = next((later.start for later in spans[index + 1 :] if later is not None), length)
            span = range(start, max(start, stop))
        filled.append(span)
    return filled


def find_text(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> range:
    """The tokens in which `text` stands the first time; a token that it shares with other text counts.

    Raises:
        UsageError: it is empty, or the prompt does not say it.
    """
    wanted = text.strip().encode()
    if not wanted:
        raise UsageError("there is no text to look for in the prompt")
    said, ends = _spelled(tokenizer, ids)
    at = said.find(wanted)
    if at < 0:
        raise UsageError(f"the prompt does not say {_snippet(wanted)!r}: give the text as it stands there")
    return range(bisect_right(ends, at), bisect_right(ends, at + len(wanted) - 1) + 1)


def sentences(tokenizer: Tokenizer, ids: Sequence[int], within: range | None = None) -> list[Passage]:
    """The sentences of a prompt, or of the tokens `within`; control tokens and empty lines end one, too.

    Each token that is not a control token is in one sentence at most; one that two share is in the later.
    """
    within = range(len(ids)) if within is None else within
    said, ends = _spelled(tokenizer, ids[within.start : within.stop])
    found: list[Passage] = []
    begin = 0
    for match in [*_SENTENCE_END.finditer(said), None]:
        end = len(said) if match is None else match.end(1) if match[1] else match.start()
        whole = said[begin:end].strip()
        if whole:
            at = end - len(said[begin:end].lstrip())
            first, last = (within.start + bisect_right(ends, byte) for byte in (at, at + len(whole) - 1))
            if found and found[-1].span.stop > first:
                found[-1] = Passage(range(found[-1].span.start, first), found[-1].text)
            found.append(Passage(range(first, last + 1), _snippet(whole)))
        begin = end if match is None else match.end()
    return [passage for passage in found if len(passage.span)]


def _spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[bytes, list[int]]:
    """What tokens say, and where each of them ends in it."""
    control = tokenizer.control_ids
    parts = [_CUT if one in control else tokenizer.token_bytes(one, first=at == 0) for at, one in enumerate(ids)]
    return b"".join(parts), list(accumulate(map(len, parts)))


def _snippet(said: bytes) -> str:
    words = " ".join(said.decode("utf-8", errors="replace").split())
    return words if len(words) <= SNIPPET else words[: SNIPPET - 1].rstrip() + "…"
