"""`--save` and `--resume`: chats and readings go on in another process, and say what they cannot do."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sash.cli import chat
from sash.cli.talk import Talk
from sash.engine import sealed_file
from sash.loading import load_decoder
from sash.sampling import SamplingParams
from tests.cli.conftest import write_model

Sash = Callable[..., tuple[int, str, str]]
GREEDY = ("-t", "0", "-n", "8")


def lines(*typed: str) -> bytes:
    return "".join(f"{line}\n" for line in typed).encode()


def test_a_chat_goes_on_where_it_was_left(sash: Sash, windowed_model: Path, tmp_path: Path):
    kept = tmp_path / "talk.session"
    _, whole, _ = sash("chat", windowed_model, *GREEDY, stdin=lines("Hello", "And then?", "Why?"))
    code, first, _ = sash("chat", windowed_model, *GREEDY, "--save", kept, stdin=lines("Hello", "And then?"))
    assert code == 0
    code, second, err = sash(
        "chat", "--resume", kept, "--save", kept, *GREEDY, "--stats", stdin=lines("Why?")
    )  # the model is the file's
    assert code == 0
    assert first + second == whole
    read = int(next(line for line in err.splitlines() if line.startswith("turn ")).split()[1])
    assert read < len("<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    code, _, err = sash("chat", "--resume", kept, *GREEDY, "--stats", stdin=lines("Go on."))
    assert code == 0
    assert int(err.split(" in the conversation")[0].split()[-1].replace(",", "")) > read


def test_draws_go_on_too(sash: Sash, windowed_model: Path, tmp_path: Path):
    kept, sampled = tmp_path / "talk", ("-t", "1.5", "-n", "8", "--seed", "7")
    _, whole, _ = sash("chat", windowed_model, *sampled, stdin=lines("Hello", "And then?"))
    _, first, _ = sash("chat", windowed_model, *sampled, "--save", kept, stdin=lines("Hello"))
    _, second, _ = sash("chat", "--resume", kept, "-t", "1.5", "-n", "8", stdin=lines("And then?"))
    assert first + second == whole


def test_a_forced_window_and_pins_go_on_unsaid(sash: Sash, windowed_model: Path, tmp_path: Path):
    kept, forced = tmp_path / "talk", ("--window", "12", "--pins", "2", "-s", "Be brief.", "--pin", "system",
                                       "--pin-overflow", "head")  # fmt: skip
    _, whole, _ = sash("chat", windowed_model, *GREEDY, *forced, stdin=lines("Hello", "And then?"))
    _, first, _ = sash("chat", windowed_model, *GREEDY, *forced, "--save", kept, stdin=lines("Hello"))
    code, second, _ = sash("chat", windowed_model, *GREEDY, "--resume", kept, stdin=lines("And then?"))
    assert (code, first + second) == (0, whole)
    code, _, err = sash("chat", windowed_model, *GREEDY, "--resume", kept, "--window", "8", stdin=lines("And then?"))
    assert code == 2
    assert "saved with window 12, and this has window 8: load with --window 12, or read the text again" in err
    code, _, err = sash("chat", windowed_model, "--resume", kept, "-s", "Other.", stdin=b"")
    assert (code, "leave them out" in err) == (2, True)


def test_commands_save_and_load(sash: Sash, windowed_model: Path, tmp_path: Path):
    kept = tmp_path / "talk.session"
    _, whole, _ = sash("chat", windowed_model, *GREEDY, stdin=lines("Hello", "And then?"))
    code, first, err = sash("chat", windowed_model, *GREEDY, stdin=lines("Hello", f"/save {kept}"))
    assert (code, f"saved in {kept}" in err) == (0, True)
    code, second, err = sash("chat", windowed_model, *GREEDY, stdin=lines(f"/load {kept}", "And then?"))
    assert (code, first + second) == (0, whole)
    assert "need not be read again" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--save", "/nowhere/talk"), 6, "no folder /nowhere"),
        (("--resume", "/nowhere/talk"), 6, "no file /nowhere/talk"),
        (("--save", "BOOK"), 2, "is no saved session: it stays as it is"),
        (("--resume", "BOOK"), 7, "is no saved session"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    sash: Sash, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
):
    book = tmp_path / "book.txt"
    book.write_text("It is a truth universally acknowledged")
    told = [str(book) if one == "BOOK" else one for one in arguments]
    found, out, err = sash("chat", tmp_path / "no-model", *told, stdin=lines("Hello"))
    assert (found, out) == (code, "")
    assert said in err
    assert book.read_text().startswith("It is")


def test_another_model_of_the_same_shape_is_refused(sash: Sash, windowed_model: Path, tmp_path: Path):
    other = write_model(tmp_path / "other", seed=5)
    sash("chat", windowed_model, *GREEDY, "--save", tmp_path / "kept", stdin=lines("Hello"))
    code, out, err = sash("chat", other, *GREEDY, "--resume", tmp_path / "kept", stdin=lines("Hello"))
    assert (code, out) == (2, "")
    assert "other weights" in err


BOOK = "It was a dark and stormy night.\n\nThe rain fell in torrents;\n  and the wind blew.\nNobody  slept"


@pytest.mark.parametrize(("chat", "forced"), [(False, ()), (True, ()), (True, ("--window", "12", "--pins", "2"))])
def test_a_book_is_read_once_and_asked_about_many_times(
    sash: Sash, base_model: Path, windowed_model: Path, tmp_path: Path, chat: bool, forced: tuple[str, ...]
):
    model, book, kept = windowed_model if chat else base_model, tmp_path / "book.txt", tmp_path / "book.session"
    book.write_text(BOOK)
    code, out, err = sash("run", model, "-f", book, "--save", kept, *forced)
    assert (code, out) == (0, "")
    assert f"tokens saved in {kept}" in err
    before = kept.read_bytes()
    for question in ("Who slept?", "And\nwhy  not?"):
        _, whole, _ = sash("run", model, "-f", book, question, *GREEDY, *forced)
        for named in ((model,), ()):
            code, out, err = sash("run", *named, "--resume", kept, question, *GREEDY, "--json")
            found = json.loads(out)
            assert (code, found["text"]) == (0, whole.removesuffix("\n"))
            assert found["stats"]["prompt_tokens"] < 90
            assert found["stats"]["view"]["length"] > found["stats"]["prompt_tokens"] + 60
    assert kept.read_bytes() == before


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_is_kept_and_gone_on_from(
    sash: Sash, base_model: Path, windowed_model: Path, tmp_path: Path, chat: bool
):
    model, kept = windowed_model if chat else base_model, tmp_path / "kept"
    code, first, _ = sash("run", model, "Who slept?", *GREEDY, "--save", kept)
    assert code == 0
    code, second, _ = sash("run", model, "--resume", kept, "--save", kept, "Why?", *GREEDY)
    assert code == 0
    lm = load_decoder(model)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    if chat:
        talk = lm.conversation()
        expected = ["".join(talk.say(question, params)) for question in ("Who slept?", "Why?")]
    else:
        session = lm.session()
        session.feed("Who slept?")
        answer = session.generate(params)
        session.feed(lm.tokenizer.encode("Why?", bos=False))
        expected = [answer.text, session.generate(params).text]
    assert [first.removesuffix("\n"), second.removesuffix("\n")] == [text.removesuffix("\n") for text in expected]


def test_what_pins_hold_is_held_after_a_resume(sash: Sash, windowed_model: Path, tmp_path: Path):
    book, kept = tmp_path / "book.txt", tmp_path / "kept"
    book.write_text(BOOK + "\n")
    pinned = ("--pin", "text:stormy", "-s", "Be brief.")
    _, whole, _ = sash("run", windowed_model, "-f", book, "Who?", *pinned, *GREEDY)
    assert sash("run", windowed_model, "-f", book, *pinned, "--save", kept)[0] == 0
    code, out, _ = sash("run", "--resume", kept, "Who?", *GREEDY)
    assert (code, out) == (0, whole)
    plain = sash("run", windowed_model, "-f", book, "Who?", "-s", "Be brief.", *GREEDY)[1]
    assert plain != whole


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-s", "Be brief."), "leave out --system"),
        (("--raw",), "leave out --system"),
        (("--pin", "system"), "leave out --resume"),
        (("--overflow", "error"), "leave out --resume"),
    ],
)
def test_what_is_settled_is_not_asked_again(
    sash: Sash, windowed_model: Path, tmp_path: Path, more: tuple[str, ...], said: str
):
    sash("run", windowed_model, "Hello", *GREEDY, "--save", tmp_path / "kept")
    code, out, err = sash("run", "--resume", tmp_path / "kept", "Why?", *more)
    assert (code, out) == (2, "")
    assert said in err


def test_chats_and_texts_are_gone_on_with_by_their_own_command(sash: Sash, windowed_model: Path, tmp_path: Path):
    sash("run", windowed_model, "Hello", *GREEDY, "--save", tmp_path / "text")
    sash("chat", windowed_model, *GREEDY, "--save", tmp_path / "chat", stdin=lines("Hello"))
    code, _, err = sash("run", "--resume", tmp_path / "chat", "Why?")
    assert (code, "by `sash chat --resume" in err) == (2, True)
    code, _, err = sash("chat", "--resume", tmp_path / "text", stdin=lines("Why?"))
    assert (code, "by `sash run --resume" in err) == (2, True)


def test_a_save_that_fails_is_told_and_tried_again_at_the_end(
    windowed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lm = load_decoder(windowed_model)
    talk = Talk(lm, SamplingParams(max_tokens=8, temperature=0.0))
    fsync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(sealed_file.os, "fsync", full)
    monkeypatch.setattr(chat, "terminal_messages", lambda names: iter(["Hello", "And then?"]))
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    chat._converse(talk, "hello", tmp_path / "kept")
    assert capsys.readouterr().err.count("error: the disk is full") == 2
    again = lm.load_session(tmp_path / "kept")
    assert again.messages == talk.conversation.messages  # type: ignore[union-attr]
    assert len(talk.conversation.messages) == 4


def test_ctrl_c_waits_for_a_save(windowed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lm = load_decoder(windowed_model)
    talk = Talk(lm, SamplingParams(max_tokens=8, temperature=0.0))
    talk.say("Hello")
    fsync, presses = os.fsync, [signal.SIGINT]

    def pressed(handle: int) -> None:
        if presses:
            os.kill(os.getpid(), presses.pop())
        fsync(handle)

    monkeypatch.setattr(sealed_file.os, "fsync", pressed)
    talk.save(tmp_path / "kept")
    assert lm.load_session(tmp_path / "kept").messages == talk.conversation.messages  # type: ignore[union-attr]


class Gone(io.TextIOWrapper):
    """Standard output whose reader goes away with the first word."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_what_was_read_is_saved_though_nobody_takes_the_answer(
    sash: Sash, windowed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: tuple[str, ...]
):
    place = tmp_path / "book.session"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        patched.setattr(sys, "stderr", sys.stderr)  # typer wraps both
        with pytest.raises(SystemExit, match="1"):
            sash("run", windowed_model, "Once upon a time", *GREEDY, *as_json, "--save", place)
    code, out, _ = sash("run", "--resume", place, "And then?", *GREEDY)
    assert (code, bool(out)) == (0, True)


def test_a_chat_is_saved_though_nobody_takes_the_answer(
    sash: Sash, windowed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "talk.session"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Gone())
        patched.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(SystemExit, match="1"):
            sash("chat", windowed_model, *GREEDY, "--save", place, stdin=b"Hi\nMore\n")
    code, _, err = sash("chat", "--resume", place, *GREEDY, "--stats", stdin=b"And then?\n")
    assert (code, int(err.split(" in the conversation")[0].split()[-1]) > 40) == (0, True)


def test_an_answer_is_told_before_a_save_that_fails(
    sash: Sash, windowed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*given: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sash.saved.sealed_file.write", full)
    flags = (*GREEDY, "--json", "--save", tmp_path / "book.session")
    code, out, err = sash("run", windowed_model, "Once upon a time", *flags)
    assert (code, len(json.loads(out)["token_ids"])) == (8, 8)
    assert f"the disk is full: {tmp_path}/book.session is not written; make room" in err
