"""Figures of what was measured, by matplotlib where it is installed: SVG and PNG, the same file for the same cells."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sash.errors import UnsupportedError, UsageError
from sash.evaluation.ablation import Ablation
from sash.evaluation.influence import Influence
from sash.evaluation.positions import Curve
from sash.evaluation.trials import Cell

SUFFIXES = (".svg", ".png")
STYLE = {"svg.hashsalt": "sash", "font.size": 9, "svg.fonttype": "path"}
LINES = ("o-", "s--", "^-.", "D:", "v-", "x--", "P-.", "*:")
"""Told apart without colours, too."""

COLOURS = "cividis"
"""From dark to light, told apart by who sees no red or green, and on grey prints."""


def check_figure(path: Path) -> None:
    """See that a figure could be drawn, before anything is measured for it.

    Raises:
        UsageError: a name that says no format, or a folder that is not there.
        UnsupportedError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a figure ends in {' or '.join(SUFFIXES)}; got {str(path)!r}")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent} to put the figure in: make it first")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file for the figure")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib")
    except ImportError:
        raise UnsupportedError(
            "figures are drawn by matplotlib, which is not installed: run `python -m pip install matplotlib`"
        ) from None


def draw_heat_maps(cells: Sequence[Cell], window: int, title: str, path: Path) -> None:
    """Success by length (down) and depth (across), or by distance where no depth was given: a map for each method.

    Args:
        cells: what was measured; of several tasks the sums are drawn.
        window: what lengths and distances are told in.
        title: above all of it.
        path: where to; the end of its name says which format.

    Raises:
        UsageError, UnsupportedError: as `check_figure` does.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    rows = sorted({_row(cell) for cell in cells}) or [0]
    columns = sorted({_column(cell) for cell in cells}) or [0.0]
    wide = max(3.0, 0.55 * len(columns) + 1.2)
    size = (wide * max(1, len(methods)) + 0.6, max(1.8, 0.42 * len(rows) + 1.5))
    with _figure(path, size) as figure:
        panels = figure.subplots(1, max(1, len(methods)), squeeze=False)[0]
        for axes, method in zip(panels, methods, strict=False):
            _draw_map(axes, [cell for cell in cells if cell.method == method], rows, columns, window)
            axes.set_title(method)
        figure.suptitle(title)


def draw_curves(curves: Sequence[Curve], window: int, title: str, path: Path) -> None:
    """Perplexity over position, a line for each method, on a logarithmic scale; the window's edge is marked.

    Raises:
        UsageError, UnsupportedError: as `check_figure` does.
    """
    with _axes(path, title) as axes:
        for curve, line in zip(curves, itertools.cycle(LINES), strict=False):
            middles = [start + count / 2 for start, count in zip(curve.starts, curve.n_tokens, strict=True)]
            perplexities = [part["perplexity"] for part in curve.lines()]
            axes.plot(middles, perplexities, line, label=f"{curve.method}: {curve.perplexity:,.2f}", markersize=4)
        axes.axvline(window, color="0.7", linewidth=1)
        axes.set_yscale("log")
        axes.set_xlabel("position, tokens; the grey line is the window")
        axes.set_ylabel("perplexity")
        axes.legend()


def draw_influences(found: Sequence[Influence], window: int, title: str, path: Path) -> None:
    """How far predictions move by the distance of a change, a line for each method; the window's edge is marked.

    What does not move at all has no place on the logarithmic scale: its line ends before.

    Raises:
        UsageError, UnsupportedError: as `check_figure` does.
    """
    with _axes(path, title) as axes:
        for method, line in zip(dict.fromkeys(one.method for one in found), itertools.cycle(LINES), strict=False):
            moved = sorted(
                (one.distance / window, 1000 * one.mean) for one in found if one.method == method and one.mean
            )
            axes.plot(*zip(*moved, strict=True) if moved else ([], []), line, label=method, markersize=4)
        axes.axvline(1, color="0.7", linewidth=1)
        axes.set_yscale("log")
        axes.set_xlabel("distance, windows")
        axes.set_ylabel("mean divergence, thousandths of a nat")
        axes.legend()


def draw_ablations(found: Sequence[Ablation], title: str, path: Path) -> None:
    """Perplexity of each window beside the passkeys that were told through it.

    Raises:
        UsageError, UnsupportedError: as `check_figure` does.
    """
    names = ["own" if one.window is None else str(one.window) for one in found]
    with _axes(path, title) as axes:
        axes.plot(names, [one.perplexity.perplexity for one in found], LINES[0], label="perplexity", color="C0")
        axes.set_xlabel("window, tokens")
        axes.set_ylabel("perplexity")
        told = axes.twinx()
        shares = [100 * one.right / one.of if one.of else math.nan for one in found]
        told.plot(names, shares, LINES[1], label="passkeys told", color="C1")
        told.set_ylim(-5, 105)
        told.set_ylabel("passkeys told, %")
        axes.figure.legend(handles=[*axes.get_lines(), *told.get_lines()], loc="outside lower center", ncols=2)


@contextmanager
def _figure(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure to draw in, which becomes a file; its width and height are in inches."""
    check_figure(path)
    matplotlib = _matplotlib()
    figure_module = importlib.import_module("matplotlib.figure")
    with matplotlib.rc_context(STYLE):
        figure = figure_module.Figure(figsize=size, layout="constrained")
        yield figure
        _save(figure, path)


@contextmanager
def _axes(path: Path, title: str) -> Iterator[Any]:
    """The axes of a figure that has one pair of them."""
    with _figure(path, (6.4, 3.6)) as figure:
        axes = figure.subplots()
        axes.set_title(title)
        yield axes


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else {"Software": None})


def _row(cell: Cell) -> int:
    return 0 if cell.depth is None else cell.length


def _column(cell: Cell) -> float:
    return cell.distance if cell.depth is None else cell.depth


def _draw_map(axes: Any, cells: Sequence[Cell], rows: list[int], columns: list[float], window: int) -> None:
    """One method's cells as coloured squares with their share in percent."""
    shares = [[math.nan] * len(columns) for _ in rows]
    for row, column in {(_row(cell), _column(cell)) for cell in cells}:
        alike = [cell for cell in cells if (_row(cell), _column(cell)) == (row, column)]
        of = sum(cell.of for cell in alike)
        shares[rows.index(row)][columns.index(column)] = sum(cell.right for cell in alike) / of if of else math.nan
    axes.imshow(shares, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            if not math.isnan(share):
                ink = "white" if share < 0.6 else "black"
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", color=ink)
    by_distance = any(cell.depth is None for cell in cells)
    labels = [f"{column / window:.3g}" if by_distance else f"{100 * column:.0f}" for column in columns]
    axes.set_xticks(range(len(columns)), labels)
    axes.set_xlabel("distance, windows" if by_distance else "depth, %")
    axes.set_yticks(range(len(rows)), [f"{row / window:.3g}" if row else "" for row in rows])
    if not by_distance:
        axes.set_ylabel("length, windows")
