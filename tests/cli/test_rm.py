"""`sash rm`."""

import io

import pytest

from sash import cli
from sash.hub import store


@pytest.fixture
def partial(tmp_path, monkeypatch):
    """The store holds an unfinished pull of a model: enough to have something to remove."""
    monkeypatch.setenv("SASH_HOME", str(tmp_path))
    directory = store.partial_directory("tiny")
    directory.mkdir(parents=True)
    (directory / "half").write_bytes(bytes(3 * 1024))
    return directory


def on_terminal(monkeypatch, answer: str) -> None:
    """Make standard input a terminal at which somebody types `answer`."""
    keys = io.StringIO(answer)
    monkeypatch.setattr(keys, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", keys)


def test_yes_removes_without_a_question(partial, capsys):
    assert cli.execute(["rm", "-y", "tiny"]) == 0
    assert not partial.exists()
    assert capsys.readouterr() == ("", "tiny: 3.0 KiB freed\n")


def test_without_a_terminal_the_flag_is_asked_for_and_nothing_is_removed(partial, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert cli.execute(["rm", "tiny"]) == 2
    assert partial.exists()
    assert capsys.readouterr().err == "error: there is no terminal to ask on: add -y to remove without a question\n"


@pytest.mark.parametrize(("answer", "code", "gone"), [("y\n", 0, True), ("n\n", 1, False), ("", 1, False)])
def test_on_a_terminal_the_answer_counts(partial, capsys, monkeypatch, answer, code, gone):
    on_terminal(monkeypatch, answer)
    assert cli.execute(["rm", "tiny"]) == code
    assert partial.exists() is not gone
    out, err = capsys.readouterr()
    assert out == ""
    assert "Remove tiny?" in err


@pytest.mark.parametrize("flags", [["-y"], []])
def test_an_unknown_model_exits_4(partial, capsys, flags):
    assert cli.execute(["rm", *flags, "tiny", "other"]) == 4
    assert capsys.readouterr().err == "error: other is not in the store\n"
    assert partial.exists()
