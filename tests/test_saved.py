"""Sessions and conversations in files go on as if nobody had ever stopped, or are refused."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sash import saved
from sash.attention.pattern import AttentionPattern
from sash.conversation import Conversation
from sash.engine import sealed_file
from sash.errors import CheckpointError, DiskFullError, InputNotFoundError, SashError, UsageError
from sash.lm import LM
from sash.session import Session
from tests.conftest import ByteTokenizer, small_config, small_decoder
from tests.saved_models import GREEDY, NAMES, NATIVE, TEXT, W, make_lm


def read_some(lm: LM, n_tokens: int, pins: int = 0) -> Session:
    session = lm.session(pins=pins)
    ids = lm.tokenizer.encode(TEXT * 9)[:n_tokens]
    session.feed(ids, pins=[range(2, 2 + pins)] if pins else False)
    return session


def no_reading(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on, how many tokens were read at once, each time."""
    counts: list[int] = []
    read = Session._read

    def counted(self: Session, ids: list[int], flags: list[bool]) -> None:
        counts.append(len(ids))
        read(self, ids, flags)

    monkeypatch.setattr(Session, "_read", counted)
    return counts


@pytest.mark.parametrize(("name", "kv"), [*((name, "auto") for name in NAMES), (NAMES[-1], "int8"), ("pins", "int8")])
@pytest.mark.parametrize("n_tokens", [1, W, W + 1, 5 * W + 2])
def test_a_resumed_session_writes_what_the_uninterrupted_one_writes(
    name: str, kv: str, n_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm(name, kv=kv)
    session = read_some(lm, n_tokens)
    once = session.generate(GREEDY).token_ids
    size = lm.save_session(session, tmp_path / "kept")
    assert (tmp_path / "kept").stat().st_size == size
    counts = no_reading(monkeypatch)
    again = make_lm(name, kv=kv).load_session(tmp_path / "kept")
    assert isinstance(again, Session)
    assert counts == []
    assert (again.tokens, again.view) == (session.tokens, session.view)
    assert again.nbytes <= session.nbytes
    assert again.generate(GREEDY).token_ids == session.generate(GREEDY).token_ids
    for one in (again, session):
        one.feed("And then?")
    assert again.generate(GREEDY).token_ids == session.generate(GREEDY).token_ids
    assert len(once) == 10


@pytest.mark.parametrize("name", ["window", "interleaved", *NATIVE])
def test_pins_and_penalties_go_on(name: str, tmp_path: Path) -> None:
    lm = make_lm(name)
    session = read_some(lm, 4 * W, pins=5)
    lm.save_session(session, tmp_path / "kept")
    again = lm.load_session(tmp_path / "kept")
    assert isinstance(again, Session)
    assert again.pinned == session.pinned == (2, 3, 4, 5, 6)
    assert again.view.held == session.view.held == 5
    params = replace(GREEDY, repetition_penalty=1.3)
    assert again.generate(params).token_ids == session.generate(params).token_ids
    unpinned = read_some(lm, 4 * W)
    assert unpinned.generate(params).token_ids != read_some(lm, 4 * W, pins=5).generate(params).token_ids


@pytest.mark.parametrize("name", ["window", *NATIVE])
def test_an_answer_that_was_left_in_the_midst_goes_on(name: str, tmp_path: Path) -> None:
    """With guesses several tokens may have been read by then that nobody has been given."""
    lm = make_lm(name).with_speculation("lookup")
    ids = lm.tokenizer.encode("abcabd" * 12)
    whole = lm.session()
    whole.feed(ids)
    params = replace(GREEDY, max_tokens=40)
    expected = whole.generate(params).token_ids
    for pieces in (1, 2, 5, 9):
        session = lm.session()
        session.feed(ids)
        stream = session.stream(params)
        for _ in zip(range(pieces), stream, strict=False):
            pass
        stream.close()
        count = session.tokens - len(ids)
        assert stream.completion.token_ids == expected[:count]
        lm.save_session(session, tmp_path / "kept")
        again = lm.load_session(tmp_path / "kept")
        assert isinstance(again, Session)
        rest = again.generate(replace(GREEDY, max_tokens=40 - count)).token_ids
        assert rest == expected[count:]
        assert session.generate(replace(GREEDY, max_tokens=40 - count)).token_ids == rest


def test_a_size_that_does_not_depend_on_the_length(tmp_path: Path) -> None:
    lm = make_lm("window")
    sizes = [lm.save_session(read_some(lm, length), tmp_path / "kept") for length in (3 * W, 30 * W)]
    assert abs(sizes[1] - sizes[0]) < 1024


def test_a_conversation_goes_on_and_reads_only_what_is_new(tmp_path: Path) -> None:
    lm = make_lm("interleaved")
    talk = lm.conversation("Be brief.", pins="system", pin_budget=5, pin_overflow="head")
    for question in ("How many dogs sleep?", "And how many foxes jump?"):
        list(talk.say(question, GREEDY))
    lm.save_session(talk, tmp_path / "kept")
    again = lm.load_session(tmp_path / "kept")
    assert isinstance(again, Conversation)
    assert again.messages == talk.messages
    for one in (talk, again):
        list(one.say("Why?", GREEDY))
    assert again.messages == talk.messages
    assert again.read_anew == talk.read_anew < 20
    assert again.session is not None
    assert talk.session is not None
    assert again.session.pinned == talk.session.pinned
    assert again.contract == talk.contract


def test_a_conversation_that_has_read_nothing_is_its_messages(tmp_path: Path) -> None:
    lm = make_lm()
    talk = lm.conversation("Be brief.")
    lm.save_session(talk, tmp_path / "kept")
    again = lm.load_session(tmp_path / "kept")
    assert isinstance(again, Conversation)
    assert (again.messages, again.session) == (talk.messages, None)


def test_a_conversation_whose_session_broke_keeps_what_was_said(tmp_path: Path) -> None:
    lm = make_lm()
    talk = lm.conversation("Be brief.")
    list(talk.say("How many dogs sleep?", GREEDY))
    assert talk.session is not None
    talk.session.intact = False  # stopped twice, in the midst of a step
    lm.save_session(talk, tmp_path / "talk")
    again = lm.load_session(tmp_path / "talk")
    assert isinstance(again, Conversation)
    assert (again.messages, again.session) == (talk.messages, None)
    assert list(again.say("And why?", GREEDY))


def test_what_is_saved_is_as_of_then_and_both_go_on(tmp_path: Path) -> None:
    lm = make_lm("interleaved")
    session = read_some(lm, 3 * W)
    lm.save_session(session, tmp_path / "kept")
    first = session.generate(GREEDY).token_ids
    once, twice = (lm.load_session(tmp_path / "kept") for _ in range(2))
    assert isinstance(once, Session)
    assert isinstance(twice, Session)
    once.feed("Something else.")
    assert twice.generate(GREEDY).token_ids == first


OTHERS: dict[str, tuple[LM, str]] = {
    "window": (
        LM(small_decoder(small_config([AttentionPattern(window=8)] * 2, vocab_size=259), 3), ByteTokenizer(), name="o"),
        r"saved with window 12, and this has window 8: load with --window 12, or read",
    ),
    "pins": (make_lm("pins"), r"pins"),
    "weights": (make_lm(seed=4), r"other weights"),
    "kv": (make_lm(kv="int8"), r"float32 keys and values, and this keeps int8: load with the same --kv"),
    "shape": (
        LM(small_decoder(small_config([AttentionPattern(window=W)] * 3, vocab_size=259)), ByteTokenizer(), name="o"),
        r"another model: load the model that it was saved with",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_model_is_refused_by_what_differs(what: str, tmp_path: Path) -> None:
    lm, said = OTHERS[what]
    session = read_some(make_lm(), 3 * W)
    make_lm().save_session(session, tmp_path / "kept")
    with pytest.raises(UsageError, match=said):
        lm.load_session(tmp_path / "kept")


@pytest.mark.skipif(not NATIVE, reason="the kernels are not built")
def test_native_sessions_and_those_of_torch_are_no_others(tmp_path: Path) -> None:
    make_lm("native window").save_session(read_some(make_lm("native window"), 3 * W), tmp_path / "kept")
    with pytest.raises(UsageError, match="another model"):
        make_lm("window").load_session(tmp_path / "kept")


def test_a_file_that_is_something_else_is_neither_read_nor_written_over(tmp_path: Path) -> None:
    lm = make_lm()
    session = read_some(lm, 3 * W)
    book, link, folder = tmp_path / "book.txt", tmp_path / "link", tmp_path / "folder"
    book.write_text("It is a truth universally acknowledged ...")
    lm.save_session(session, tmp_path / "kept")
    link.symlink_to("kept")
    folder.mkdir()
    for path in (book, link, folder):
        with pytest.raises(CheckpointError):
            lm.load_session(path)
        with pytest.raises(UsageError, match="name another"):
            lm.save_session(session, path)
    assert book.read_text().startswith("It is")
    assert link.is_symlink()
    with pytest.raises(InputNotFoundError, match="no file"):
        lm.load_session(tmp_path / "nothing")
    with pytest.raises(InputNotFoundError, match="no folder"):
        lm.save_session(session, tmp_path / "nowhere" / "kept")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="regular"):
        lm.load_session(tmp_path / "pipe")


def test_a_newer_version_is_refused_and_an_older_file_stays_whole(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    lm = make_lm()
    path = tmp_path / "kept"
    session = read_some(lm, 3 * W)
    lm.save_session(session, path)
    before = path.read_bytes()
    monkeypatch.setattr(saved, "KIND", replace(saved.KIND, version=2))
    session.feed("More.")
    lm.save_session(session, path)
    monkeypatch.setattr(saved, "KIND", replace(saved.KIND, version=1))
    with pytest.raises(CheckpointError, match="version 2, and this reads 1: use a newer Sash"):
        lm.load_session(path)
    path.write_bytes(before)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sealed_file.os, "fsync", full)
    with pytest.raises(DiskFullError, match="is as it was before"):
        lm.save_session(session, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["kept"]
    assert session.generate(GREEDY).token_ids  # the session itself lost nothing


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    lm = make_lm()
    ours = [tmp_path / ".kept.999999999.tmp", tmp_path / f".kept.{os.getpid()}.tmp"]
    others = [tmp_path / f".kept.{os.getppid()}.tmp", tmp_path / ".kept2.999999999.tmp"]
    for path in (*ours, *others):
        path.write_bytes(b"half")
    lm.save_session(read_some(lm, W), tmp_path / "kept")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "kept", *others])


def test_a_session_stopped_in_a_step_is_not_used_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    session = read_some(lm, 3 * W)

    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(session.network), "forward", stopped)
    with pytest.raises(KeyboardInterrupt):
        session.feed("More.")
    monkeypatch.undo()
    for use in (
        lambda: session.feed("x"),
        lambda: session.generate(GREEDY),
        lambda: lm.save_session(session, tmp_path),
    ):
        with pytest.raises(SashError, match="midst of a step"):
            use()
    session.rewind(0)
    session.feed(TEXT)
    assert (
        session.generate(GREEDY).token_ids
        == lm.generate(TEXT, temperature=0.0, max_tokens=10, ignore_eos=True).token_ids
    )
