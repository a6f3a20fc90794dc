"""Sessions go back to any position that their log reaches, and chats read only from where tokens begin to differ."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from sash.conversation import Conversation
from sash.errors import PinsError, UsageError
from sash.lm import LM
from sash.session import Session
from tests.saved_models import GREEDY, NAMES, NATIVE, TEXT, W, make_lm

LENGTH = 12 * W


def opened(lm: LM, ids: list[int], log: bool | int = True, pins: int = 0) -> Session:
    session = lm.session(pins=pins, log=log)
    session.feed(ids, pins=[range(2, 2 + pins)] if pins else False)
    return session


def cold(lm: LM, ids: list[int], pins: int = 0) -> tuple[int, ...]:
    return opened(lm, ids, log=False, pins=pins).generate(GREEDY).token_ids


@pytest.mark.parametrize(("name", "kv"), [*((name, "auto") for name in NAMES), (NAMES[-1], "int8"), ("pins", "int8")])
def test_any_position_is_as_if_nothing_had_followed(name: str, kv: str) -> None:
    lm, chance = make_lm(name, kv=kv), random.Random(3)
    ids = lm.tokenizer.encode(TEXT * 9)[:LENGTH]
    session = opened(lm, ids)
    session.generate(GREEDY)
    for position in (LENGTH - 1, LENGTH - W, chance.randrange(2 * W, LENGTH - W), W + 1, W, 1):
        session.rewind(position)
        assert session.tokens == position
        session.feed("Anew.")
        assert session.generate(GREEDY).token_ids == cold(lm, [*ids[:position], *lm.tokenizer._encode_text("Anew.")])
    session.rewind(0)
    session.feed(ids[:W])
    assert session.generate(GREEDY).token_ids == cold(lm, ids[:W])


@pytest.mark.parametrize("name", ["window", *NATIVE][:2])
def test_pins_and_penalties_of_what_was_taken_back_are_gone(name: str) -> None:
    lm = make_lm(name)
    ids = lm.tokenizer.encode(TEXT * 9)[:LENGTH]
    params = replace(GREEDY, repetition_penalty=1.4)
    session = opened(lm, ids, pins=6)
    session.rewind(5)
    session.feed(ids[5 : 4 * W])
    assert session.pinned == (2, 3, 4)
    fresh = lm.session(pins=6)
    fresh.feed(ids[: 4 * W], pins=[range(2, 5)])
    assert session.generate(params).token_ids == fresh.generate(params).token_ids


def test_without_a_log_only_what_is_in_the_window_is_taken_back() -> None:
    lm = make_lm()
    ids = lm.tokenizer.encode(TEXT * 9)
    for length, position, fine in (
        (W, 3, True),
        (W + 1, 3, True),
        (W + 2, 3, False),
        (5 * W, 5 * W - 1, True),
        (5 * W, 5 * W - 2, False),
    ):
        session = lm.open_session(history=True)
        session.feed(ids[:length])
        if fine:
            session.rewind(position)
            assert session.generate(GREEDY).token_ids == cold(lm, ids[:position])
            continue
        with pytest.raises(UsageError, match=r"lm.session\(log=True\)"):
            session.rewind(position)
        assert session.generate(GREEDY).token_ids == cold(lm, ids[:length])
    with pytest.raises(UsageError, match="no 99"):
        session.rewind(99)


def test_a_bounded_log_goes_back_as_far_as_it_says_and_no_further() -> None:
    lm = make_lm()
    ids = lm.tokenizer.encode(TEXT * 30)
    session = opened(lm, ids, log=lm.log_of(100))
    assert len(ids) > 1500
    session.rewind(len(ids) - 100)
    assert session.generate(GREEDY).token_ids == cold(lm, ids[:-100])
    with pytest.raises(UsageError, match="held no more"):
        session.rewind(600)


def test_a_fork_shares_the_log_and_goes_its_own_way() -> None:
    lm = make_lm("interleaved")
    ids = lm.tokenizer.encode(TEXT * 9)[:300]
    session = opened(lm, ids)
    twin = session.fork()
    shared = set(session.state().row.storages()) & set(twin.state().row.storages())
    assert len(shared) >= 3
    twin.rewind(4 * W)
    twin.feed("Another way.")
    session.feed(ids[:5])
    other = [*ids[: 4 * W], *lm.tokenizer._encode_text("Another way.")]
    assert twin.generate(GREEDY).token_ids == cold(lm, other)
    assert session.generate(GREEDY).token_ids == cold(lm, [*ids, *ids[:5]])


@pytest.mark.parametrize("name", ["window", "interleaved", *NATIVE])
def test_a_chat_reads_only_what_is_new_whatever_is_changed(name: str) -> None:
    lm = make_lm(name)
    talk = lm.conversation("Be brief.")

    def say(text: str) -> int:
        list(talk.say(text, GREEDY))
        return talk.read_anew

    def same() -> None:
        """The answer is the one to what the session holds, which ends with the question."""
        assert talk.session is not None
        assert talk.session.ids is not None
        ids, asked = list(talk.session.ids), talk.messages[-2]["content"]
        assert bytes(token - 3 for token in ids[:-10] if token > 2).decode(errors="replace").endswith(f"u:{asked}a:")
        assert tuple(ids[-10:]) == cold(lm, ids[:-10])
        assert ids[: len(start := lm.tokenizer.encode_chat(talk.messages[:2])) - 2] == start[:-2]

    questions = ["How many dogs sleep?", "And how many foxes jump?", "Why do they?", "Since when?"]
    for question in questions:
        say(question)
    list(talk.retry(GREEDY))
    assert talk.read_anew == 0
    same()
    talk.undo()
    assert say("Since yesterday?") == len("yesterday?" + "\x02a:")
    same()
    list(talk.edit(2, "And how many foxes sleep?", GREEDY))
    assert talk.read_anew == len("sleep?" + "\x02a:")
    assert len(talk.messages) == 5
    same()
    assert say("Why?") <= 1 + len("u:Why?\x02a:")
    same()
    talk.set_system("Be long.")
    whole = len(lm.tokenizer.encode_chat([*talk.messages, {"role": "user", "content": "Go on."}]))
    assert say("Go on.") == whole - 1 - len("s:Be ")
    same()
    talk.replace(talk.messages[:1])
    assert say("How many dogs bark?") == len("bark?\x02a:")
    same()


def test_a_pin_on_what_was_read_goes_back_to_it_only() -> None:
    lm = make_lm()
    talk = lm.conversation("Be brief.", pins="assistant", pin_budget=W, pin_overflow="tail")
    for question in ("How many dogs sleep?", "And how many foxes jump?"):
        list(talk.say(question, GREEDY))
    assert talk.session is not None
    assert 0 < talk.read_anew < talk.session.tokens - len("Be brief. How many dogs sleep?")
    fresh = lm.conversation("Be brief.", pins="assistant", pin_budget=W, pin_overflow="tail", log=False)
    for question in ("How many dogs sleep?", "And how many foxes jump?"):
        list(fresh.say(question, GREEDY))
    assert talk.messages == fresh.messages
    assert talk.session.pinned == fresh.session.pinned  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["window", *list(NATIVE)[:1]])
def test_a_chat_with_global_tokens_answers_as_if_it_were_one_prompt(name: str, tmp_path: Path) -> None:
    lm, few = make_lm(name), replace(GREEDY, max_tokens=4)
    asked = {"global_": ["user:-1", "answer"], "pin_budget": W}
    talk = lm.conversation("Be brief, and answer in rhymes.", **asked)

    def same() -> None:
        """The last answer is the one to the conversation as one prompt, where the last turn alone is global."""
        written = lm.chat(talk.messages[:-1], **asked, max_tokens=4, temperature=0.0, ignore_eos=True)
        assert talk.messages[-1]["content"] == written.text
        assert talk.session is not None
        first = talk.session.tokens - 4
        seers = talk.session.global_positions
        assert (max(seers) + 1, min(seers) >= first - len("u:Why?\x02a:")) == (first + 4, True)

    for question in ("So?", "Why?", "And?"):
        list(talk.say(question, few))
        same()
    assert 0 < talk.read_anew <= len("u:Why?\x02a:") + 4 * 3 + len("\x02u:And?\x02a:")  # bytes that are no text take 3
    list(talk.retry(few))
    assert talk.read_anew == 0
    same()
    talk.undo()
    list(talk.say("How?", replace(few, max_tokens=2)))  # what was to be written and was not is not global
    list(talk.say("Oh?", few))
    same()
    lm.save_session(talk, tmp_path / "talk", back=None)
    list(talk.say("No!", few))
    again = lm.load_session(tmp_path / "talk")
    assert isinstance(again, Conversation)
    list(again.say("No!", few))
    assert (again.messages, again.read_anew) == (talk.messages, talk.read_anew)


def test_global_messages_that_stay_are_not_read_again() -> None:
    lm = make_lm()
    talk = lm.conversation("Hush!", global_="system", pin_budget=W)
    for question in ("How many dogs sleep?", "And how many foxes jump?"):
        list(talk.say(question, GREEDY))
    assert talk.read_anew <= 1 + len("u:And how many foxes jump?\x02a:")
    assert talk.session is not None
    assert talk.session.global_positions == tuple(range(talk.session.global_positions[-1] + 1))
    before = list(talk.messages)
    with pytest.raises(PinsError, match=r"tokens are to be pinned or global .global are user: 6"):
        list(lm.conversation(global_="user", pin_budget=W).say("How many dogs sleep?" * 3, GREEDY))
    assert talk.messages == before


@pytest.mark.parametrize("other", ["overlap", "recall", "recall that pins", "lookup"])
def test_global_tokens_are_refused_beside_what_remembers_otherwise(other: str) -> None:
    lm = make_lm()
    lm = {
        "overlap": lambda: lm.with_overlap(4),
        "recall": lambda: lm.with_recall(16),
        "recall that pins": lambda: lm.with_recall(16, block=8),  # more than half of the window
        "lookup": lambda: lm.with_speculation("lookup"),
    }[other]()
    with pytest.raises(UsageError, match=r"global tokens and .* cannot be together: choose one"):
        lm.conversation(global_=["user:-1", "answer"])
    if other == "lookup":  # a question may look back where the answer is guessed at
        assert lm.conversation(global_="user:-1").sight
        return
    with pytest.raises(UsageError, match=r"global tokens and .* cannot be together: choose one"):
        lm.generate(TEXT, global_=[range(2, 5)])
    with pytest.raises(UsageError, match=r"global tokens and .* cannot be together: choose one"):
        lm.stream(TEXT, global_=[range(2, 5)])


def test_what_is_interrupted_while_reading_is_not_read_twice() -> None:
    lm = make_lm(chunk=16)
    talk = lm.conversation()

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.say(TEXT * 3, GREEDY, stop)
    assert talk.messages == []
    answer = "".join(talk.say(TEXT * 3, GREEDY))
    assert answer == "".join(lm.conversation().say(TEXT * 3, GREEDY))


@pytest.mark.parametrize("back", [0, 60, None])
def test_a_saved_chat_goes_back_as_far_as_it_was_told_to_keep(back: int | None, tmp_path: Path) -> None:
    lm = make_lm()
    talk = lm.conversation("Be brief.")
    for question in ("How many dogs sleep?", TEXT, TEXT, "Why do they?"):
        list(talk.say(question, GREEDY))
    lm.save_session(talk, tmp_path / "kept", back=back)
    again = lm.load_session(tmp_path / "kept")
    assert isinstance(again, Conversation)
    list(again.edit(-1, "Why do we?", GREEDY))
    anew = again.read_anew
    list(talk.edit(-1, "Why do we?", GREEDY))
    assert again.messages == talk.messages
    assert talk.read_anew == len("we?\x02a:")
    assert anew == (talk.read_anew if back != 0 else talk.session.tokens - 10)  # type: ignore[union-attr]
    list(again.edit(1, "How many?", GREEDY))
    list(talk.edit(1, "How many?", GREEDY))
    assert again.messages == talk.messages
    assert talk.read_anew == len("?\x02a:") or talk.read_anew == len(" dogs?\x02a:") - 5
    assert (again.read_anew == talk.read_anew) is (back != 60)
