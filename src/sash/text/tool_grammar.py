"""Grammars that make a model write calls of tools in its own format, with arguments that fit their schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sash.errors import TokenizerError
from sash.text.grammar_source import GRAMMAR_HEAD, GrammarSource, json_rule
from sash.text.tokenizer import Tokenizer
from sash.text.tools import ToolFormat, check_tools, read_choice

_ID = '/"[a-zA-Z0-9]{9}"/'


def tool_grammar(
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None,
    *,
    parallel: bool = True,
) -> GrammarSource | None:
    """The grammar of an answer that obeys `tool_choice`; None where the model is free.

    A required or named call must be made. Where the model may choose, and its format begins calls with a control token,
    calls keep to the schemas of tools that are strict; other tools then take any JSON object. A schema that nobody
    called strict is followed as far as it can be.

    Args:
        tokenizer: of the model.
        tools: as `Tokenizer.encode_chat` takes them.
        tool_choice: as `Tokenizer.encode_chat` takes it.
        parallel: whether one answer may make several calls.

    Raises:
        UsageError: tools, choice or a schema are wrong.
        TokenizerError: the model's format knows no tools.
    """
    checked = check_tools(tools)
    choice = read_choice(tool_choice, checked)
    if choice.mode == "none":
        return None
    form = tokenizer.tool_format
    if form is None:
        raise TokenizerError("this model's chat format knows no tools: use a model that was trained to call functions")
    functions = [tool["function"] for tool in checked if choice.name in (None, tool["function"]["name"])]
    forced = choice.mode == "required"
    if not forced and (form.calls_id is None or not any(function["strict"] for function in functions)):
        return None
    rules = _Rules(form, parallel)
    rules.add_calls(functions, forced)
    start = "calls" if forced else "calls | /(?s:.*)/"
    control = frozenset(one for one in (form.calls_id, form.args_id, form.call_id_id, form.end_id) if one is not None)
    return GrammarSource(f"{GRAMMAR_HEAD}start: {start}\n{rules.text}", "tools' schemas", control)


class _Rules:
    """Rules of a grammar, written one after another."""

    def __init__(self, form: ToolFormat, parallel: bool) -> None:
        self._form = form
        self._parallel = parallel
        self.text = "ws: /[ \\n\\t]{0,8}/\n"

    def add_calls(self, functions: Sequence[Mapping[str, Any]], forced: bool) -> None:
        """The rule "calls": one call of any of the functions, or several."""
        names = []
        for number, function in enumerate(functions):
            self.text += f"args_{number}: {_arguments(function, forced)}\n"
            self.text += f"call_{number}: {self._call(number, function['name'])}\n"
            names.append(f"call_{number}")
        several = self._several()
        self.text += f"call: {' | '.join(names)}\ncalls: {several}\n"

    def _several(self) -> str:
        form = self._form
        if form.style == "list":
            more = ' (ws "," ws call)*' if self._parallel else ""
            return f'<[{form.calls_id}]> ws "[" ws call{more} ws "]"'
        if form.style == "args":
            return "call+" if self._parallel else "call"
        if form.style == "hermes":
            opening = '"<tool_call>"' if form.calls_id is None else f"<[{form.calls_id}]>"
            closing = '"</tool_call>"' if form.end_id is None else f"<[{form.end_id}]>"
            self.text += f"wrapped: {opening} ws call ws {closing}\n"
            return "wrapped (ws wrapped)*" if self._parallel else "wrapped"
        return "call"

    def _call(self, number: int, name: str) -> str:
        form = self._form
        if form.style == "args":
            with_id = "" if form.call_id_id is None else f" (<[{form.call_id_id}]> /[a-zA-Z0-9]{{9}}/)?"
            return f"<[{form.calls_id}]> {json.dumps(name)}{with_id} <[{form.args_id}]> args_{number}"
        members = f'{_key("name")} {_literal(name)} ws "," ws {_key(form.argument_key)} args_{number}'
        if form.style == "list":
            members += f' (ws "," ws {_key("id")} {_ID})?'
        return f'"{{" ws {members} ws "}}"'


def _literal(text: str) -> str:
    r"""A string of JSON as a literal of a grammar.

    >>> print(_literal("f"))
    "\"f\""
    """
    return json.dumps(json.dumps(text))


def _key(name: str) -> str:
    return f'{_literal(name)} ws ":" ws'


def _arguments(function: Mapping[str, Any], forced: bool) -> str:
    """The schema of a function's arguments: always an object."""
    schema = dict(function["parameters"])
    if not forced and not function["strict"]:
        schema = {}
    if not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"}:
        schema["type"] = "object"
    return json_rule(schema, strict=bool(function["strict"]))
