"""Functions that a model may call: what a request says of them, and how each format writes a call.

Tools and calls are OpenAI's: {"type": "function", "function": {"name", "description", "parameters", "strict"}}, with
arguments as JSON text. Formats differ in how a call is written in an answer:

- "list": [TOOL_CALLS] and a JSON list of {"name", "arguments", "id"} (Mistral v2 to v7);
- "args": [TOOL_CALLS]name[ARGS]{...} for each call, v11 with [CALL_ID]id before [ARGS] (Mistral v11 and later);
- "hermes": <tool_call>{"name", "arguments"}</tool_call> for each call (Hermes, Qwen);
- "json": the whole answer is {"name", "parameters"} (Llama 3) or {"name", "arguments"}.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sash.errors import TokenizerError, UsageError
from sash.text.tokenizer import Tokenizer, check_unicode

MAX_TOOLS = 128

CALLS, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
"""Mistral's control tokens."""

_ALPHABET = string.digits + string.ascii_letters
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")

Style = Literal["list", "args", "hermes", "json"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an answer makes: `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model writes calls.

    Attributes:
        style: see the module.
        argument_key: what JSON calls the arguments.
        calls_id: the control token in front of calls, where the style has one.
        args_id: the control token in front of arguments ("args").
        call_id_id: the control token in front of an id (v11).
        end_id: the control token behind a call, where the style has one.
    """

    style: Style
    argument_key: str = "arguments"
    calls_id: int | None = None
    args_id: int | None = None
    call_id_id: int | None = None
    end_id: int | None = None


def tool_format(tokenizer: Tokenizer, template: str | None) -> ToolFormat | None:
    """How the model of a chat template writes calls; None where the template knows no tools."""
    if template is None or not knows_tools(template):
        return None
    spelled = {tokenizer.token_text(token_id): token_id for token_id in tokenizer.control_ids}
    if CALLS in template and CALLS in spelled:
        return mistral_format(spelled, separate=ARGS in template)
    if "<tool_call>" in template:
        opening, closing = spelled.get("<tool_call>"), spelled.get("</tool_call>")
        return ToolFormat(style="hermes", calls_id=opening, end_id=closing)
    llama = "<|python_tag|>" in spelled or '"parameters"' in template
    return ToolFormat(style="json", argument_key="parameters" if llama else "arguments")


def mistral_format(spelled: Mapping[str, int], *, separate: bool) -> ToolFormat | None:
    """Mistral's way, by the ids of its control tokens; None where it has none.

    Args:
        spelled: ids of control tokens by spelling.
        separate: whether each call stands by itself, as from v11 on.
    """
    if CALLS not in spelled:
        return None
    if separate and ARGS in spelled:
        return ToolFormat(style="args", calls_id=spelled[CALLS], args_id=spelled[ARGS], call_id_id=spelled.get(CALL_ID))
    return ToolFormat(style="list", calls_id=spelled[CALLS])


def knows_tools(template: str) -> bool:
    """Whether a chat template reads the variable `tools`.

    >>> knows_tools("{% if tools is not none %}{{ tools | tojson }}{% endif %}"), knows_tools("{# tools #}the tools")
    (True, False)
    """
    bare = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    return any(
        re.search(r"\btools\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", block))
        for block in re.findall(r"\{[{%].*?[%}]\}", bare, flags=re.DOTALL)
    )


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools as plain dicts with all the keys that formats read.

    Raises:
        UsageError: a wrong type, a name that no format can write, or two of the same name.
        TextEncodingError: text with lone surrogates.
    """
    checked: list[dict[str, Any]] = []
    for number, tool in enumerate(tools or (), start=1):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
            raise UsageError(f"tool {number} must be an object of type 'function' with a 'function'")
        name, parameters = function.get("name"), function.get("parameters")
        if not is_name(name):
            raise UsageError(f"tool {number}: a name has 1 to 64 letters, digits, '_', '-', '.'; got {name!r:.80}")
        description = function.get("description")
        if description is not None and not isinstance(description, str):
            raise UsageError(f"tool {name}: description must be a string")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise UsageError(f"tool {name}: parameters must be a JSON schema, which is an object")
        try:
            text = json.dumps(parameters or {}, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"tool {name}: parameters are not JSON: {str(error)[:120]}") from None
        check_unicode(text)
        check_unicode(description or "")
        plain = {"name": name, "description": description or "", "parameters": json.loads(text)}
        checked.append({"type": "function", "function": {**plain, "strict": bool(function.get("strict"))}})
    names = [tool["function"]["name"] for tool in checked]
    if len(checked) > MAX_TOOLS:
        raise UsageError(f"there may be {MAX_TOOLS} tools at most; got {len(checked)}")
    if len(set(names)) != len(names):
        raise UsageError("two tools have the same name")
    return checked


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """What a request wants of its tools.

    Attributes:
        mode: "none" to write no call, "auto" to let the model decide, "required" for at least one call.
        name: the only tool that may be called, with "required".
    """

    mode: Literal["none", "auto", "required"]
    name: str | None = None


def read_choice(choice: str | Mapping[str, Any] | None, tools: Sequence[Mapping[str, Any]]) -> ToolChoice:
    """What `tool_choice` means; "any" is Mistral's word for "required", and None is "auto" where there are tools.

    Raises:
        UsageError: no known word, a call required without a tool, or of a tool that is not there.
    """
    if choice is None:
        return ToolChoice("auto" if tools else "none")
    if choice in ("none", "auto"):
        return ToolChoice("none" if choice == "none" or not tools else "auto")
    if choice in ("required", "any"):
        if not tools:
            raise UsageError(f"tool_choice {choice!r} needs tools")
        return ToolChoice("required")
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise UsageError("tool_choice must be 'none', 'auto', 'required', 'any', or name a function")
    if name not in {tool["function"]["name"] for tool in tools}:
        raise UsageError(f"tool_choice names {name!r:.80}, which is none of the tools")
    return ToolChoice("required", name)


def shown_tools(
    tokenizer: Tokenizer,
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """The tools that a model is shown: all of them, checked, unless it must not call any.

    Raises:
        UsageError: see `check_tools` and `read_choice`.
        TokenizerError: there are tools, and its chat format knows none.
    """
    checked = check_tools(tools)
    choice = read_choice(tool_choice, checked)
    if not checked or choice.mode == "none":
        return []
    if tokenizer.tool_format is None:
        raise TokenizerError("this model's chat format knows no tools: use a model that was trained to call functions")
    return checked


def new_call_id() -> str:
    """A fresh id for a call, of the kind that Mistral's formats can write: nine letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def short_id(call_id: str) -> str:
    """An id as Mistral's formats can write it: itself where it fits, else nine characters that stand for it.

    >>> short_id("abcDEF123"), len(short_id("call_Zk3dBzq8vWn")), short_id("call_1") == short_id("call_1")
    ('abcDEF123', 9, True)
    """
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.blake2b(call_id.encode("utf-8"), digest_size=16).digest(), "big")
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)


def is_name(name: object) -> bool:
    """Whether a function may have this name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def fits_short_id(call_id: object) -> bool:
    """Whether an id is one that Mistral's formats write."""
    return isinstance(call_id, str) and _SHORT_ID.fullmatch(call_id) is not None
