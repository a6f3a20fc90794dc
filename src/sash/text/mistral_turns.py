"""Checked messages and tools as mistral-common's own objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sash.text.messages import Message
from sash.text.tools import short_id


def mistral_turns(messages: Sequence[Message], continue_final: bool) -> list[Any]:
    """The messages; the last, an assistant's, open if it is to be continued.

    Ids of calls are written in nine characters, see `short_id`. A tool's message that does not say which tool it is
    gets the name that its call had.
    """
    from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, ToolMessage, UserMessage

    turns: list[Any] = []
    names: dict[str, str] = {}
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            calls = message.get("tool_calls", ())
            names |= {call["id"]: call["function"]["name"] for call in calls}
            turns.append(AssistantMessage(content=content or None, tool_calls=[_call(one) for one in calls] or None))
        elif role == "tool":
            call_id = message.get("tool_call_id", "")
            name = message.get("name") or names.get(call_id)
            turns.append(ToolMessage(content=content, tool_call_id=short_id(call_id), name=name))
        else:
            turns.append((SystemMessage if role == "system" else UserMessage)(content=content))
    if continue_final:
        turns[-1].prefix = True
    return turns


def mistral_tools(tools: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The tools."""
    from mistral_common.protocol.instruct.tool_calls import Tool

    return [Tool.from_openai(dict(tool)) for tool in tools]


def _call(call: Mapping[str, Any]) -> Any:
    from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall

    function = FunctionCall(name=call["function"]["name"], arguments=call["function"]["arguments"])
    return ToolCall(id=short_id(call["id"]), function=function)
