"""Conversations: what a message may hold, checked before any format sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sash.errors import TokenizerError, UsageError
from sash.text.tokenizer import GUARDRAIL, ROLES, check_unicode

Message: TypeAlias = dict[str, Any]
"""A checked message: "role" and "content", both strings; "tool_calls" of an assistant (a list of {"id", "type":
"function", "function": {"name", "arguments"}}, all strings); "tool_call_id" and "name" of a tool, where given."""


def read_messages(messages: Sequence[Mapping[str, Any]], continue_final: bool = False) -> tuple[list[Message], bool]:
    """A conversation as plain dicts, whatever mapping it came as, and whether its last message is to be continued.

    Keys that no format reads are left out. A "prefix" that is true on the last message asks to continue it.

    Raises:
        UsageError: no message, an unknown role, a wrong type, or nothing to continue.
        TextEncodingError: text with lone surrogates.
    """
    checked = [_message(number, message) for number, message in enumerate(messages, start=1)]
    if not checked:
        raise UsageError("a conversation needs at least one message")
    for number, message in enumerate(messages, start=1):
        if message.get("prefix"):
            if number < len(checked) or message["role"] != "assistant":
                raise UsageError("prefix belongs to the last message, and that must be the assistant's")
            continue_final = True
    if continue_final and (checked[-1]["role"] != "assistant" or checked[-1].get("tool_calls")):
        raise UsageError("continue_final continues an assistant's message, and the last message is not one")
    return checked, continue_final


def _message(number: int, message: Mapping[str, Any]) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise UsageError(f"message {number} must be a mapping with 'role' and 'content'")
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        raise UsageError(f"message {number} has the role {role!r:.40}: use one of {', '.join(ROLES)}")
    if content is None and role == "assistant" and calls:
        content = ""
    if content is None and "content" not in message:
        raise UsageError(f"message {number} must be a mapping with 'role' and 'content'")
    if not isinstance(content, str):
        raise UsageError(f"message {number}: content must be a string, got {type(content).__name__}")
    check_unicode(content)
    checked: Message = {"role": str(role), "content": str(content)}
    if calls:
        if role != "assistant":
            raise UsageError(f"message {number}: only an assistant's message has tool_calls")
        if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
            raise UsageError(f"message {number}: tool_calls must be a list")
        checked["tool_calls"] = [_tool_call(number, call) for call in calls]
    if role == "tool":
        for name in ("tool_call_id", "name"):
            if message.get(name) is not None:
                checked[name] = _string(number, name, message[name])
    return checked


def _tool_call(number: int, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise UsageError(f"message {number}: a tool call is an object with a 'function'")
    name = _string(number, "the name of a tool call", function.get("name"))
    arguments = _string(number, "the arguments of a tool call", function.get("arguments") or "{}")
    identity = _string(number, "the id of a tool call", call.get("id") or "")
    if not name:
        raise UsageError(f"message {number}: a tool call needs a name")
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _string(number: int, what: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"message {number}: {what} must be a string, got {type(value).__name__}")
    check_unicode(value)
    return value


def with_guardrail(messages: Sequence[Message]) -> list[Message]:
    """The conversation with `GUARDRAIL` as its system message, merged with a system message that is already first."""
    if messages and messages[0]["role"] == "system":
        content = f"{GUARDRAIL}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": content}, *messages[1:]]
    return [{"role": "system", "content": GUARDRAIL}, *messages]


def with_guardrail_in_user_turn(messages: Sequence[Message]) -> list[Message]:
    """The conversation with `GUARDRAIL` in front of the first user message.

    Raises:
        TokenizerError: no user has spoken, so there is nowhere to put it.
    """
    for index, message in enumerate(messages):
        if message["role"] == "user":
            guarded = {"role": "user", "content": f"{GUARDRAIL}\n\n{message['content']}"}
            return [*messages[:index], guarded, *messages[index + 1 :]]
    raise TokenizerError("safe_prompt needs a user message: this model's chat template knows no system role")
