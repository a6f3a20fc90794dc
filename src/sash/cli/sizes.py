"""Sizes as people write them on the command line: 4096, 32k, 32K, 1M, full."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

from sash.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}
# A comma only where it groups thousands: "1,5" is one and a half to half of the world.
_NUMBER = r"[+-]?([0-9]{1,3}(,[0-9]{3}){1,6}|[0-9][0-9_]{0,30})(\.[0-9]{1,12})?"
_SIZE = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>[kKmMgG]?)(i?[bB])?")


def parse_size(text: str, option: str = "a size") -> int:
    """The number that a size stands for: small k, m and g count in thousands, capital ones in 1,024s.

    Args:
        text: digits, perhaps with underscores, commas or a decimal point, and perhaps a unit.
        option: what the message calls it, e.g. "--context".

    Raises:
        UsageError: not a size, or not a whole number.

    >>> parse_size("32k"), parse_size("32K"), parse_size("1.5K"), parse_size("10_000"), parse_size("-1")
    (32000, 32768, 1536, 10000, -1)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} takes a number such as 4096, 32k (32,000) or 32K (32,768); got {text[:40]!r}")
    number = Decimal(match["number"].replace("_", "").replace(",", "")) * _UNITS[match["unit"]]
    if number != int(number):
        raise UsageError(f"{option} takes a whole number; {text!r} is {number.normalize()}")
    return int(number)


def parse_tokens(text: str, option: str = "--max-tokens") -> int:
    """How many tokens are read of a text to predict them: one has to come before another.

    Raises:
        UsageError: not a size, or fewer than 2.

    >>> parse_tokens("4K")
    4096
    """
    count = parse_size(text, option)
    if count < 2:
        raise UsageError(f"{option} counts tokens to read, 2 or more; got {count}")
    return count


def parse_window(text: str | None, option: str = "--window") -> int | Literal["full"] | None:
    """A window: a size, "full", or None for the model's own, which "auto" also asks for.

    >>> parse_window("4K"), parse_window("full"), parse_window("auto")
    (4096, 'full', None)
    """
    if text is None or text == "auto":
        return None
    return "full" if text == "full" else parse_size(text, option)
