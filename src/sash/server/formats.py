"""`response_format`: answers that are JSON, or that keep to a JSON schema."""

from __future__ import annotations

from sash.errors import SashError
from sash.server.errors import bad_field
from sash.server.protocol import ResponseFormat
from sash.text.grammar import TextGrammar, open_grammar
from sash.text.grammar_source import GrammarSource, json_object, json_schema
from sash.text.tokenizer import Tokenizer


def answer_format(asked: ResponseFormat | None) -> GrammarSource | None:
    """The grammar of a `response_format`; None where any text will do.

    A schema that says more than can be enforced is refused, unless it says `strict: false` itself.

    Raises:
        ApiError: 400, no schema where one is needed, or one that cannot be read.
    """
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return json_object()
    given = asked.json_schema
    schema = None if given is None else given.schema_ if given.schema_ is not None else given.schema_definition
    if given is None or schema is None:
        raise bad_field("json_schema needs json_schema.schema", "response_format.json_schema", "missing_field")
    try:
        return json_schema(schema, strict=given.strict is not False)
    except SashError as error:
        raise bad_field(str(error), "response_format", "invalid_schema") from None


def open_grammars(
    tokenizer: Tokenizer, source: GrammarSource | None, count: int, *, continues: bool
) -> tuple[TextGrammar, ...]:
    """A way through the grammar for each of `count` answers; none without a grammar.

    Raises:
        ApiError: 400, the grammar is wrong, or too complex.
    """
    if source is None:
        return ()
    try:
        return tuple(open_grammar(tokenizer, source, continues=continues) for _ in range(count))
    except SashError as error:
        raise bad_field(str(error), "response_format", "invalid_schema") from None
