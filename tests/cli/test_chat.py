"""`sash chat`: turns, commands and files by a pipe; keys and Ctrl-C at a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sash.cli import chat_file
from sash.errors import InputNotFoundError, SashError, TextEncodingError, UsageError
from sash.loading import load_decoder
from sash.sampling import SamplingParams

Sash = Callable[..., tuple[int, str, str]]
GREEDY = ("-t", "0", "-n", "8")


@pytest.fixture
def chat(sash: Sash, windowed_model: Path) -> Callable[..., tuple[int, str, str]]:
    """A chat with the small model; each argument is a line that is typed."""

    def run(*lines: str, options: tuple[str, ...] = GREEDY, model: Path = windowed_model) -> tuple[int, str, str]:
        return sash("chat", model, *options, stdin="".join(f"{line}\n" for line in lines).encode())

    return run


def turns(model: Path, *questions: str, system: str | None = None, **options: Any) -> str:
    """What the library answers to the same questions."""
    lm = load_decoder(model)
    conversation = lm.conversation(system)
    shown = ""
    for question in questions:
        text = "".join(conversation.say(question, SamplingParams(max_tokens=8, temperature=0.0, **options)))
        shown += text if text.endswith("\n") or not text else text + "\n"
    return shown


def test_lines_of_a_pipe_are_answered_in_turn(chat: Any, windowed_model: Path):
    code, out, _ = chat("Hello", "", "And then?", options=(*GREEDY, "-s", "Be brief."))
    assert (code, out) == (0, turns(windowed_model, "Hello", "And then?", system="Be brief."))


def test_a_second_turn_reads_only_what_is_new(chat: Any, windowed_model: Path):
    code, _, err = chat("/stats on", "Hello", "And then?", "/stats")
    tokenizer = load_decoder(windowed_model).tokenizer
    first = tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    read = [line.split() for line in err.splitlines() if line.startswith("turn ")]
    assert code == 0
    assert int(read[0][1]) == len(first)
    # The end of the first answer, the second question and the cue: not the first question again.
    assert int(read[1][1]) < len("<|im_end|>\n") + len(
        tokenizer.encode_chat([{"role": "user", "content": "And then?"}])
    )
    assert int(read[1][5]) == int(read[0][5]) + int(read[1][1]) + 8
    assert read[2] == read[1]


def test_blocks_have_lines_and_are_never_commands(chat: Any, windowed_model: Path):
    code, out, _ = chat('"""', "/bye is no command here", "second line", '"""', '"""one"""')
    expected = turns(windowed_model, "/bye is no command here\nsecond line", "one")
    assert (code, out) == (0, expected)


def test_bye_leaves(chat: Any, windowed_model: Path):
    code, out, _ = chat("Hello", "/bye", "And then?")
    assert (code, out) == (0, turns(windowed_model, "Hello"))


def test_retry_draws_anew_and_undo_takes_back(chat: Any, windowed_model: Path):
    sampled = ("-t", "1.5", "-n", "8", "--seed", "3", "--stats")
    _, out, _ = chat("Hello", "/retry", options=sampled)
    once = chat("Hello", options=sampled)[1]
    assert out.startswith(once)
    assert out[len(once) :] not in ("", once)
    code, out, err = chat("Hello", "More", "/undo", "Other")
    assert "taken back: More" in err
    expected = turns(windowed_model, "Hello", "More")
    lm = load_decoder(windowed_model)
    conversation = lm.conversation()
    list(conversation.say("Hello", SamplingParams(max_tokens=8, temperature=0.0)))
    conversation.replace(conversation.messages)
    other = "".join(conversation.say("Other", SamplingParams(max_tokens=8, temperature=0.0)))
    assert (code, out) == (0, expected + other.rstrip("\n") + "\n")


def test_the_system_prompt_changes(chat: Any, windowed_model: Path):
    code, out, err = chat("/system Be long.", "Hello", "/system", "/system -", "/system")
    assert (code, out) == (0, turns(windowed_model, "Hello", system="Be long."))
    assert err.splitlines()[0] == "the next turn reads all of it again"
    assert err.splitlines()[-3:] == ["Be long.", "no system prompt", "there is no system prompt"]


def test_another_window_over_the_same_weights(chat: Any, windowed_model: Path, full_model: Path):
    code, out, err = chat("/window 8", "Hello", "/window", "/window auto", "And then?", "/window")
    lm = load_decoder(windowed_model)
    narrow, own = lm.with_window(8).conversation(), lm.conversation()
    params = SamplingParams(max_tokens=8, temperature=0.0)
    first = "".join(narrow.say("Hello", params))
    own.replace(narrow.messages)
    second = "".join(own.say("And then?", params))
    assert code == 0
    assert out.split() == f"{first}\n{second}".split()
    assert err.count("/window 8 is an ablation") == 2
    assert "8 in 2 of 2 layers" in err
    assert "16 in 2 of 2 layers" in err.splitlines()[-2]
    _, _, err = chat("/window", model=full_model, options=(*GREEDY, "--window", "8"))
    assert "note: --window 8 is an ablation" in err


def test_a_changed_window_keeps_the_weights_where_they_are(windowed_model: Path):
    lm = load_decoder(windowed_model)
    other = lm.with_window(8, 2)
    assert (other.config.windows, other.config.forced_window, other.config.patterns[0].pins) == ((8, 8), 8, 2)
    theirs = dict(other.decoder.named_parameters())
    for name, parameter in lm.decoder.named_parameters():
        assert theirs[name].data_ptr() == parameter.data_ptr()
        assert not theirs[name].requires_grad
    ids = list(range(4, 60))
    loaded = load_decoder(windowed_model, window=8, pins=2)
    assert other.logits(ids).equal(loaded.logits(ids))


def test_sampling_is_set(chat: Any, windowed_model: Path):
    code, out, err = chat("/set max_tokens 3", "/set", "Hello", "/set stop -", "/set ignore_eos on")
    assert code == 0
    assert "max_tokens 3" in err.splitlines()
    lm = load_decoder(windowed_model)
    expected = lm.chat([{"role": "user", "content": "Hello"}], max_tokens=3, temperature=0.0).text
    assert out == expected + ("" if expected.endswith("\n") else "\n")


def test_save_and_load(chat: Any, windowed_model: Path, tmp_path: Path):
    path = tmp_path / "talk.jsonl"
    _, out, err = chat("Hello", f"/save {path}", options=(*GREEDY, "-s", "Be brief."))
    (line,) = path.read_text(encoding="utf-8").splitlines()
    messages = json.loads(line)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[2]["content"].rstrip("\n") == out.rstrip("\n")
    assert f"3 messages in {path}" in err
    assert [entry.name for entry in tmp_path.iterdir() if "talk" in entry.name] == ["talk.jsonl"]
    code, out, err = chat(f"/load {path}", "And then?", "/stats")
    lm = load_decoder(windowed_model)
    expected = lm.chat([*messages, {"role": "user", "content": "And then?"}], max_tokens=8, temperature=0.0).text
    assert (code, out.rstrip("\n")) == (0, expected.rstrip("\n"))
    assert f"3 messages from {path}; the next turn reads them" in err


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "talk.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat_file.save(path, messages)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        chat_file.save(path, [*messages, *messages])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="nothing to save"):
        chat_file.save(path, messages[:1])


def test_a_full_disk_has_an_exit_code_of_its_own(chat: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = chat("Hello", f"/save {tmp_path / 'talk.jsonl'}")
    assert code == 8
    assert "the disk is full" in err


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", UsageError),
        (b"\xff\xfe", TextEncodingError),
        (b"not json", UsageError),
        (b"[" * 100_000, UsageError),
        (b"[]", UsageError),
        (b'{"messages": []}', UsageError),
        (b'{"messages": 3}', UsageError),
        (json.dumps({"messages": [message("assistant", None)]}).encode(), UsageError),
        (json.dumps({"messages": [message("robot", "x"), message("assistant", "y")]}).encode(), UsageError),
        (json.dumps({"messages": [message("user", "x")]}).encode(), UsageError),
        (json.dumps({"messages": ["x"]}).encode(), UsageError),
        (b" " * (chat_file.MAX_BYTES + 1), UsageError),
        (None, InputNotFoundError),
    ],
)
def test_files_that_are_no_conversation(tmp_path: Path, content: bytes | None, error: type[SashError]):
    path = tmp_path / "talk.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"talk\.jsonl"):
        chat_file.load(path)


def test_the_last_of_several_conversations_is_loaded(tmp_path: Path):
    path = tmp_path / "talk.jsonl"
    talks = [[message("user", str(i)), message("assistant", "yes") | {"weight": 1}] for i in range(3)]
    path.write_text("\n".join(json.dumps({"messages": talk, "id": 7}) for talk in talks) + "\n\n")
    assert chat_file.load(path) == ([message("user", "2"), message("assistant", "yes")], 3)


def test_an_instruction_that_slides_out_is_told_of_once(chat: Any, windowed_model: Path, full_model: Path):
    _, _, err = chat("Hello", "And then?", options=(*GREEDY, "-s", "Be brief."))
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert notes[0].startswith("note: “Be brief.”, of the system prompt, is out of the window of 2 of 2 layers: ")
    assert "--window" in notes[0]
    assert "“Hello”, of the first message, is out of the window" in chat("Hello")[2]
    assert chat("Hello", model=full_model)[2] == ""


def test_pins_that_hold_the_instruction_need_no_note(chat: Any, full_model: Path):
    flags = (*GREEDY, "--window", "200", "--pins", "150")
    _, _, err = chat("x" * 50, "y" * 150, "/window", model=full_model, options=flags)
    assert "150 pinned" in err or "pinned" in err
    assert "out of the window" not in err


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (["/dance"], 2, "no command /dance"),
        (["/undo"], 2, "no turn to take back"),
        (["/retry"], 2, "no turn to take back"),
        (["/window 0"], 10, "window of 0"),
        (["/window wide"], 2, "/window"),
        (["/stats maybe"], 2, "on or off"),
        (["/save"], 2, "needs a file"),
        (["/save /nowhere/talk.jsonl"], 2, "nothing to save"),
        (["Hi", "/save /nowhere/talk.jsonl"], 1, "cannot write"),
        (["/load /nowhere/talk.jsonl"], 6, "cannot read"),
        (["/set temperature hot"], 2, "a number"),
        (["/set temperature -1"], 2, "temperature"),
        (["/set colour red"], 2, "no colour to set"),
        (["/set top_p"], 2, "needs a value"),
    ],
)
def test_what_cannot_be_done_ends_a_chat_by_pipe(chat: Any, lines: list[str], code: int, words: str):
    found, _, err = chat(*lines, "never reached")
    assert found == code
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err.splitlines()[-1]


def test_help_lists_every_command(chat: Any):
    from sash.cli.chat_commands import COMMANDS

    code, out, err = chat("/help")
    assert (code, out) == (0, "")
    assert all(f"{name} " in err for name in COMMANDS)


def test_a_base_model_is_referred_to_run(sash: Sash, base_model: Path):
    code, out, err = sash("chat", base_model, stdin=b"Hello\n")
    assert (code, out, err.count("\n")) == (13, "", 1)
    assert f"use `sash run {base_model} PROMPT`" in err


def test_a_pipe_that_is_not_utf8(sash: Sash, windowed_model: Path):
    code, out, err = sash("chat", windowed_model, stdin=b"caf\xe9\n")
    assert (code, out) == (9, "")
    assert "not UTF-8" in err


def test_at_a_terminal(terminal: Callable[..., Any], windowed_model: Path, tmp_path: Path):
    """Ctrl-C ends an answer and not the chat; errors neither; Alt-Enter begins a line; Ctrl-D leaves."""
    talk = terminal("chat", windowed_model, "-n", "1000000", "-t", "0")

    def prompt_after(words: str) -> None:
        talk.read_until(lambda shown: ">>>" in shown.rpartition(words)[2] and words in shown)

    prompt_after("Ctrl-D leaves")
    talk.send("/set ignore_eos on\r")
    prompt_after("ignore_eos on")
    talk.send("Hello\r")
    talk.read_until(lambda shown: len(shown.rpartition("Hello")[2]) > 300)
    talk.send("\x03")
    prompt_after("stopped")
    talk.send("/dance\r")
    prompt_after("no command /dance: /help")
    talk.send("/set max_tokens 3\r")
    prompt_after("max_tokens 3")
    talk.send("one\x1b\rtwo\r")
    prompt_after("two")
    path = tmp_path / "talk.jsonl"
    talk.send(f"/save {path}\r")
    prompt_after("4 messages in")
    talk.send("\x03")
    prompt_after("/bye leaves")
    talk.send("\x04")
    assert talk.wait() == 0
    assert "Traceback" not in talk.shown
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2
    assert messages[2]["content"] == "one\ntwo"
    history = (tmp_path / "state" / "sash" / "chat_history").read_text(encoding="utf-8")
    assert "+Hello\n" in history


def test_a_pinned_system_prompt_stays_and_needs_no_note(chat: Any, full_model: Path):
    flags = (*GREEDY, "--window", "60", "-s", "Be brief.", "--pin", "system", "--pin-budget", "40", "--stats")
    code, _, err = chat("x" * 50, "y" * 50, "/window", model=full_model, options=flags)
    assert code == 0
    assert "20 pinned" in err
    assert "out of the window" not in err
    code, _, err = chat("Hello", model=full_model, options=(*GREEDY, "--window", "20", "--pin", "user:1"))
    assert code == 12
    assert "budget is 10" in err
    code, _, err = chat("Hello", model=full_model, options=(*GREEDY, "--pin", "system"))
    assert (code, "no window" in err) == (12, True)
