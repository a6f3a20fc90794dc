"""`sash pull`: what it says, where, and with which exit code. The pulling itself is tested with the hub."""

import io
import sys
from pathlib import Path

import pytest

from sash import cli, hub
from sash.errors import DiskFullError, DownloadError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SASH_HOME", str(tmp_path))
    monkeypatch.delenv("SASH_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def pulls(monkeypatch, outcome):
    """`hub.pull` tells of 2 MiB, then returns or raises `outcome`."""

    def pull(name, progress):
        progress.begin("downloading", 2 << 20)
        for _ in range(2):
            progress.advance(1 << 20)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(hub, "pull", pull)


def test_size_and_licence_are_said_first_and_only_the_path_is_a_result(monkeypatch, capsys):
    pulls(monkeypatch, Path("/store/gemma.gguf"))
    assert cli.execute(["pull", "gemma-3-270m"]) == 0
    out, err = capsys.readouterr()
    assert out == "/store/gemma.gguf\n"
    assert err.splitlines() == [
        "gemma-3-270m: 227.2 MiB to download, 241.5 MiB on disk; "
        "licence: Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        "gemma-3-270m: downloading 2.0 MiB",
    ]


def test_several_models_are_pulled_in_turn(monkeypatch, capsys):
    pulls(monkeypatch, Path("x"))
    assert cli.execute(["pull", "gemma-3-270m", "org/name"]) == 0
    assert capsys.readouterr().out == "x\nx\n"


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal_a_bar_is_drawn_on_standard_error(monkeypatch, capsys, colour):
    pulls(monkeypatch, Path("x"))
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    assert cli.execute(["pull", "org/name"]) == 0
    assert capsys.readouterr().out == "x\n"
    drawn = screen.getvalue()
    assert "org/name: downloading" in drawn
    assert "2.1/2.1 MB" in drawn or "2.0/2.0 MiB" in drawn
    assert ("\x1b[38;5;" in drawn or "\x1b[3" in drawn) is colour


@pytest.mark.parametrize(
    ("error", "code"), [(DownloadError("it broke off"), 17), (DiskFullError("no room"), 8), (KeyboardInterrupt(), 130)]
)
def test_a_failed_pull_prints_no_path(monkeypatch, capsys, error, code):
    pulls(monkeypatch, error)
    assert cli.execute(["pull", "org/name"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == (0 if code == 130 else 1)


def test_unknown_and_offline(monkeypatch, capsys):
    assert cli.execute(["pull", "gemma"]) == 4
    assert "did you mean gemma-3-270m" in capsys.readouterr().err
    monkeypatch.setenv("SASH_OFFLINE", "1")
    assert cli.execute(["pull", "org/name"]) == 17
    assert "forbids the network" in capsys.readouterr().err
