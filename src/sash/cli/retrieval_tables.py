"""What `sash eval passkey`, `needles` and `distance` found, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sash.explain.labels import table

if TYPE_CHECKING:
    from sash.evaluation.trials import Cell


def windows(size: float, window: int) -> str:
    """A number of tokens in windows.

    >>> windows(2048, 512), windows(511, 512)
    ('4 W', '0.998 W')
    """
    return f"{size / window:.3g} W"


def draw_cells(cells: Sequence[Cell], window: int) -> list[str]:
    """A table: a line for each method, task and length, a column for each depth or distance, shares in percent."""
    from sash.evaluation.trials import wilson

    by_distance = any(cell.depth is None for cell in cells)
    columns = sorted({cell.distance if cell.depth is None else cell.depth for cell in cells})
    lines: dict[tuple[str, str, int], dict[float, Cell]] = {}
    for cell in cells:
        key = (cell.task, cell.method, 0 if by_distance else cell.length)
        lines.setdefault(key, {})[cell.distance if cell.depth is None else cell.depth] = cell
    names = [windows(column, window) if by_distance else f"{100 * column:g}%" for column in columns]
    rows = [["task", "length", "method", *names, "right", "share", "95% interval", "of full"]]
    for key in sorted(lines, key=lambda key: (key[0], key[2])):
        task, method, length = key
        found = lines[key].values()
        right, of = sum(cell.right for cell in found), sum(cell.of for cell in found)
        low, high = wilson(right, of)
        shown = [f"{100 * lines[key][at].share:.0f}" if at in lines[key] else "-" for at in columns]
        rows.append(
            [
                task,
                "-" if by_distance else f"{length:,} ({windows(length, window)})",
                method,
                *shown,
                f"{right}/{of}",
                f"{100 * right / of:.1f}%",
                f"{100 * low:.1f} to {100 * high:.1f}",
                _of_full(list(found), list(lines.get((task, "full", length), {}).values())),
            ]
        )
    return table(rows, right=[False, True, False, *[True] * (len(columns) + 4)])


def _of_full(found: list[Cell], full: list[Cell]) -> str:
    """What share of full attention's right answers a method reaches, at the places where both were asked."""
    places = {(cell.depth, cell.distance) for cell in full} & {(cell.depth, cell.distance) for cell in found}
    reached = sum(cell.right for cell in found if (cell.depth, cell.distance) in places)
    best = sum(cell.right for cell in full if (cell.depth, cell.distance) in places)
    return f"{100 * reached / best:.0f}%" if best else "-"
