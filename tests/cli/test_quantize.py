"""`sash quantize`, and --weights of the verbs that load a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sash.kernels import native
from tests.cli.conftest import Sash, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def test_a_folder_is_written_shown_and_run(sash: Sash, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny-int4"
    code, told, log = sash("quantize", str(model), "--bits", "4", "--out", str(out))
    assert (code, told) == (0, f"{out}\n")
    assert "int4" in log
    assert "int8" in log
    code, told, _ = sash("show", str(out), "--json")
    facts = json.loads(told)
    assert code == 0
    assert (facts["layout"], facts["licence"], facts["chat_template"]) == ("sash", "cc0-1.0", True)
    assert set(facts["stored_dtypes"]) == {"int4m", "int8"}
    assert facts["stored_bytes"] < 60_000
    code, told, _ = sash("run", str(out), "Hello", "-n", "4", "--json", "-t", "0")
    answered = json.loads(told)
    assert code == 0
    code, told, _ = sash("run", str(model), "Hello", "-n", "4", "--json", "-t", "0", "--weights", "int4")
    assert json.loads(told)["token_ids"] == answered["token_ids"]
    code, told, _ = sash("tokenize", str(out), "Hello", "--json")
    assert code == 0


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_weights_are_what_was_asked_for(sash: Sash, model: Path, tmp_path: Path, weights: str) -> None:
    (tmp_path / "text").write_text("It is a truth universally acknowledged.")
    code, _, log = sash("-v", "eval", "perplexity", str(model), "--text", str(tmp_path / "text"), "--weights", weights)
    assert code == 0
    assert f"weights: {weights}, as was asked for" in log or (weights == "bf16" and not native.available())


def test_chat_takes_weights(sash: Sash, model: Path) -> None:
    asked = ("chat", str(model), "-n", "8", "--temperature", "0")  # drawn at random an answer may begin with its end
    code, told, _ = sash(*asked, "--weights", "int8", stdin=b"hi\n")
    assert code == 0
    assert told
    assert sash(*asked, "--weights", "int9", stdin=b"hi\n")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--bits", "3", "--out", "q"], 2, "--bits is 8 or 4"),
        (["--bits", "8", "--out", "q", "--group", "32"], 2, "group is for int4"),
        (["--bits", "4", "--out", "q", "--group", "48"], 2, "32 or 64"),
        (["--bits", "4", "--out", "q", "--threads", "0"], 2, "--threads"),
        (["--bits", "4", "--out", "there"], 2, "is there already"),
        (["--bits", "4", "--out", "there/file/q"], 6, "there/file/q cannot be written (File exists)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    sash: Sash, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    found, told, log = sash("quantize", str(model), *arguments)
    assert (found, told) == (code, "")
    assert word in log
    assert len(log.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_weights_that_are_not_known_are_refused(sash: Sash, model: Path) -> None:
    code, _, log = sash("run", str(model), "hi", "--weights", "int2")
    assert code == 2
    assert "--weights is auto, bf16, int8, int4" in log


def test_a_folder_holds_what_it_holds(sash: Sash, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    assert sash("quantize", str(model), "--bits", "8", "--out", str(out))[0] == 0
    code, _, log = sash("run", str(out), "hi", "--weights", "int4")
    assert code == 2
    assert "int8 weights, not int4" in log
