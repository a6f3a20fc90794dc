"""From the messages of a request to what a tokenizer takes, and where each of them lies among the tokens."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from sash.errors import SashError
from sash.server.errors import ApiError, bad_field
from sash.server.protocol import Message
from sash.text.tokenizer import Tokenizer

MAX_KNOWN = 8192
"""Ends of messages that are remembered, so that a growing chat is not rendered again for every message of it."""

_SPEAKERS = {"developer": "system", "function": "tool"}

_known: OrderedDict[bytes, int] = OrderedDict()


def as_messages(messages: Sequence[Message], most: int) -> list[dict[str, Any]]:
    """The messages as `Tokenizer.encode_chat` takes them.

    Raises:
        ApiError: 400, too many of them, or something in them that is no text.
    """
    if len(messages) > most:
        raise bad_field(f"a conversation has at most {most} messages; got {len(messages)}", "messages")
    return [_as_message(number, message) for number, message in enumerate(messages)]


def _as_message(number: int, message: Message) -> dict[str, Any]:
    role = _SPEAKERS.get(message.role, message.role)
    plain: dict[str, Any] = {"role": role, "content": _text(number, message)}
    if message.tool_calls:
        if role != "assistant":
            raise bad_field("only an assistant's message has tool_calls", f"messages.{number}.tool_calls")
        plain["tool_calls"] = [_as_tool_call(call.model_dump(exclude_unset=True)) for call in message.tool_calls]
    if role == "tool":
        if message.tool_call_id is not None:
            plain["tool_call_id"] = message.tool_call_id
        if message.name is not None:
            plain["name"] = message.name
    return plain


def _as_tool_call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments", "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call["function"]["name"], "arguments": arguments}
    return {"id": call.get("id") or "", "type": "function", "function": function}


def _text(number: int, message: Message) -> str:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise bad_field(f"messages.{number}.content is missing", f"messages.{number}.content", "missing_field")
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for place, part in enumerate(content):
        if part.type != "text" or part.text is None:
            param = f"messages.{number}.content.{place}"
            message_ = f"{param}: this server reads text only, and this part is {part.type[:40]!r}"
            raise ApiError(400, message_, code="unsupported_content", param=param)
        texts.append(part.text)
    return "".join(texts)


def message_spans(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], ids: Sequence[int], **options: Any
) -> list[range]:
    """Where each message lies in `ids`, the tokens of the whole conversation, its markers included.

    A message ends where the tokens of the conversation up to it part from those of the whole. Where a template cannot
    be rendered up to some message, or moves one elsewhere, that message lies with the next one that can.

    Args:
        tokenizer: of the model.
        messages: the conversation.
        ids: its tokens.
        **options: of `encode_chat`, such as tools.
    """
    ends = []
    digest = hashlib.blake2b(f"{id(tokenizer)} {options!r}".encode(), digest_size=16)
    for count, message in enumerate(messages, start=1):
        digest.update(json.dumps(message, sort_keys=True).encode())
        known = count == len(messages)
        ends.append(len(ids) if known else _end(tokenizer, messages, count, ids, digest.digest(), options))
    starts, at = [], 0
    for index, end in enumerate(ends):
        ends[index] = end = max(at, min(end, len(ids)))
        starts.append(at)
        at = end
    return [range(start, end) for start, end in zip(starts, ends, strict=True)]


def _end(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    count: int,
    ids: Sequence[int],
    key: bytes,
    options: dict[str, Any],
) -> int:
    """How many of `ids` the first `count` messages take."""
    if key in _known:
        return _known[key]
    # A template that wants a user's message after this one gets a short one instead of the conversation's.
    heads = (messages[:count], [*messages[:count], {**messages[count], "content": "~"}])
    end = 0
    for head in heads:
        try:
            rendered = tokenizer.encode_chat(head, **options)
        except SashError:
            continue
        end = next((at for at, (a, b) in enumerate(zip(rendered, ids, strict=False)) if a != b), len(rendered))
        break
    _known[key] = end
    while len(_known) > MAX_KNOWN:
        _known.popitem(last=False)
    return end
