"""The extension gives no processor an instruction that it lacks: which copy of a shared function the linker keeps.

Every instruction set's kernels are compiled from the same source with other flags. Inline functions and instances of
templates that several of these objects contain are merged: the first one in the linker's order serves all. It must
come from an object that needs no more than any other that has it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build" / "kernels"
NINJA = BUILD / "build.ninja"
LEVELS = {"kernels_avx2": 1, "kernels_avx512": 2, "kernels_amx": 3}
"""What an object's folder says about the instructions in it; 0, every processor's, for all else."""

needs_build = pytest.mark.skipif(
    not NINJA.is_file() or shutil.which("nm") is None,
    reason="no build tree of the kernels here (make kernels), or no nm",
)


def level(file: str) -> int:
    return next((rank for name, rank in LEVELS.items() if f"/{name}.dir/" in f"/{file}"), 0)


def shared_functions(listing: str) -> set[str]:
    """Names of the merged definitions (weak or unique) in what `nm` lists.

    0000 W _ZNSt6vectorIiE4pushEv, for one.
    """
    return {words[-1] for line in listing.splitlines() if len(words := line.split()) == 3 and words[1] in "WVu"}


def beyond(definitions: list[tuple[int, set[str]]]) -> dict[str, tuple[int, int]]:
    """Functions whose first definition needs more than a later one, with both levels; objects in the linker's order."""
    first: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}
    for rank, names in definitions:
        for name in names:
            if rank < first.setdefault(name, rank):
                found[name] = (first[name], rank)
    return found


def linked_files() -> list[str]:
    """What the extension is linked from, in the linker's order: objects first, then libraries."""
    edge = re.search(
        r"^build _sash_kernels\.\S+: \S+ (?P<objects>[^|\n]+)\| (?P<libraries>[^|\n]+)", NINJA.read_text(), re.M
    )
    assert edge is not None, "build.ninja no longer says how the extension is linked"
    return [*edge["objects"].split(), *(name for name in edge["libraries"].split() if name.endswith(".a"))]


def test_a_copy_that_needs_more_is_found():
    wide, narrow = {"vector::push", "amx::table"}, {"vector::push", "isa"}
    assert beyond([(0, narrow), (3, wide)]) == {}
    assert beyond([(3, wide), (0, narrow)]) == {"vector::push": (3, 0)}
    assert shared_functions("0000 W _Zpush\n0010 T _Ztable\n     U memcpy\n0020 u _Zonce\n") == {"_Zpush", "_Zonce"}


@needs_build
def test_no_shared_function_needs_more_than_its_users():
    files = linked_files()
    assert any("isa_kernels" in file for file in files)
    definitions = []
    for file in files:
        listing = subprocess.run(["nm", str(BUILD / file)], capture_output=True, text=True, check=True).stdout
        definitions.append((level(file), shared_functions(listing)))
    assert beyond(definitions) == {}
