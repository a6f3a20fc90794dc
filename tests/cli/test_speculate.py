"""`--speculate`: the same answer, guessed ahead, and what cannot guess is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

Sash = Callable[..., tuple[int, str, str]]
GREEDY = ("-t", "0", "-n", "40", "--ignore-eos")
TEXT = "The rain fell, and the wind blew. The rain fell, and the wind blew. The rain fell, and the"


@pytest.mark.parametrize("how", ["lookup", "3", "itself"])
def test_an_answer_with_guesses_is_the_same(sash: Sash, base_model: Path, how: str) -> None:
    said = []
    for more in ((), ("--speculate", str(base_model) if how == "itself" else how)):
        code, out, _ = sash("run", base_model, TEXT, *GREEDY, "--json", *more)
        assert code == 0
        said.append(json.loads(out))
    plain, quick = said
    assert quick["token_ids"] == plain["token_ids"]
    assert plain["stats"]["drafted_tokens"] == 0 <= quick["stats"]["accepted_tokens"]
    assert quick["stats"]["accepted_tokens"] <= quick["stats"]["drafted_tokens"]


def test_the_account_tells_how_many_guesses_were_right(sash: Sash, base_model: Path) -> None:
    # A small network of random weights soon repeats itself.
    arguments = ("-t", "0", "-n", "200", "--ignore-eos", "--stats")
    code, _, err = sash("run", base_model, TEXT, *arguments, "--speculate", "lookup")
    assert code == 0
    line = next(line for line in err.splitlines() if line.startswith("guesses "))
    assert re.fullmatch(r"guesses \d+ tokens, \d+ of them right \(\d+%\)", line)
    assert "guesses" not in sash("run", base_model, TEXT, *arguments)[2]


def test_a_chat_answers_the_same_with_guesses(sash: Sash, windowed_model: Path) -> None:
    said = [
        sash("chat", windowed_model, "-t", "0", "-n", "12", *more, stdin=b"hello hello hello\nhello hello\n")
        for more in ((), ("--speculate", "lookup"))
    ]
    assert said[0][0] == 0
    assert said[0][:2] == said[1][:2]


def test_what_cannot_guess_is_refused(sash: Sash, base_model: Path) -> None:
    for command in (
        ("run", base_model, "x", "--speculate", "0"),
        ("run", base_model, "x", "--speculate", "99"),
        ("run", base_model, "x", "--speculate", "lookup", "--window", "16", "--overlap", "4"),
        ("serve", base_model, "--speculate", "another"),
        ("run", "x", "--server", "http://127.0.0.1:9", "--speculate", "lookup"),
    ):
        code, out, err = sash(*command)
        assert (code, out) == (2, ""), (command, err)
        assert "guess" in err or "--speculate" in err
    assert sash("run", base_model, "x", "--speculate", "no-such-model")[0] != 0
