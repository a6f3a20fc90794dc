"""`sash run` with pins, instructions and audits, on small random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sash.loading import load_decoder

Sash = Callable[..., tuple[int, str, str]]
GREEDY = ("-t", "0", "-n", "6", "--ignore-eos")
LONG = "The rain fell in torrents. " * 6


def test_a_system_prompt_is_pinned_and_told_of(sash: Sash, full_model: Path):
    flags = (*GREEDY, "--window", "70", "-s", "Be brief.")
    code, out, err = sash("run", full_model, LONG, *flags, "--stats")
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert notes[1] == (
        "note: “Be brief.”, of the system prompt, is out of the window of 2 of 2 layers: nothing brings it to "
        "the answer; --pin system keeps it, or a larger --window, or say it again"
    )
    code, out, err = sash("run", full_model, LONG, *flags, "--pin", "system", "--stats", "--json")
    assert code == 0
    assert "of the system prompt" not in err
    assert "20 pinned" in err
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG.strip()}]
    lm = load_decoder(full_model, window=70)
    expected = lm.chat(messages, pins="system", temperature=0.0, max_tokens=6, ignore_eos=True)
    assert json.loads(out)["token_ids"] == list(expected.token_ids)


def test_plain_text_is_pinned_by_what_it_says(sash: Sash, full_model: Path):
    text = f"Answer in rhymes. {LONG}"
    flags = (*GREEDY, "--raw", "--window", "40", "--json")
    code, out, err = sash("run", full_model, text, *flags, "--pin", "text:Answer in rhymes.", "--instruction", "Answer")
    assert code == 0
    assert "“Answer”" not in err
    found = json.loads(out)
    lm = load_decoder(full_model, window=40)
    expected = lm.generate(text, pins="text:Answer in rhymes.", temperature=0.0, max_tokens=6, ignore_eos=True)
    assert found["token_ids"] == list(expected.token_ids)
    assert found["window"]["visible"]["pinned"] == 17
    _, _, err = sash("run", full_model, text, *flags, "--mark", "1:18")
    assert "“Answer in rhymes.”, of the instruction, is out of the window of 2 of 2 layers" in err
    assert "--pin 1:18 keeps it" in err


def test_an_instruction_that_leaves_while_writing_is_told_of_afterwards(sash: Sash, full_model: Path):
    text = "Answer in rhymes. " + "x" * 20
    flags = ("-t", "0", "-n", "12", "--ignore-eos", "--raw", "--window", "45", "--instruction", "Answer in rhymes.")
    _, _, err = sash("run", full_model, text, *flags)
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert [note[:29] for note in notes] == ["note: “Answer in rhymes.”, of"]


def test_an_audit_is_a_table_or_json(sash: Sash, full_model: Path):
    text = f"Answer in rhymes. {LONG}"
    flags = (*GREEDY, "--raw", "--window", "40", "--audit")
    _, _, err = sash("run", full_model, text, *flags)
    table = err[err.index("tokens") :] if "tokens  part" in err else err
    assert "Answer in rhymes." in table
    assert "for token 181, the first written" in err
    _, out, _ = sash("run", full_model, text, *flags, "--json")
    audit = json.loads(out)["audit"]
    assert (audit["first"]["position"], audit["last"]["position"]) == (181, 186)
    assert audit["first"]["parts"][0]["name"] == "“Answer in rhymes.”"
    assert audit["first"]["parts"][0]["verdict"] == "out"
    assert len(audit["last"]["parts"]) == 7


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--pin", "sistem"), 2, "does not say what to pin"),
        (("--pin", "system"), 2, "plain text has no messages"),
        (("--pin", "text:nowhere"), 2, "does not say 'nowhere'"),
        (("--pin", "0:30"), 12, "30 tokens are to be pinned (0:30: 30), and the budget is 20"),
        (("--pin", "0:30", "--pin-budget", "99"), 12, "a budget of 99 pins does not fit the window of 40"),
        (("--pin", "0:30", "--pin-overflow", "middle"), 2, "pin overflow is error, head, tail, head+tail"),
        (("--pin-budget", "9"), 2, "add --pin system"),
        (("--mark", "system"), 2, "--mark takes tokens"),
        (("--mark", "9:999"), 2, "no tokens 9:999"),
    ],
)
def test_what_cannot_be_pinned_or_marked_is_refused(
    sash: Sash, full_model: Path, options: tuple[str, ...], code: int, words: str
):
    found, out, err = sash("run", full_model, LONG, *GREEDY, "--raw", "--window", "40", *options)
    assert (found, out) == (code, "")
    assert words in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_pins_over_the_budget_are_cut_where_that_is_asked_for(sash: Sash, full_model: Path):
    flags = (*GREEDY, "--raw", "--window", "40", "--json", "--pin", "0:30", "--pin-overflow", "head+tail")
    code, out, _ = sash("run", full_model, LONG, *flags)
    assert code == 0
    lm = load_decoder(full_model, window=40)
    pins = [range(10), range(20, 30)]
    expected = lm.generate(LONG, pins=pins, temperature=0.0, max_tokens=6, ignore_eos=True)
    assert json.loads(out)["token_ids"] == list(expected.token_ids)


def test_what_is_global_sees_all_that_was_read(sash: Sash, full_model: Path):
    text = f"Answer in rhymes. {LONG}Now?"
    flags = (*GREEDY, "--raw", "--window", "40", "--json")
    code, out, err = sash("run", full_model, text, *flags, "--global", "text:Now?", "--global", "answer", "--stats")
    assert code == 0
    lm = load_decoder(full_model, window=40)
    asked = {"temperature": 0.0, "max_tokens": 6, "ignore_eos": True}
    expected = lm.generate(text, global_=["text:Now?", "answer"], **asked)
    told = json.loads(out)
    assert told["token_ids"] == list(expected.token_ids)
    assert told["window"]["visible"]["global_seen"] == expected.stats.view.global_seen > 100
    assert "as or by global tokens" in err
    assert "--global answer" not in err
    _, _, err = sash("run", full_model, text, *flags, "--global", "text:Now?")
    assert "bring back little unless what is written sees all, too (--global answer)" in err
    code, _, err = sash("run", full_model, text, *flags, "--global", "0:30")
    assert (code, "30 tokens are to be pinned or global (global are 0:30: 30)" in err) == (12, True)
