from __future__ import annotations

import tracemalloc

import pytest

from sash.checkpoint.json_object import MAX_DEPTH, parse_object, read_object
from sash.errors import CheckpointError


def parse(data: bytes, max_values: int = 1000) -> dict[str, object]:
    return parse_object(data, what="it", max_values=max_values)


def test_plain_values_keep_their_types() -> None:
    value = parse('{"a": 1, "b": 1.0, "c": true, "d": null, "e": "\\ud83d\\ude00é", "f": [1, {"g": -2}]}'.encode())
    assert value == {"a": 1, "b": 1.0, "c": True, "d": None, "e": "😀é", "f": [1, {"g": -2}]}
    assert type(value["a"]) is int
    assert type(value["b"]) is float


def test_minus_zero_is_no_integer() -> None:
    assert type(parse(b'{"a": -0}')["a"]) is float


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b'{"b": {"a": 1, "a": 2}}', "appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": ' + b"9" * 5000 + b".0}", "5002 digits"),
        (b'{"a": "\\ud800"}', "UTF-8"),
        (b'{"a": ["\\udc00x"]}', "UTF-8"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b'{"a": "\x00"}', "not valid JSON"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels deep"),
        (b"[" * 900, "levels deep"),
        (b'{"a": [' + b"0," * 1000 + b"0]}", "more than 1000 values"),
    ],
)
def test_hostile_texts_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        parse(data)


def test_brackets_inside_strings_do_not_nest() -> None:
    assert parse(b'{"a": "' + b"[" * 100 + b'\\"{"}')["a"] == "[" * 100 + '"{'


def test_long_runs_of_brackets_and_quotes_cost_little_memory() -> None:
    texts = [b"[" * 10**5, b'"' + b"\\\\" * 5 * 10**4, b'{"' + b"a" * 10**5 + b'": 1}', b'"' * 10**5]
    tracemalloc.start()
    try:
        for text in texts:
            try:
                parse(text, max_values=10**7)
            except CheckpointError:
                continue
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_reading_is_bounded_by_the_size_of_the_file(tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}' + " " * 100)
    assert read_object(path, max_bytes=200, max_values=10) == {"a": 1}
    with pytest.raises(CheckpointError, match="108 bytes"):
        read_object(path, max_bytes=100, max_values=10)
