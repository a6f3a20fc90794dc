"""`--csv` and `--figure` of the verbs of `sash eval`: what was measured, in files beside what is printed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.errors import DiskFullError, SashError, UsageError, is_disk_full

Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the figures there, too.")]
Figure = Annotated[
    list[Path] | None,
    typer.Option(
        "--figure", metavar="FILE", help="Draw them: FILE.svg or FILE.png, by matplotlib; repeatable for both."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where figures are written.

    Attributes:
        csv: as a table; None for nowhere.
        figures: as pictures.
    """

    csv: Path | None
    figures: tuple[Path, ...]

    @staticmethod
    def of(csv: Path | None, figures: Sequence[Path] | None) -> Files:
        """Checked: before anything is measured, so that no hour is for nothing.

        Raises:
            UsageError: a folder that is not there, or a name that says no format.
            UnsupportedError: matplotlib is not installed.
        """
        if csv is not None and not csv.parent.is_dir():
            raise UsageError(f"there is no folder {csv.parent} to put the figures in: make it first")
        if csv is not None and csv.is_dir():
            raise UsageError(f"{csv} is a folder: name a file for the figures")
        for path in (*([] if csv is None else [csv]), *(figures or ())):
            if path.parent.is_dir() and not os.access(path if path.exists() else path.parent, os.W_OK):
                raise UsageError(f"{path} cannot be written: name another place, or allow it")
        if figures:
            from sash.evaluation.figures import check_figure

            for path in figures:
                check_figure(path)
        return Files(csv=csv, figures=tuple(figures or ()))

    def write(self, lines: Sequence[Mapping[str, Any]], draw: Callable[[Path], None]) -> None:
        """Write lines of figures, one for each thing measured, and draw them; nothing where there are none.

        Raises:
            DiskFullError, SashError: they cannot be written; they were printed before.
        """
        if self.csv is not None:
            with _told(self.csv):
                write_csv(lines, self.csv)
        for path in self.figures if lines else ():
            with _told(path):
                draw(path)


def write_csv(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Figures, one thing measured a line, with the fields of the JSON; those in fields of their own beside."""
    flat = [dict(_flat(line)) for line in lines]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(flat[0]) if flat else ["method"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}_{inner}", one) for inner, one in value.items())
        else:
            yield name, value


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "what was measured is printed above"
        if is_disk_full(error):
            raise DiskFullError(f"the disk is full: {path} is not written; {remedy}") from error
        raise SashError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
