from __future__ import annotations

import pytest

from sash.cli.sizes import parse_size, parse_window
from sash.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("32k", 32_000),
        ("32K", 32_768),
        ("128KiB", 131_072),
        ("1m", 1_000_000),
        ("1M", 1_048_576),
        ("2g", 2_000_000_000),
        ("1G", 2**30),
        ("0.5k", 500),
        ("10_000", 10_000),
        ("10,000", 10_000),
        ("1,048,576", 1_048_576),
        (" 7 ", 7),
        ("-3", -3),
        ("9999999999999999", 9_999_999_999_999_999),
    ],
)
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "k", "1.5", "1,5K", "1.0001k", "4x", "1e3", "4 096", "٣", "12kk", "1" * 400, "nan"]
)
def test_what_is_no_size_is_refused_in_one_line(text: str):
    with pytest.raises(UsageError, match="--context") as caught:
        parse_size(text, "--context")
    assert len(str(caught.value)) < 200


def test_windows():
    assert [parse_window(text) for text in (None, "auto", "full", "4k")] == [None, None, "full", 4000]
    with pytest.raises(UsageError, match="--window"):
        parse_window("Full")
