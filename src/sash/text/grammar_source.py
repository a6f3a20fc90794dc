"""What a grammar is written in: JSON schemas, regular expressions, Lark. Checked for size and depth, not compiled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sash.errors import UsageError
from sash.text.tokenizer import foreign_code

MAX_GRAMMAR = 128 << 10
"""Characters that a grammar or a schema may have."""

MAX_REGEX = 8 << 10
"""Characters that a regular expression may have."""

MAX_DEPTH = 64
"""Levels that a schema may nest."""

# A run of white space without end would be JSON, too, and some models never leave it.
_JSON_STYLE = {"whitespace_pattern": r"[ \n\r\t]{1,48}"}

GRAMMAR_HEAD = '%llguidance {"no_forcing": true}\n'
"""Without this llguidance would allow only its own way to cut forced text into tokens."""


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar that was not compiled yet.

    Attributes:
        lark: its rules, in llguidance's dialect of Lark.
        what: what people call it, for messages.
        control_ids: control tokens that it names.
    """

    lark: str
    what: str
    control_ids: frozenset[int] = frozenset()


def json_schema(schema: Mapping[str, Any] | bool, *, strict: bool = True) -> GrammarSource:
    """JSON that a schema admits.

    Args:
        schema: JSON Schema, as far as llguidance knows it; nothing is ever fetched.
        strict: refuse a schema with keywords that cannot be enforced, instead of leaving them out.

    Raises:
        UsageError: too large or too deep, or no schema at all.
    """
    return GrammarSource(f"{GRAMMAR_HEAD}start: {json_rule(schema, strict=strict)}\n", "JSON schema")


def json_rule(schema: Mapping[str, Any] | bool, *, strict: bool = True) -> str:
    """A schema as it stands in a rule of a grammar.

    Raises:
        UsageError: see `json_schema`.
    """
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, Mapping):
        raise UsageError(f"a JSON schema is an object; got {type(schema).__name__}")
    _check_depth(schema)
    style = {**_JSON_STYLE, "lenient": not strict}
    try:
        text = json.dumps({**schema, "x-guidance": style}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the JSON schema is not JSON: {str(error)[:120]}") from None
    if len(text) > MAX_GRAMMAR:
        raise UsageError(f"the JSON schema has {len(text):,} characters: {MAX_GRAMMAR:,} at most")
    return f"%json {text}"


def json_object() -> GrammarSource:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(pattern: str) -> GrammarSource:
    r"""Text that matches a whole regular expression (Rust's dialect, no look-around; \d is 0 to 9).

    Raises:
        UsageError: too long.
    """
    from llguidance import regex_to_lark

    if not isinstance(pattern, str) or len(pattern) > MAX_REGEX:
        raise UsageError(f"a regular expression is a string of {MAX_REGEX:,} characters at most")
    with foreign_code("reading the regular expression"):
        return GrammarSource(f"{GRAMMAR_HEAD}start: /{regex_to_lark(pattern, use_ascii='d')}/\n", "regular expression")


def lark(text: str) -> GrammarSource:
    """A grammar in llguidance's dialect of Lark.

    Raises:
        UsageError: too long.
    """
    if not isinstance(text, str) or len(text) > MAX_GRAMMAR:
        raise UsageError(f"a grammar is a string of {MAX_GRAMMAR:,} characters at most")
    return GrammarSource(GRAMMAR_HEAD + text, "grammar")


def _check_depth(schema: object) -> None:
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for value in level
            if isinstance(value, Mapping | list | tuple)
            for inner in (value.values() if isinstance(value, Mapping) else value)
        ]
    if level:
        raise UsageError(f"the JSON schema nests deeper than {MAX_DEPTH} levels")
