"""The pages: links lead somewhere, tests and files they name exist, decisions have their form, nothing is left open."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))

TEST_ID = re.compile(r"\btests/[\w/]+\.py::\w+")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"(?:src|tests|docs|benchmarks|examples|\.ci)/[\w./-]+")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LEFT_OPEN = re.compile(r"TODO|FIXME|XXX|\bTBD\b|to be (?:measured|written|done)|coming soon|lorem ipsum", re.IGNORECASE)
OUTSIDE = re.compile(r"/(?:root|home|tmp|work)/|\blocalhost\b|https?://127\.(?!0\.0\.1:8000\b)")


def every_page(function):  # type: ignore[no-untyped-def]
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(function)


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the test functions of a file, those in classes too, read from the source."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def missing_tests(text: str) -> list[str]:
    """Of the tests that a text names, as path::name, those that do not exist."""
    return [found for found in TEST_ID.findall(text) if found.split("::")[1] not in names_in(found.split("::")[0])]


@pytest.fixture(scope="module")
def check_links() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_pages():
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert names >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/cli.md"}
    assert names >= {"docs/glossary.md", "docs/log.md", "docs/benchmarks.md"}
    assert len(DECISIONS) >= 18


@every_page
def test_links_lead_somewhere(page: Path, check_links: ModuleType):
    assert check_links.broken_links(page) == []


@every_page
def test_named_tests_and_files_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    assert missing_tests(text) == []
    words = [word for code in CODE.findall(FENCED.sub("", text)) for word in code.split()]
    paths = {word.split("::")[0] for word in words if PATH.fullmatch(word.split("::")[0])}
    made_up = {path for path in paths if "NAME" in path}
    assert sorted(path for path in paths - made_up if not (ROOT / path).exists()) == []


@every_page
def test_nothing_is_left_open(page: Path):
    text = page.read_text(encoding="utf-8")
    assert LEFT_OPEN.findall(text) == []
    headings = list(re.finditer(r"^(#{1,6}) .*$", FENCED.sub("text", COMMENT.sub("", text)), re.MULTILINE))
    plain = FENCED.sub("text", COMMENT.sub("", text))
    for this, following in zip(headings, [*headings[1:], None], strict=True):
        between = plain[this.end() : following.start() if following else len(plain)].strip()
        deeper = following is not None and len(following[1]) > len(this[1])
        assert between or deeper, f"nothing under {this[0]!r}"


@every_page
def test_pages_name_no_place_of_one_machine(page: Path):
    assert OUTSIDE.findall(page.read_text(encoding="utf-8")) == []


def test_the_page_of_the_command_line_is_what_the_help_prints():
    command = [sys.executable, str(ROOT / "docs" / "generate_cli.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_COLOR": "1"})
    assert result.returncode == 0, result.stderr


def test_decisions_are_numbered_without_gaps():
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name[:4])
def test_a_decision_has_its_form(page: Path):
    text = page.read_text(encoding="utf-8")
    number, title = re.match(r"# (\d+)\. (.+)\n", text).groups()  # type: ignore[union-attr]
    assert int(number) == int(page.name[:4])
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Rejected", "Evidence"]
    evidence = text.partition("## Evidence")[2]
    assert TEST_ID.search(evidence), "evidence names no test"
    listed = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"[{number}. {title}](decisions/{page.name})" in listed


def test_the_architecture_names_every_room_and_only_files_that_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = ROOT / "src" / "sash"
    listed = set(re.findall(r"[a-z]+", " ".join(re.findall(r"\*\*([a-z, ]+)\*\*", text))))
    rooms = {path.name for path in house.iterdir() if any(path.glob("*.py"))} | {"errors", "lm", "memory"}
    assert rooms - listed == set()
    files = {path for code in CODE.findall(text) for path in re.findall(r"^(?:[a-z_]+/)+[a-z_]+\.py$", code)}
    assert len(files) > 20
    assert sorted(file for file in files if not any((root / file).is_file() for root in (house, ROOT))) == []


def test_the_picture_shows_on_light_and_dark_pages():
    root = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find("svg:title", space) is not None
    background = root.find("svg:rect", space)
    assert background is not None, "without a ground of its own, dark text would vanish on a dark page"
    assert [background.get(side) for side in ("width", "height")] == root.get("viewBox", "").split()[2:]


def test_the_checks_see_what_they_should():
    assert missing_tests("`tests/test_docs.py::test_there_are_pages`") == []
    assert missing_tests("`tests/test_docs.py::test_nobody_wrote`, `tests/none.py::test_x`") == [
        "tests/test_docs.py::test_nobody_wrote",
        "tests/none.py::test_x",
    ]
    assert OUTSIDE.search("see /home/me/notes")
    assert LEFT_OPEN.search("figures are to be measured")
    assert not OUTSIDE.search("a session is one text without end")
