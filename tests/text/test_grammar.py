"""Grammars over every kind of vocabulary: what is written follows them, what cannot be followed is refused."""

from __future__ import annotations

import gc
import json
import re
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.errors import UsageError
from sash.text import grammar
from sash.text.grammar import TextGrammar, open_grammar
from sash.text.grammar_source import GrammarSource, json_object, json_schema, lark, regex
from sash.text.mistral import MistralTokenizer
from sash.text.tokenizer import Tokenizer
from tests.text.conftest import MISTRAL_FILES  # type: ignore[import-not-found]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}

# llguidance takes DEL for a control character, which JSON would admit as it is.
words = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=6)


def bits(mask: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    return np.unpackbits(mask, bitorder="little")[:size].astype(bool)


def walk(
    tokenizer: Tokenizer, source: GrammarSource, seed: int, *, continues: bool = False, most: int = 300
) -> str | None:
    """A text written by random tokens among those allowed, the end as soon as it may come; None where none came."""
    rng = np.random.default_rng(seed)
    way, ids = open_grammar(tokenizer, source, continues=continues), []
    for _ in range(most):
        allowed = np.flatnonzero(bits(way.mask(), tokenizer.vocab_size))
        assert len(allowed)
        ends = [int(token_id) for token_id in allowed if int(token_id) in tokenizer.eos_ids]
        assert {int(i) for i in allowed} & tokenizer.control_ids <= tokenizer.eos_ids
        token_id = ends[0] if ends else int(rng.choice(allowed))
        way.take(token_id)
        if token_id in tokenizer.eos_ids:
            break
        ids.append(token_id)
        if way.finished:
            break
    else:
        return None
    return tokenizer.decode(ids, continues=continues)


def take_all(way: TextGrammar, ids: list[int]) -> None:
    for token_id in ids:
        way.take(token_id)


def fits_person(text: str) -> None:
    said = json.loads(text)
    assert said.keys() == {"name", "age", "kind"}
    assert len(said["name"]) <= 12
    assert 3 <= said["age"] <= 120
    assert said["kind"] in ("cat", "dog")


@pytest.mark.parametrize("continues", [False, True])
def test_what_is_written_follows_the_grammar(
    byte_level: Tokenizer, spaced: Tokenizer, byte_tokenizer: Tokenizer, continues: bool
) -> None:
    written = 0
    for tokenizer in (byte_level, spaced, byte_tokenizer):
        for seed in range(4):
            text = walk(tokenizer, json_schema(PERSON), seed, continues=continues)
            if text is not None:
                fits_person(text)
                written += 1
            text = walk(tokenizer, regex(r" ?(yes|no), \d{4}-[é日]{2}"), seed, continues=continues)
            assert text is not None
            assert re.fullmatch(r" ?(yes|no), [0-9]{4}-[é日]{2}", text)
            text = walk(tokenizer, lark('start: "a" b+ "c"\nb: /[xyz]{2}/ | "q"'), seed, continues=continues)
            assert text is not None
            assert re.fullmatch(r"a([xyz]{2}|q)+c", text)
    assert written > 6


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_sentencepieces_first_space_belongs_to_the_format(name: str) -> None:
    tokenizer = MistralTokenizer(MISTRAL_FILES / name)
    for word, continues in (("yes", False), (" yes", True)):
        (token_id,) = tokenizer.encode("yes", bos=False)
        way = open_grammar(tokenizer, regex(word), continues=continues)
        assert bits(way.mask(), tokenizer.vocab_size)[token_id]
        way.take(token_id)
        assert way.finished
        assert tokenizer.decode([token_id], continues=continues) == word


def test_every_tokenisation_of_a_fitting_text_is_allowed(spaced: Tokenizer, byte_level: Tokenizer) -> None:
    text = '{"name": "Ann é😀", "age": 12, "kind": "cat"}'
    for tokenizer in (spaced, byte_level):
        way = open_grammar(tokenizer, json_schema(PERSON))
        for token_id in tokenizer.encode(text, bos=False):
            assert bits(way.mask(), tokenizer.vocab_size)[token_id], tokenizer.token_text(token_id)
            way.take(token_id)
        assert way.finished


@settings(max_examples=40, deadline=None)
@given(value=st.dictionaries(words, st.none() | st.booleans() | st.integers(-99, 99) | words))
def test_json_object_admits_every_json_object(value: dict[str, Any]) -> None:
    tokenizer = _bytes()
    way = open_grammar(tokenizer, json_object())
    for token_id in tokenizer.encode(json.dumps(value, ensure_ascii=False), bos=False):
        way.take(token_id)
    assert way.finished


def test_json_object_admits_nothing_else(byte_tokenizer: Tokenizer) -> None:
    for wrong in ("[1]", "null", '"a"', "{,}", "{'a': 1}", '{"a": 01}', "x", "{}{}", "{" + " " * 50):
        way = open_grammar(byte_tokenizer, json_object())
        with pytest.raises(UsageError, match="does not fit"):
            take_all(way, byte_tokenizer.encode(wrong, bos=False))


def test_the_end_is_allowed_where_the_grammar_may_stop(byte_tokenizer: Tokenizer) -> None:
    way = open_grammar(byte_tokenizer, regex("ab*"))
    assert not bits(way.mask(), 259)[2]
    way.take(ord("a") + 3)
    assert bits(way.mask(), 259)[2]
    assert way.accepting
    assert not way.finished
    way.take(2)
    assert way.finished


BAD_SCHEMAS: list[tuple[Any, str]] = [
    ({"type": "nope"}, "Invalid type: nope"),
    ({"type": "string", "propertyNames": {}}, "Unimplemented keys"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    ({"type": "string", "pattern": "("}, "unclosed group"),
    ({"$ref": "http://example.com/x.json"}, "does not fetch"),
    ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    ({"$ref": "#/nowhere"}, "does not exist"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "JSON schema"),
    ({"enum": []}, "JSON schema"),
    ({"enum": [object()]}, "is not JSON"),
    ({"const": float("nan")}, "is not JSON"),
    ({"enum": ["x" * 200_000]}, "characters"),
    ({"properties": {f"k{n}": {} for n in range(2001)}}, "2,001 properties"),
    ({"allOf": [{"properties": {f"k{n}": {}, "x": {}}} for n in range(1001)]}, "2,002 properties"),
    ({"patternProperties": {f"a{n}": {} for n in range(25)}}, "25 patternProperties"),
    ({"properties": {"a": {"pattern": ".*" * 1025}}}, "pattern of the JSON schema"),
    ({"patternProperties": {".*" * 1025: {}}}, "pattern of the JSON schema"),
    ([1], "is an object"),
    ("{}", "is an object"),
    (None, "is an object"),
]


@pytest.mark.parametrize(("schema", "fault"), BAD_SCHEMAS)
def test_a_bad_schema_is_one_clear_line(byte_tokenizer: Tokenizer, schema: Any, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as caught:
        open_grammar(byte_tokenizer, json_schema(schema)).mask()
    assert "\n" not in str(caught.value)
    assert "x-guidance" not in str(caught.value)
    assert len(str(caught.value)) < 320


def test_what_cannot_be_enforced_is_left_out_where_nobody_is_strict(byte_tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "propertyNames": {"minLength": 3}}
    assert open_grammar(byte_tokenizer, json_schema(schema, strict=False)).mask().any()


def test_depth_is_bounded(byte_tokenizer: Tokenizer) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(20):
        schema = {"type": "array", "items": schema}
    assert open_grammar(byte_tokenizer, json_schema(schema)).mask().any()
    for _ in range(100_000):
        schema = {"not": schema}
    with pytest.raises(UsageError, match="nests deeper than 64"):
        json_schema(schema)


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", r"(a)\1", "[z-a]", "a{3,1}", ".*" * 1025, "*"])
def test_bad_patterns_are_refused(byte_tokenizer: Tokenizer, pattern: str) -> None:
    with pytest.raises(UsageError, match="regular expression") as caught:
        open_grammar(byte_tokenizer, regex(pattern))
    assert "llguidance" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "start: x",
        'start: "a',
        "begin: /a/",
        "start: <[INST]>",
        "start: start",
        "x" * 200_000,
        f"start: /{'.*' * 1025}/",
    ],
)
def test_bad_grammars_are_refused(byte_tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(UsageError, match="grammar"):
        open_grammar(byte_tokenizer, lark(text)).mask()


def test_a_grammar_cannot_ask_for_control_tokens(byte_tokenizer: Tokenizer) -> None:
    for rule in ("start: <[0]>", "start: <[1]>", "start: <[0-2]>", 'start: <[0]> | "a"'):
        allowed = np.flatnonzero(bits(open_grammar(byte_tokenizer, lark(rule)).mask(), 259))
        assert {0, 1}.isdisjoint(allowed.tolist())
    named = GrammarSource("start: <[0]>", "grammar", frozenset({0}))
    assert np.flatnonzero(bits(open_grammar(byte_tokenizer, named).mask(), 259)).tolist() == [0]


EVIL = [
    *(f"({a}+)+{b}" for a in ("a", "x+x", ".*", "[a-z]*", "(a|a)") for b in ("b", "$", "", "{9}")),
    *(
        f"({a}){{{n}}}"
        for a in ("a?", "a|aa", "[ab]{1,50}", ".", r"\w{1,9}", "(a{1,9}){1,9}")
        for n in ("500", "1,5000", "9999,")
    ),
    *("a{1,1000}{1,1000}", "((a{1,100}){1,100}){1,100}", "(.*)*x", "a**", "foo**", r"\p{L}{1,3000}"),
    *("(a?){3000}a{3000}", ".{1,20000}foo.{1,20000}", "(.*a){20}", "(a|b|ab)*c" * 30, "(" * 900 + "a" + ")" * 900),
    *(
        "(" * 200 + "a" + ")*" * 200,
        "|".join(f"w{n}[a-z]*" for n in range(170)),
        "(?i:" + "k" * 1900 + ")",
        ".*" * 1000,
    ),
    *(
        "[^\\x00-\\x{10FFFF}]",
        "\\p{Han}{1,200}\\p{Latin}{1,200}",
        "(?s:.{0,65535}){0,65535}",
        "(((a*)*)*)*b",
        "a{4294967295}",
    ),
]


@pytest.mark.parametrize("place", ["regex", "pattern"])
def test_evil_patterns_are_followed_or_refused(spaced: Tokenizer, place: str) -> None:
    """Each within its bounds; one without end would run into the time limit of the tests."""
    followed = 0
    for pattern in EVIL:
        source = regex(pattern) if place == "regex" else json_schema({"type": "string", "pattern": pattern})
        try:
            way = open_grammar(spaced, source, continues=True)
            for _ in range(6):
                allowed = np.flatnonzero(bits(way.mask(), spaced.vocab_size))
                allowed = allowed[~np.isin(allowed, sorted(spaced.eos_ids))]
                if not len(allowed):
                    break
                way.take(int(allowed[len(allowed) // 2]))
            followed += 1
        except UsageError:
            continue
    assert 10 < followed < len(EVIL)


def chain(length: int) -> dict[str, Any]:
    names = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(length)}
    return {"$defs": {**names, f"d{length}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


EVIL_SCHEMAS: list[dict[str, Any]] = [
    {"$ref": "#"},
    {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"allOf": [{"$ref": "#"}]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    chain(25),
    {"type": "array", "items": {}, "minItems": 1_000_000, "maxItems": 2_000_000},
    {
        "type": "array",
        "items": {"type": "array", "items": {"type": "array", "minItems": 999}, "minItems": 999},
        "minItems": 999,
    },
    {"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000},
    {"type": "number", "minimum": -1e300, "maximum": 1e300, "multipleOf": 1e-9},
    {"type": "integer", "multipleOf": 2**61 - 1},
    {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(700)}},
    {"type": "object", "patternProperties": {f"^a{{{n}}}": {} for n in range(1, 24)}},
    {"enum": [f"value {n}" for n in range(8000)]},
    {"allOf": [{"anyOf": [{"properties": {f"p{n}": {"const": m}}} for m in range(12)]} for n in range(12)]},
    {"oneOf": [{"type": "object", "properties": {f"p{n}": {"type": "integer"}}} for n in range(300)]},
]


@pytest.mark.parametrize("number", range(len(EVIL_SCHEMAS)))
def test_evil_schemas_are_followed_or_refused(byte_tokenizer: Tokenizer, number: int) -> None:
    for strict in (True, False):
        try:
            way = open_grammar(byte_tokenizer, json_schema(EVIL_SCHEMAS[number], strict=strict))
            for _ in range(20):
                allowed = np.flatnonzero(bits(way.mask(), 259))
                assert len(allowed) or way.finished
                if way.finished:
                    break
                way.take(int(allowed[-1]))
        except UsageError:
            continue


def test_compiled_grammars_are_kept_up_to_a_bound_and_states_are_ones_own(byte_tokenizer: Tokenizer) -> None:
    first = open_grammar(byte_tokenizer, regex("ab"))
    first.take(ord("a") + 3)
    second = open_grammar(byte_tokenizer, regex("ab"))
    assert bits(second.mask(), 259)[ord("a") + 3]
    assert bits(first.mask(), 259)[ord("b") + 3]
    tables = grammar._tables(byte_tokenizer)
    for number in range(grammar.MAX_COMPILED + 20):
        open_grammar(byte_tokenizer, regex(f"a{number}"))
    assert len(tables._compiled) == grammar.MAX_COMPILED
    for number in range(20):
        open_grammar(byte_tokenizer, json_schema({"const": f"{number:0>100000}"}))
    assert sum(len(text) for text, _ in tables._compiled) == tables._compiled_size <= grammar.MAX_COMPILED_SIZE


def test_tables_are_built_once_and_go_with_their_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, built = _bytes(), []
    original = grammar._Tables.__init__
    monkeypatch.setattr(grammar._Tables, "__init__", lambda self, one: (built.append(1), original(self, one))[1])
    threads = [threading.Thread(target=open_grammar, args=(tokenizer, json_object())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
    gone = weakref.ref(tokenizer)
    del tokenizer, threads, thread
    gc.collect()
    assert gone() is None


def _bytes() -> Tokenizer:
    from tests.conftest import ByteTokenizer  # type: ignore[import-not-found]

    return ByteTokenizer()  # type: ignore[no-any-return]
