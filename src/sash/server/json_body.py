"""A body from its bytes, trusting nothing: no duplicate keys, no NaN, no lone surrogates, bounded depth and numbers."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from sash.server.errors import ApiError

MAX_DEPTH = 64
"""Objects and lists inside each other; JSON schemas nest deepest, and stay far below."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body holds.

    Raises:
        ApiError: 400, the body is no JSON object, or one that no honest client sends.
    """
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=_object
        )
    except UnicodeDecodeError:
        raise _invalid("the body is not UTF-8") from None
    except RecursionError:
        raise _invalid(f"the body is nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise _invalid(str(error)) from None
    if not isinstance(value, dict):
        raise _invalid("the body must be a JSON object")
    surrogates = _SURROGATE.search(raw) is not None
    if surrogates or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _walk(value, surrogates)
    return value


def _invalid(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number in the body is too large")
    return number


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError("a number in the body has too many digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object in the body has the same key twice")
    return result


def _walk(value: Any, surrogates: bool) -> None:
    """Depth and characters of everything inside, without recursion.

    Raises:
        ApiError: 400, too deep, or a string that no UTF-8 exists for.
    """
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            if surrogates and not _encodable(item):
                raise _invalid("a string in the body has a lone surrogate")
            continue
        if not isinstance(item, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise _invalid(f"the body is nested more than {MAX_DEPTH} deep")
        inside = [*item, *item.values()] if isinstance(item, dict) else item
        waiting.extend((part, depth + 1) for part in inside)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
