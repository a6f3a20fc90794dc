from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version

import pytest

from sash import __version__, cli
from sash.cli import version as verb


def test_version_names_what_results_depend_on(capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["version"]) == 0
    expected = f"sash {__version__} (Python {platform.python_version()}, torch {version('torch')})\n"
    assert capsys.readouterr().out == expected


def test_version_as_json(capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"sash": __version__, "python": platform.python_version(), "torch": version("torch")}


def test_the_package_states_the_same_version():
    assert version("sash") == __version__


def test_torch_may_be_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(verb, "version_of", missing)
    assert cli.execute(["version"]) == 0
    assert "torch not installed" in capsys.readouterr().out
