"""Tools of a chat request: what the tokenizer is told of them, and the calls that an answer makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sash.errors import SashError
from sash.server.errors import bad_field
from sash.server.protocol import ChatRequest, NamedTool, Tool
from sash.text.grammar_source import GrammarSource
from sash.text.tokenizer import Tokenizer
from sash.text.tool_grammar import tool_grammar
from sash.text.tools import ToolCall, check_tools, read_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """How an answer may call tools.

    Attributes:
        options: of `Tokenizer.encode_chat`.
        names: of the tools; empty where none may be called.
        parallel: whether one answer may make several calls.
        source: the grammar that makes the answer obey; None where the model is free.
        forced: whether a call must be made.
    """

    options: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    parallel: bool = True
    source: GrammarSource | None = None
    forced: bool = False


def plain_tools(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Tools as the tokenizer takes them."""
    return [tool.model_dump(exclude_unset=True) for tool in tools or ()]


def read_tools(tokenizer: Tokenizer, body: ChatRequest) -> Calling:
    """What a request says of tools.

    Raises:
        ApiError: 400, tools or a choice that cannot be, or a model that knows none.
    """
    choice = body.tool_choice.model_dump() if isinstance(body.tool_choice, NamedTool) else body.tool_choice
    if not body.tools and choice in (None, "none", "auto"):
        return Calling()
    tools = plain_tools(body.tools)
    param = "tools"
    try:
        checked = check_tools(tools)
        param = "tool_choice"
        wanted = read_choice(choice, checked)
        if wanted.mode == "none":
            return Calling()
        param = "tools"
        if not tokenizer.has_tools:
            message = "this model's chat format knows no tools: use a model that was trained to call functions"
            raise bad_field(message, "tools", "unsupported_parameter")
        parallel = body.parallel_tool_calls is not False
        source = tool_grammar(tokenizer, tools, choice, parallel=parallel)
    except SashError as error:
        raise bad_field(str(error), param) from None
    return Calling(
        options={"tools": tools, "tool_choice": choice},
        names=tuple(tool["function"]["name"] for tool in checked),
        parallel=parallel,
        source=source,
        forced=wanted.mode == "required",
    )


def call_to_json(call: ToolCall) -> dict[str, Any]:
    """A call as answers say it."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
