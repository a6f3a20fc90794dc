"""The page at /: its logic by itself, every flow in a real browser, and a real server behind it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WEB = HERE.parents[1] / "web"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PATIENCE = 1800

Outcome = dict[str, Any]

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (WEB / "node_modules" / "vite").is_dir(),
    reason="needs Node.js and the page's packages: npm ci in web/",
)
needs_browser = pytest.mark.skipif(
    shutil.which("node") is None
    or not (WEB / "node_modules" / "playwright-core").is_dir()
    or not Path(CHROMIUM).exists(),
    reason=f"needs Node.js, the page's packages (npm ci in web/) and Chromium at {CHROMIUM} (CHROMIUM names another)",
)


def named(script: str) -> list[str]:
    """The names of a script's flows, as they are written in it."""
    source = (HERE / script).read_text(encoding="utf-8")
    names = re.findall(r'^(?:await )?flow\("([^"]+)"', source, flags=re.MULTILINE)
    for name in re.findall(r"^  flow\(`([^`]+)`", source, flags=re.MULTILINE):
        names += [name.replace("${colorScheme}", scheme) for scheme in ("light", "dark")]
    return names


def play(script: str, *arguments: str) -> dict[str, Outcome]:
    """Run a script of flows: what it says of each."""
    command = ["node", str(HERE / script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert found, run.stderr
    return {outcome["name"]: outcome for outcome in found}


@pytest.fixture(scope="module")
def outcomes() -> Callable[[str], dict[str, Outcome]]:
    """The outcomes of a script's flows; one browser plays them all, once."""
    played: dict[str, dict[str, Outcome]] = {}

    def get(script: str) -> dict[str, Outcome]:
        if script not in played:
            played[script] = play(script) if script == "flows.mjs" else play_for_real()
        return played[script]

    return get


def play_for_real() -> dict[str, Outcome]:
    """The page against a real server with a small model of random weights."""
    small_lm, serving = imported("conftest").small_lm, imported("live").serving
    with serving(small_lm()) as live:
        return play("real_flows.mjs", f"{live.url}/")


def imported(name: str) -> Any:
    """A module of the server's tests."""
    path = HERE.parent / "server" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"page_server_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@needs_browser
@pytest.mark.timeout(PATIENCE + 20)
@pytest.mark.parametrize("name", named("flows.mjs"))
def test_a_reader_can(name: str, outcomes: Callable[[str], dict[str, Outcome]]):
    outcome = outcomes("flows.mjs")[name]
    assert outcome["ok"], outcome["error"]


@needs_browser
@pytest.mark.timeout(PATIENCE + 20)
@pytest.mark.parametrize("name", named("real_flows.mjs"))
def test_with_a_real_server_it(name: str, outcomes: Callable[[str], dict[str, Outcome]]):
    outcome = outcomes("real_flows.mjs")[name]
    assert outcome["ok"], outcome["error"]


@needs_browser
def test_it_works_where_the_browser_itself_was_asked_for_the_key():
    with imported("live").serving(imported("conftest").small_lm(), api_keys=("k3y",)) as live:
        (outcome,) = play("real_flows.mjs", f"{live.url}/", "k3y", "pins").values()
    assert outcome["ok"], outcome["error"]


@needs_node
def test_its_logic_holds_by_itself():
    run = subprocess.run(["npx", "vitest", "run"], cwd=WEB, capture_output=True, text=True, timeout=850, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"Tests .*\d+ passed", run.stdout)


@needs_node
def test_the_built_page_matches_its_source():
    run = subprocess.run(["sh", "check.sh"], cwd=WEB, capture_output=True, text=True, timeout=850, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_built_page_loads_nothing_from_elsewhere():
    static = HERE.parents[1] / "src" / "sash" / "server" / "static"
    page = (static / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(loaded) >= 3
    for address in loaded:
        assert address.startswith("./")
        assert (static / address).is_file()
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)
    total = sum(len(path.read_bytes()) for path in static.rglob("*") if path.suffix in (".js", ".css", ".html"))
    assert total < 600_000


def test_the_lock_file_names_no_registry():
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))
    assert len(lock["packages"]) > 10
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
