"""`--overlap`, `--hierarchy` and `--recall` in chats: what is answered, what is refused, and other windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sash.cli.remembering import Remembering
from sash.conversation import Conversation
from sash.errors import UsageError
from sash.lm import LM
from sash.loading import load_decoder
from sash.sampling import SamplingParams

Sash = Callable[..., tuple[int, str, str]]
DRAWN = ("-t", "1.5", "--seed", "3", "-n", "16")
LONG = "The rain fell in torrents. " * 6
LINES = ("The rain fell in torrents all day long, and nobody went out.", "And then the sun came back to us.")
WAYS: dict[str, tuple[tuple[str, str], Callable[[LM], LM]]] = {
    "overlap": (("--overlap", "24"), lambda lm: lm.with_overlap(24)),
    "hierarchy": (("--hierarchy", "2"), lambda lm: lm.with_hierarchy(per_level=2)),
    "recall": (("--recall", "32"), lambda lm: lm.with_recall(32)),
}


def typed(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def said(lm: LM) -> str:
    """What a conversation with this model shows."""
    conversation, shown = lm.conversation(), ""
    for number, line in enumerate(LINES):
        text = "".join(conversation.say(line, SamplingParams(max_tokens=16, temperature=1.5, seed=3 + number)))
        shown += text if text.endswith("\n") or not text else text + "\n"
    return shown


@pytest.mark.parametrize("name", WAYS)
def test_a_chat_answers_as_its_model_does(sash: Sash, full_model: Path, name: str):
    flags, over = WAYS[name]
    forced, plain = load_decoder(full_model, window=80), load_decoder(full_model, window=64)
    code, out, _ = sash("chat", full_model, *DRAWN, "--window", "80", *flags, stdin=typed(*LINES))
    assert (code, out) == (0, said(over(forced)))
    assert out != said(forced)
    # Another window over the same weights is remembered in the same way.
    code, again, _ = sash("chat", full_model, *DRAWN, "--window", "80", *flags, stdin=typed("/window 64", *LINES))
    assert (code, again) == (0, said(over(plain)))
    code, _, err = sash("chat", full_model, *DRAWN, "--window", "80", *flags, stdin=typed("/window full"))
    assert (code, f"this chat has {flags[0]}, and without a window nothing is lost" in err) == (2, True)


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--overlap", "4", "--recall", "32"), "--overlap and --recall cannot be together: choose one"),
        (("--hierarchy", "4", "--speculate", "lookup"), "--hierarchy and --speculate cannot be together"),
        (("--overlap", "0"), "--overlap takes 1 to 16, as many as --window"),
        (("--recall", "0"), "--recall counts slots of a layer"),
        (("--hierarchy", "0"), "per_level is 1 or more"),
        (("--recall", "32", "--window", "full"), "with --window full nothing is lost that --recall could bring back"),
        (("--recall", "32", "--save", "x.session"), "leave out --recall"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    sash: Sash, full_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, flags: Any, words: str
):
    monkeypatch.chdir(tmp_path)
    prompt = ("Hi",) if command == "run" else ()
    found, out, err = sash(command, full_model, *prompt, "--window", "16", *flags, stdin=b"Hi\n")
    assert (found, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_the_last_question_of_a_chat_sees_all_that_was_said(sash: Sash, full_model: Path, tmp_path: Path):
    flags = ("--window", "80", "--pin-budget", "80", "--global", "user:-1", "--global", "answer", "-t", "0", "-n", "8")
    typed = f"{LONG}\nNow?\n".encode()
    code, out, err = sash("chat", full_model, *flags, "--stats", "--save", tmp_path / "talk", stdin=typed)
    assert (code, "are to be pinned or global" in err) == (12, True)  # the first question is longer than its budget
    flags = (*flags[:4], *flags[6:])
    code, out, err = sash("chat", full_model, *flags, "--stats", "--save", tmp_path / "talk", stdin=typed)
    lm = load_decoder(full_model).with_window(80)
    talk = lm.conversation(pin_budget=80, global_=["answer"])
    asked = SamplingParams(temperature=0.0, max_tokens=8)
    answers = ["".join(talk.say(text, asked)) for text in (LONG, "Now?")]
    assert (code, out.split("\n")) == (0, "\n".join([*answers, ""]).split("\n"))
    assert "as or by global tokens" in err
    code, out, err = sash("chat", "--resume", tmp_path / "talk", "-t", "0", "-n", "8", stdin=b"And?\n")
    assert (code, out.strip("\n")) == (0, "".join(talk.say("And?", asked)).strip("\n"))
    code, _, err = sash("chat", "--resume", tmp_path / "talk", "--global", "answer", stdin=b"And?\n")
    assert (code, "are the saved chat's: leave them out" in err) == (2, True)
    code, _, err = sash("chat", full_model, "--global", "answer", "--window", "80", "--recall", "32", stdin=b"Hi\n")
    assert (code, "global tokens and recall cannot be together" in err) == (2, True)


def test_a_chat_by_overlapping_windows_goes_on_from_what_was_said(sash: Sash, full_model: Path, tmp_path: Path):
    place, greedy = tmp_path / "talk.session", ("-t", "0", "-n", "8")
    flags = ("--window", "48", "--overlap", "24", *greedy)
    code, out, _ = sash("chat", full_model, *flags, "--save", place, stdin=typed(*LINES))
    assert (code, len(out) > 8) == (0, True)
    lm = load_decoder(full_model).with_window(48).with_overlap(24)
    before = lm.load_session(place)
    assert isinstance(before, Conversation)
    assert [one["content"] for one in before.messages[::2]] == list(LINES)
    wanted = "".join(before.say("And then?", SamplingParams(temperature=0.0, max_tokens=8)))
    code, out, err = sash("chat", "--resume", place, *greedy, "--stats", stdin=typed("And then?"))
    assert (code, out.strip("\n")) == (0, wanted.strip("\n"))
    assert "read again" in err or "overlap" in err
    code, _, err = sash("chat", "--resume", place, "--recall", "32", stdin=typed("And then?"))
    assert (code, "leave out --recall" in err) == (2, True)


def test_one_way_at_most():
    assert not Remembering.of()
    assert not Remembering.of(speculate="lookup")
    assert Remembering.of(recall=16).option == "--recall"
    with pytest.raises(UsageError, match="choose one"):
        Remembering.of("4", 2)
