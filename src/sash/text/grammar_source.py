"""What a grammar is written in: JSON schemas, regular expressions, Lark. Checked for size and depth, not compiled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sash.errors import UsageError
from sash.text.tokenizer import foreign_code

MAX_GRAMMAR = 128 << 10
"""Characters that a grammar or a schema may have."""

MAX_REGEX = 2 << 10
"""Characters that a regular expression may have, by itself, in a schema or in a grammar; some take quadratic time."""

MAX_PROPERTIES = 2000
"""Properties that all objects of a schema may name together; an object takes quadratic time in those that it names."""

MAX_PATTERN_PROPERTIES = 24
"""Patterns of properties that all objects of a schema may have together."""

MAX_DEPTH = 64
"""Levels that a schema may nest."""

# A run of white space without end would be JSON, too, and some models never leave it.
_JSON_STYLE = {"whitespace_pattern": r"[ \n\r\t]{1,48}"}

_LARK_REGEX = re.compile(r"/(?:[^/\\\n]|\\.)*")

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
        schema: JSON Schema, as far as llguidance knows it; nothing is ever fetched, and oneOf is taken for anyOf.
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
    _check_size(schema)
    style = {**_JSON_STYLE, "coerce_one_of": True, "lenient": not strict}
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
    if any(len(one) > MAX_REGEX for one in _LARK_REGEX.findall(text)):
        raise UsageError(f"a regular expression of the grammar has over {MAX_REGEX:,} characters")
    return GrammarSource(GRAMMAR_HEAD + text, "grammar")


def _check_size(schema: Mapping[str, Any]) -> None:
    """Refuses what would take long to compile.

    Raises:
        UsageError: too deep, or too many properties, or too long a pattern.
    """
    n_properties = n_patterns = 0
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        nodes = [node for node in level if isinstance(node, Mapping)]
        for node in nodes:
            n_properties += _size(node.get("properties"))
            n_patterns += _size(node.get("patternProperties"))
            for pattern in (node.get("pattern"), *_keys(node.get("patternProperties"))):
                if isinstance(pattern, str) and len(pattern) > MAX_REGEX:
                    raise UsageError(f"a pattern of the JSON schema has over {MAX_REGEX:,} characters")
        level = [inner for node in nodes for inner in node.values()] + [
            inner for value in level if isinstance(value, list | tuple) for inner in value
        ]
    if level:
        raise UsageError(f"the JSON schema nests deeper than {MAX_DEPTH} levels")
    if n_properties > MAX_PROPERTIES:
        raise UsageError(f"the JSON schema names {n_properties:,} properties: {MAX_PROPERTIES:,} at most")
    if n_patterns > MAX_PATTERN_PROPERTIES:
        raise UsageError(f"the JSON schema has {n_patterns:,} patternProperties: {MAX_PATTERN_PROPERTIES} at most")


def _size(value: object) -> int:
    return len(value) if isinstance(value, Mapping) else 0


def _keys(value: object) -> list[Any]:
    return list(value) if isinstance(value, Mapping) else []
