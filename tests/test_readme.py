"""The README and the page of features run: their commands, programs, and the tests that their claims name.

Commands and programs that need a model of the catalogue run with the models' tests (make test-models).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sash import hub
from tests.test_docs import TEST_ID, missing_tests

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {"README": README, "features": (ROOT / "docs" / "features.md").read_text(encoding="utf-8")}
BLOCKS = [(found[1], found[2]) for page in PAGES.values() for found in FENCE.finditer(page)]
SERVED = "http://127.0.0.1:8000"
"""Where servers of the README are."""

LONGFORMER = "longformer-base-4096"
"""A folder that a program of the README reads; a small one of random weights stands in for it."""


@dataclass(frozen=True)
class Command:
    """A command of the README, and what it prints where the README shows that."""

    text: str
    prints: str | None = None


def commands() -> list[Command]:
    found: list[Command] = []
    for language, body in BLOCKS:
        if language == "sh":
            lines = body.replace("\\\n", " ").splitlines()
            found += [Command(line) for line in lines if line.strip() and not line.startswith("#")]
        elif language == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                text, _, prints = part.partition("\n")
                found.append(Command(text, prints))
    return found


def marked(code: str) -> list[pytest.MarkDecorator]:
    """The marks of a command or program: whether it needs a model."""
    needs = any(name in code for name in hub.catalogue())
    return [pytest.mark.models, pytest.mark.timeout(900)] if needs else []


COMMANDS = commands()
PROGRAMS = [body for language, body in BLOCKS if language == "python"]


def environment() -> dict[str, str]:
    """Of a user who has activated the virtual environment and has a terminal of 120 columns."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return {**kept, "PATH": path, "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like the project's, in which a command can leave nothing behind."""
    for name in ("examples", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def run(command: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), input=stdin, capture_output=True, text=True, timeout=600, check=False
    )


def make(*arguments: str) -> list[str]:
    """What `make` would run."""
    result = run(["make", "--no-print-directory", "-n", "-C", str(ROOT), *arguments], ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def assert_served(text: str, folder: Path) -> None:
    """A server starts, on a port that is free; the commands that talk to it do; it ends when it is told to."""
    server = subprocess.Popen(
        [*shlex.split(text), "--port", "0"], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        said: list[str] = []
        for line in server.stderr:
            said.append(line)
            if line.startswith("serving  http"):
                break
        assert server.poll() is None, said
        url = said[-1].split()[1]
        talks = [command.text.replace(SERVED, url) for command in COMMANDS if SERVED in command.text]
        assert talks
        for talk in talks:
            result = run(["bash", "-c", talk], folder, "Hello!\n/bye\n")
            assert result.returncode == 0, result.stderr
            assert result.stdout.strip()
        server.send_signal(signal.SIGTERM)
        assert server.wait(240) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("command", [pytest.param(c, id=c.text[:60], marks=marked(c.text)) for c in COMMANDS])
def test_a_command(command: Command, folder: Path):
    if command.text.startswith("make "):
        # Shown to expand, not run: they install and test everything.
        assert make(*shlex.split(command.text)[1:])
        return
    if command.text.startswith("sash serve "):
        assert_served(command.text, folder)
        return
    if SERVED in command.text:
        # What talks to a server runs with the command that starts one.
        assert any(other.text.startswith("sash serve ") for other in COMMANDS)
        return
    typed = "Hello!\n/bye\n" if " chat " in command.text else ""
    result = run(["bash", "-o", "pipefail", "-c", command.text], folder, typed)
    fine = (0, 3) if command.text.startswith("sash plan") else (0,)  # 3: it does not fit this machine
    assert result.returncode in fine, result.stderr
    assert result.stdout.strip()
    if command.prints is not None:
        assert [line.rstrip() for line in result.stdout.splitlines()] == command.prints.splitlines()


@pytest.mark.parametrize(
    "program", [pytest.param(p, id=f"program {i}", marks=marked(p)) for i, p in enumerate(PROGRAMS)]
)
def test_a_program(program: str, folder: Path):
    if LONGFORMER in program:
        pytest.importorskip("transformers", reason="transformers writes the folder that stands in for Longformer's")
        from tests.test_masked import write_model, write_tokenizer

        (folder / LONGFORMER).mkdir()
        write_model(folder / LONGFORMER, write_tokenizer(folder / LONGFORMER).get_vocab_size())
    result = run([sys.executable, "-c", program], folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def shape(text: str) -> list[str]:
    """Lines with their numbers and widths taken out."""
    return [" ".join(re.sub(r"\d[\d,.]*", "0", line).split()) for line in text.splitlines() if line.strip()]


@pytest.mark.models
@pytest.mark.timeout(900)
def test_make_run_prints_what_the_page_shows(folder: Path):
    short = folder / "short.txt"
    short.write_text((ROOT / "examples" / "emma_chapters_1_to_5.txt").read_text(encoding="utf-8")[:4000])
    *_, command = make("run", f"CHAPTERS={short}")
    words = shlex.split(command)
    assert Path(words[0]).name == "sash"
    assert words[words.index("-f") + 1] == str(short)
    words[0], words[words.index("--max-tokens") + 1] = "sash", "4"
    result = run(words, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    (transcript,) = (body for language, body in BLOCKS if language == "text")
    assert transcript.startswith("$ make run\n")
    shown = shape(transcript)
    assert [line for line in shape(result.stderr) if line not in shown] == []


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = [language for language, _ in BLOCKS]
    assert set(kinds) == {"sh", "console", "python", "text"}
    assert kinds.count("text") == 1  # the transcript of `make run`
    assert sum(page.count("```") for page in PAGES.values()) == 2 * len(BLOCKS)
    assert len(COMMANDS) > 8
    assert len(PROGRAMS) > 3


@pytest.mark.parametrize("page", PAGES)
def test_every_claim_names_a_test_that_exists(page: str):
    _, _, table = PAGES[page].partition("| claim | test |\n|---|---|\n")
    rows = re.match(r"(?:\|.*\|\n)+", table)
    assert rows is not None
    claims = rows[0].splitlines()
    assert len(claims) > 25
    for row in claims:
        claim, tests = row.strip("|").split(" | ")
        assert TEST_ID.findall(tests), f"no test: {claim}"
        assert missing_tests(tests) == [], claim
