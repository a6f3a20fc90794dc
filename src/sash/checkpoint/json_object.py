"""JSON from untrusted files, bounded: size, nesting and number of values are checked before anything is built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sash.checkpoint.binary_file import BinaryFile
from sash.checkpoint.stored import quoted
from sash.errors import CheckpointError

MAX_DEPTH = 32
_MAX_DIGITS = 400

# A string, or one bracket outside of strings. Possessive throughout, so that a hostile text costs neither time nor a
# stack of states to return to.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(data: bytes, *, what: str, max_values: int) -> dict[str, Any]:
    """Parse a JSON object.

    Stricter than `json.loads`: UTF-8 only, no duplicate keys, no NaN or Infinity, no lone surrogates, nesting of at
    most `MAX_DEPTH`. Integers stay int, so `type(value) is int` tells 1 from 1.0 and from true; "-0" is a float.

    Args:
        data: the text.
        what: names the text in errors.
        max_values: how many values it may hold, containers counted; bounds the memory that parsing takes.

    Raises:
        CheckpointError: it is not such an object.
    """
    # A value has at most one key, and each of the two at most two quotes; the rest is for quotes within texts.
    too_many_quotes = data.count(b'"') > 4 * max_values + 2**16
    if too_many_quotes or data.count(b",") + data.count(b"[") + data.count(b"{") > max_values:
        raise CheckpointError(f"{what} holds more than {max_values} values: it is not what it claims to be")
    _check_depth(data, what)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise CheckpointError(f"{what} is not UTF-8 text: download it again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object: download it again")
    return value


def read_object(path: Path, *, max_bytes: int, max_values: int) -> dict[str, Any]:
    """Read a JSON file that holds one object; see `parse_object`.

    Raises:
        CheckpointError: no such file, not a regular file, larger than `max_bytes`, or not such an object.
    """
    file = BinaryFile.open(path)
    try:
        if file.size > max_bytes:
            raise CheckpointError(f"{path} has {file.size} bytes; a file of its kind has at most {max_bytes}")
        data = file.read(0, file.size)
    finally:
        file.close()
    return parse_object(data, what=str(path), max_values=max_values)


def _check_depth(data: bytes, what: str) -> None:
    """Refuse deep nesting by looking at brackets outside strings only, before the recursive parser sees the text."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        first = data[match.start()]
        if first != 0x22:
            depth += 1 if first in b"[{" else -1
            if depth > MAX_DEPTH:
                raise CheckpointError(f"{what} nests more than {MAX_DEPTH} levels deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice)} appears twice")
    return result


def _integer(text: str) -> int | float:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return -0.0 if text == "-0" else int(text)


def _finite(text: str) -> float:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
