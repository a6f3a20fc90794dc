"""Calls of tools read out of the text that a model wrote for them; whatever is wrong with it, there is no error."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sash.text.tools import ARGS, CALL_ID, ToolCall, fits_short_id, is_name, new_call_id


def separate_call(text: str) -> tuple[ToolCall, ...]:
    """name[ARGS]{...}, perhaps with [CALL_ID]id before [ARGS]; nothing where it is malformed."""
    head, mark, arguments = text.partition(ARGS)
    if not mark:
        return list_of_calls(text)
    name, _, call_id = head.partition(CALL_ID)
    value = whole_value(arguments)
    if not isinstance(value, dict) or not is_name(name.strip()):
        return ()
    return (ToolCall(_identity(call_id.strip(), ()), name.strip(), arguments.strip()),)


def list_of_calls(text: str) -> tuple[ToolCall, ...]:
    """A JSON list of calls, or one call; nothing where any of them is malformed."""
    value = whole_value(text)
    calls: list[ToolCall] = []
    for one in value if isinstance(value, list) else [value]:
        call = as_call(one)
        if call is None:
            return ()
        taken = [earlier.id for earlier in calls]
        calls.append(ToolCall(_identity(call.id, taken), call.name, call.arguments))
    return tuple(calls)


def as_call(value: Any, *, strict: bool = False) -> ToolCall | None:
    """A JSON object as a call; None where it is none. `strict` asks for arguments, be they empty."""
    if not isinstance(value, dict) or not is_name(value.get("name")):
        return None
    key = next((key for key in ("arguments", "parameters") if key in value), None)
    if key is None and strict:
        return None
    arguments = {} if key is None or value[key] is None else value[key]
    if isinstance(arguments, str):
        arguments = whole_value(arguments)
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    if not text.isascii() and not _encodable(text):
        text = json.dumps(arguments)
    return ToolCall(_identity(value.get("id"), ()), value["name"], text)


def _identity(call_id: object, taken: Collection[str]) -> str:
    """The id that the model gave, where it is one and still free; else a fresh one."""
    return str(call_id) if fits_short_id(call_id) and call_id not in taken else new_call_id()


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def whole_value(text: str) -> Any:
    """What a JSON text says; None where it is none."""
    value, rest = first_value(text.strip())
    return None if rest.strip() else value


def first_value(text: str) -> tuple[Any, str]:
    """The value that a text begins with and what follows it; (None, the text) where it begins with none."""
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None, text
    return value, text[end:]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
