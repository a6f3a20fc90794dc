"""Tokens as labels of a drawing: made visible, cut to a width, and padded by the width that a terminal gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size

LONGEST = 12


def visible(text: str) -> str:
    r"""A token as one printable word: spaces become "▁", line ends and control characters are escaped.

    >>> visible(" fox"), visible("\n\n"), visible(""), visible("internationalisation")
    ('▁fox', '\\n\\n', '""', 'internation…')
    """
    word = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.replace(" ", "▁"))
    word = word or '""'
    return word if cell_len(word) <= LONGEST else set_cell_size(word, LONGEST - 1).rstrip() + "…"


def padded(text: str, width: int, right: bool = False) -> str:
    """`text` filled up with spaces to `width` terminal cells, against the right edge if `right`."""
    fill = " " * max(0, width - cell_len(text))
    return fill + text if right else text + fill


def widest(texts: Iterable[str]) -> int:
    """Terminal cells of the widest of `texts`."""
    return max((cell_len(text) for text in texts), default=0)


def numbers(values: Iterable[int]) -> str:
    """Ascending numbers with runs joined.

    >>> numbers([1, 2, 3, 4, 5, 7, 9, 10])
    '1-5, 7, 9-10'
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def table(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Rows of cells as lines with aligned columns, two spaces between them; `right` says which align right."""
    columns = [widest(column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(padded(cell, width, side) for cell, width, side in zip(row, columns, right, strict=True)).rstrip()
        for row in rows
    ]
