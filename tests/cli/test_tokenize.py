from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from sash import cli
from sash.cli import tokenize as verb
from sash.text.tokenizer import Tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer
) -> Run:
    """Runs the command line; every folder of `tmp_path` is a model with the byte tokenizer."""
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verb, "open_tokenizer", lambda path: byte_tokenizer)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.execute(["tokenize", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_table_of_tokens(sash: Run, tmp_path: Path):
    code, out, err = sash(str(tmp_path), "a b")
    assert code == 0
    assert [line.split(maxsplit=2) for line in out.splitlines()] == [
        ["position", "id", "text"],
        ["0", "1", "<1>"],
        ["1", "100", '"a"'],
        ["2", "35", '" "'],
        ["3", "101", '"b"'],
    ]
    assert err == "4 tokens (bytes)\n"


def test_ids_only(sash: Run, tmp_path: Path):
    assert sash(str(tmp_path), "ab", "--ids") == (0, "1 100 101\n", "")
    assert sash(str(tmp_path), "ab", "--ids", "--no-bos") == (0, "100 101\n", "")


def test_json_holds_parts_of_characters_and_control_tokens(sash: Run, tmp_path: Path):
    code, out, err = sash(str(tmp_path), "é", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "model": str(tmp_path),
        "tokenizer": "bytes",
        "n_tokens": 3,
        "tokens": [
            {"id": 1, "text": "<1>", "control": True},
            {"id": 0xC3 + 3, "text": "<0xC3>", "control": False},
            {"id": 0xA9 + 3, "text": "<0xA9>", "control": False},
        ],
    }


def test_a_file_and_standard_input(sash: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbfab\r\n")
    expected = "1 100 101 16 13\n"
    assert sash(str(tmp_path), "-f", str(tmp_path / "text.txt"), "--ids")[1] == expected
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"ab\r\n")))
    assert sash(str(tmp_path), "-f", "-", "--ids")[1] == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_chat(sash: Run, tmp_path: Path, wrapped: bool):
    messages = [{"role": "user", "content": "hi"}]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({"messages": messages} if wrapped else messages))
    code, out, _ = sash(str(tmp_path), "--chat", str(path), "--ids")
    assert code == 0
    assert bytes(int(i) - 3 for i in out.split()[1:] if int(i) > 2) == b"u:hia:"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["MODEL"], 2, "give one of"),
        (["MODEL", "a", "-f", "b"], 2, "give one of"),
        (["MODEL", "a", "--ids", "--json"], 2, "not both"),
        (["MODEL", ""], 11, "empty"),
        (["MODEL", "caf\udce9"], 9, ""),
        (["MODEL", "-f", "latin.txt"], 9, "latin.txt is not UTF-8 (byte 3)"),
        (["MODEL", "-f", "empty.txt"], 11, "empty"),
        (["MODEL", "-f", "nowhere.txt"], 6, "nowhere.txt"),
        (["MODEL", "-f", "."], 6, "cannot read"),
        (["MODEL", "--chat", "latin.txt"], 9, "not UTF-8"),
        (["MODEL", "--chat", "broken.json"], 2, "not JSON"),
        (["MODEL", "--chat", "number.json"], 2, "no chat"),
        (["nonsense", "a"], 4, "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    sash: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "number.json").write_text("7")
    found, out, err = sash(*[str(tmp_path) if word == "MODEL" else word for word in arguments])
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_folder_without_a_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.execute(["tokenize", str(tmp_path), "a"]) == 15
    assert "no tokenizer" in capsys.readouterr().err


@pytest.mark.models
def test_real_models(capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["tokenize", "gemma-3-270m", "hello", "--ids"]) == 0
    assert capsys.readouterr().out == "2 23391\n"
    assert cli.execute(["tokenize", "smollm2-135m-instruct", "hello <|im_start|>", "--json"]) == 0
    tokens = json.loads(capsys.readouterr().out)["tokens"]
    assert not any(token["control"] for token in tokens)
    assert "".join(token["text"] for token in tokens) == "hello <|im_start|>"
