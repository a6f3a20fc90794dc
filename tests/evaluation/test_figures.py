"""Heat maps: the same file from the same cells, another from others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sash.errors import UsageError
from sash.evaluation.figures import check_figure, draw_heat_maps
from sash.evaluation.trials import Cell

pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, which is not installed")

ONE = Cell(method="window", task="passkey", length=256, distance=200.0, depth=0.0, right=1, of=4, seconds=0.1)
GRID = [
    replace(ONE, method=method, length=length, depth=depth, right=right)
    for method in ("full", "window")
    for length in (256, 512)
    for depth, right in ((0.0, 1), (0.5, 2), (1.0, 4))
]


def drawn(cells: list[Cell], path: Path) -> bytes:
    draw_heat_maps(cells, 128, "passkey", path)
    return path.read_bytes()


def test_the_same_cells_give_the_same_file_and_others_another(tmp_path: Path):
    svg = drawn(GRID, tmp_path / "one.svg")
    assert svg == drawn(list(GRID), tmp_path / "other.svg")
    assert svg != drawn([replace(ONE, right=4), *GRID[1:]], tmp_path / "third.svg")
    assert drawn(GRID, tmp_path / "map.png").startswith(b"\x89PNG")


def test_distances_are_drawn_in_one_row(tmp_path: Path):
    cells = [replace(ONE, depth=None, distance=float(d), length=d + 100) for d in (64, 128, 256)]
    one = drawn(cells, tmp_path / "map.svg")
    copying = [replace(cell, task="copying", right=3) for cell in cells]
    assert one != drawn([*cells, *copying], tmp_path / "two.svg")


def test_a_figure_needs_a_name_and_a_folder(tmp_path: Path):
    with pytest.raises(UsageError, match="ends in"):
        check_figure(tmp_path / "map.pdf")
    with pytest.raises(UsageError, match="no folder"):
        check_figure(tmp_path / "none" / "map.svg")
