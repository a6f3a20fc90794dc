"""From the messages of a request to what a tokenizer takes, and where each of them lies among the tokens."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from sash.server.errors import ApiError, bad_field
from sash.server.protocol import Message
from sash.text.spans import message_spans
from sash.text.tokenizer import Tokenizer

MAX_RENDERED = 2_000_000
"""Tokens that are rendered at most to find out exactly where messages lie."""

_SPEAKERS = {"developer": "system", "function": "tool"}


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


def spans_of(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], ids: list[int], **options: Any
) -> list[range]:
    """Where each message lies in `ids`, the tokens of the whole conversation.

    Exact spans cost a rendering of the conversation for each of its messages. Very long ones are searched for what
    the messages say instead, one after the other, where a message may get a few tokens of its neighbour's markers.

    Args:
        tokenizer: of the model.
        messages: the conversation.
        ids: its tokens.
        **options: of `encode_chat`, such as tools.
    """
    if len(messages) * len(ids) <= MAX_RENDERED:
        return message_spans(tokenizer, messages, ids=ids, **options)
    control = tokenizer.control_ids
    parts = [b"" if one in control else tokenizer.token_bytes(one, first=at == 0) for at, one in enumerate(ids)]
    said, ends = b"".join(parts), list(accumulate(map(len, parts)))
    stops, at = [], 0
    for message in messages:
        content = message["content"].strip().encode()
        found = said.find(content, at)
        at = at if found < 0 else found + len(content)
        stops.append(min(len(ids), bisect_left(ends, at) + 1) if at else 0)
    stops[-1] = len(ids)
    return [range(start, stop) for start, stop in pairwise([0, *stops])]
