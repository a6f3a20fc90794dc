"""`sash run` on small random models, end to end: what is read, what is written, what is said, what is refused."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sash import cli, hub
from sash.hub import store
from sash.loading import load_decoder
from sash.sampling import SamplingParams
from sash.session import Session

Sash = Callable[..., tuple[int, str, str]]
GREEDY = ("-t", "0", "-n", "12")
TEXT = "It was a dark and stormy night.\n\nThe rain fell in torrents;\n  and the wind blew.\n"


def result(sash: Sash, *arguments: str | Path, stdin: bytes = b"") -> dict[str, Any]:
    code, out, _ = sash("run", *arguments, "--json", stdin=stdin)
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_base_model_goes_on_with_the_text(sash: Sash, base_model: Path):
    code, out, err = sash("run", base_model, TEXT, *GREEDY, "--window", "auto")
    expected = load_decoder(base_model).generate(TEXT, max_tokens=12, temperature=0.0)
    assert (code, out) == (0, expected.text.rstrip("\n") + "\n")
    assert err.startswith("note: ")


def test_the_same_seed_writes_the_same_and_the_seed_is_told(sash: Sash, base_model: Path):
    first = result(sash, base_model, "Once", "-n", "20")
    again = result(sash, base_model, "Once", "-n", "20", "--seed", str(first["seed"]))
    other = result(sash, base_model, "Once", "-n", "20", "--seed", str(first["seed"] + 1))
    assert again["token_ids"] == first["token_ids"] != other["token_ids"]


def test_files_come_first_in_their_order_and_the_prompt_last(sash: Sash, base_model: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("\ufeffsecond\n", encoding="utf-8")
    found = result(sash, base_model, "-f", tmp_path / "a.txt", "-f", tmp_path / "b.txt", "third", *GREEDY)
    expected = load_decoder(base_model).generate("first\nsecond\nthird", max_tokens=12, temperature=0.0)
    assert found["text"] == expected.text
    assert found["stats"]["prompt_tokens"] == 1 + len("first\nsecond\nthird")
    assert found["chat"] is False


@pytest.mark.parametrize("source", ["file", "stdin", "bare stdin"])
def test_an_instruct_model_gets_one_message(sash: Sash, windowed_model: Path, tmp_path: Path, source: str):
    (tmp_path / "a.txt").write_text(f"\n{TEXT}")
    given = ["-f", str(tmp_path / "a.txt")] if source == "file" else ["-f", "-"] if source == "stdin" else []
    question = [] if source == "bare stdin" else ["Why?"]
    found = result(sash, windowed_model, *given, *question, "-s", "Be brief.", *GREEDY, stdin=TEXT.encode())
    content = TEXT.strip() + ("\n\nWhy?" if question else "")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    lm = load_decoder(windowed_model)
    assert found["text"] == lm.chat(messages, max_tokens=12, temperature=0.0).text
    assert found["stats"]["prompt_tokens"] == len(lm.tokenizer.encode_chat(messages))
    assert found["chat"] is True


def test_raw_text_for_an_instruct_model_and_the_guardrail(sash: Sash, windowed_model: Path):
    lm = load_decoder(windowed_model)
    raw = result(sash, windowed_model, "Hello", "--raw", *GREEDY)
    assert (raw["text"], raw["chat"]) == (lm.generate("Hello", max_tokens=12, temperature=0.0).text, False)
    safe = result(sash, windowed_model, "Hello", "--safe-prompt", *GREEDY)
    message = {"role": "user", "content": "Hello"}
    assert safe["text"] == lm.chat([message], safe_prompt=True, max_tokens=12, temperature=0.0).text


def test_verbose_says_what_was_chosen(sash: Sash, windowed_model: Path):
    assert "chat template: used (the model has one)" in sash("-v", "run", windowed_model, "Hello", *GREEDY)[2]
    assert "chat template: not used" in sash("-v", "run", windowed_model, "Hello", "--raw", *GREEDY)[2]


def test_standard_input_is_read_into_the_model_as_it_arrives(
    windowed_model: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for model in (base_model, windowed_model):
        events: list[str] = []

        def read1(size: int, blocks: list[bytes], events: list[str] = events) -> bytes:
            events.append("wait")
            return blocks.pop(0) if blocks else b""

        blocks = [b"one\ntwo\nth", "ree\nfoür".encode()[:8], "ree\nfoür".encode()[8:] + b"\nfive\n", b"six"]
        reading = functools.partial(read1, blocks=blocks)
        buffer = SimpleNamespace(read1=reading, read=reading)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer, isatty=lambda: False))
        whole, feed = [], Session.feed

        def noted(self: Session, ids: list[int], progress: Any = None, events=events, whole=whole, feed=feed) -> int:
            events.append("read")
            whole.extend(ids)
            return feed(self, ids, progress)

        with monkeypatch.context() as patched:
            patched.setattr(Session, "feed", noted)
            assert cli.execute(["run", str(model), "-f", "-", "-n", "1"]) == 0
        lm, text = load_decoder(model), "one\ntwo\nthree\nfoür\nfive\nsix"
        message = {"role": "user", "content": text}
        assert whole == (lm.tokenizer.encode_chat([message]) if model == windowed_model else lm.tokenizer.encode(text))
        first_read, last_wait = events.index("read"), len(events) - 1 - events[::-1].index("wait")
        assert events[first_read:last_wait].count("wait") >= 3
    capsys.readouterr()


def test_the_sampling_flags_arrive(sash: Sash, base_model: Path):
    flags = ["--top-p", "0.9", "--top-k", "7", "--min-p", "0.01", "--repetition-penalty", "1.2", "--seed", "5"]
    found = result(sash, base_model, "Once upon", *flags, "-t", "1.5", "-n", "30", "--ignore-eos", "--logprobs", "2")
    expected = load_decoder(base_model).generate(
        "Once upon", max_tokens=30, temperature=1.5, top_p=0.9, top_k=7, min_p=0.01, repetition_penalty=1.2, seed=5,
        ignore_eos=True, logprobs=2,
    )  # fmt: skip
    assert found["token_ids"] == list(expected.token_ids)
    assert [token["id"] for token in found["logprobs"]] == found["token_ids"]
    assert all(len(token["top"]) == 2 and token["logprob"] < 0 for token in found["logprobs"])
    stop = expected.text[8:10]
    stopped = result(sash, base_model, "Once upon", *flags, "-t", "1.5", "-n", "30", "--ignore-eos", "--stop", stop)
    assert (stopped["text"], stopped["finish_reason"]) == (expected.text[: expected.text.index(stop)], "stop")


def test_a_prompt_over_the_window_is_told_of_in_one_line(sash: Sash, windowed_model: Path):
    _, _, err = sash("run", windowed_model, TEXT, "--raw", "-n", "1")
    n = 1 + len(TEXT)
    assert err.splitlines() == [
        f"note: {n - 16} of {n} tokens slid out of direct sight in all 2 layers; what it says reaches the answer "
        "through deeper layers only; --pins N keeps the first N in sight"
    ]
    _, _, err = sash("run", windowed_model, TEXT, "--raw", "-n", "1", "--pins", "4")
    assert err.startswith(f"note: {n - 20} of {n} tokens")
    assert err.endswith("the first 4 are pinned\n")
    assert sash("run", windowed_model, "short", "--raw", "-n", "1")[2] == ""


def test_overflow_error_comes_before_anything_is_read(
    sash: Sash, windowed_model: Path, full_model: Path, monkeypatch: pytest.MonkeyPatch
):
    assert sash("run", windowed_model, "x" * 15, "--raw", "--overflow", "error", "-n", "1")[0] == 0
    monkeypatch.setattr(Session, "feed", lambda *arguments: pytest.fail("something was read"))
    code, out, err = sash("run", windowed_model, "x" * 16, "--raw", "--overflow", "error")
    assert (code, out, err.count("\n")) == (16, "", 1)
    assert "more tokens than the window of 16" in err
    code, _, err = sash("run", full_model, "-f", "-", "--raw", "--overflow", "error", stdin=b"x" * 600)
    assert code == 16
    assert "context that the model was trained on of 512" in err


def test_statistics_are_told_below_the_answer(sash: Sash, windowed_model: Path):
    code, _, err = sash("run", windowed_model, TEXT, "--raw", "-n", "5", "--stats", "--ignore-eos", "-t", "0")
    lines = [line.split() for line in err.splitlines()[1:]]
    n = 1 + len(TEXT)
    assert code == 0
    assert lines[0][:3] == ["prompt", str(n), "tok"]
    assert lines[0][6:9] == ["tok/s", "first", "token"]
    assert lines[1][:3] + lines[1][-1:] == ["answer", "5", "tok", "length"]
    relayed, out = 15, n + 5 - 31
    assert " ".join(lines[2]) == (
        f"window 16 of {n + 5} visible directly; {relayed} only through deeper layers; {out} out of reach"
    )
    held, full = 2 * 2 * 16 * 2 * 8 * 4, 2 * 2 * (n + 5) * 2 * 8 * 4
    assert " ".join(lines[3]) == f"KV {held / 1024:.1f} KiB, float32 (a full cache holds {full / 1024:.1f} KiB by now)"


@pytest.mark.parametrize(("kv", "dtype", "of_a_head"), [("int8", "int8", 8 + 4), ("bf16", "bfloat16", 2 * 8)])
def test_the_cache_keeps_what_was_asked_for(sash: Sash, windowed_model: Path, kv: str, dtype: str, of_a_head: int):
    plain = result(sash, windowed_model, TEXT, "--raw", *GREEDY)
    found = result(sash, windowed_model, TEXT, "--raw", *GREEDY, "--kv", kv)
    assert (plain["stats"]["kv_dtype"], found["stats"]["kv_dtype"]) == ("float32", dtype)
    assert found["stats"]["kv_bytes"] == 2 * 2 * 16 * 2 * of_a_head
    length = found["window"]["visible"]["length"]
    assert found["stats"]["kv_bytes_full"] == 2 * 2 * length * 2 * of_a_head
    assert plain["stats"]["kv_bytes"] == 2 * 2 * 16 * 2 * 4 * 8


def test_a_forced_window_is_an_ablation_wherever_it_is_shown(sash: Sash, full_model: Path):
    found = result(sash, full_model, TEXT, "--raw", *GREEDY, "--window", "8", "--pins", "2")
    assert found["window"]["ablation"] is True
    assert found["window"] | {"visible": None} == {
        "size": 8, "by_layer": [8, 8], "pins": 2, "forced": 8, "ablation": True, "visible": None,
    }  # fmt: skip
    assert found["stats"]["forced_window"] == 8
    code, _, err = sash("run", full_model, TEXT, "--raw", *GREEDY, "--window", "8", "--stats")
    assert code == 0
    assert "--window 8 is an ablation" in next(line for line in err.splitlines() if line.startswith("window  "))
    assert result(sash, full_model, "a", "--raw", *GREEDY)["window"]["ablation"] is False


def test_what_the_model_lacks_is_pulled_after_saying_size_and_licence(
    sash: Sash, base_model: Path, monkeypatch: pytest.MonkeyPatch
):
    def pull(name: str, progress: object) -> Path:
        folder = store.model_directory(name)
        shutil.copytree(base_model, folder)
        store.write_manifest(folder, store.Manifest(name=name, source="", licence="", load=".", files=(), pulled_at=""))
        return folder

    monkeypatch.setattr(hub, "pull", pull)
    code, out, err = sash("run", "gemma-3-270m", "Hello", *GREEDY)
    assert (code, bool(out)) == (0, True)
    entry = hub.catalogue()["gemma-3-270m"]
    assert err.startswith(f"gemma-3-270m: {hub.size_text(entry.download_bytes)} to download")
    assert entry.licence in err


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 40)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "empty.txt").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gemma-3-270", "hi"], 4, "did you mean gemma-3-270m"),
        (["MODEL", "-f", "DIR/nothing.txt"], 6, "nothing.txt"),
        (["MODEL", "-f", "DIR"], 6, "directory"),
        (["DIR/broken.gguf", "hi"], 7, "broken.gguf"),
        (["MODEL", "-f", "DIR/latin1.txt"], 9, "latin1.txt is not UTF-8 (byte 3)"),
        (["MODEL", "hi", "--window", "0"], 10, "window of 0"),
        (["MODEL", ""], 11, "nothing to read"),
        (["MODEL", "-f", "DIR/empty.txt"], 11, "empty.txt is empty"),
        (["MODEL", "-f", "-"], 11, "empty"),
        (["MODEL", "hi", "--pin", "user:7"], 2, "no message 'user:7' to pin: the prompt's are user"),
        (["MODEL", "hi", "--pins", "17"], 12, "17 pins do not fit a window of 16"),
        (["MODEL", "hi", "--pins", "9", "--window", "8"], 12, "9 pins do not fit"),
        (["FULL", "hi", "--pins", "4"], 12, "add --window N"),
        (["BASE", "hi", "--chat"], 13, "no chat template"),
        (["BASE", "hi", "--system", "x"], 13, "no chat template"),
        (["MODEL", "hi", "-t", "-1"], 2, "temperature"),
        (["MODEL", "hi", "--top-p", "0"], 2, "top_p"),
        (["MODEL", "hi", "-n", "0"], 2, "max_tokens"),
        (["MODEL", "hi", "-n", "many"], 2, "max-tokens"),
        (["MODEL", "hi", "--stop", ""], 2, "stop"),
        (["MODEL", "hi", "--logprobs", "1"], 2, "--json"),
        (["MODEL", "hi", "--raw", "--safe-prompt"], 2, "--raw"),
        (["MODEL", "hi", "--overflow", "wrap"], 2, "slide or error"),
        (["MODEL", "hi", "--chunk", "0"], 2, "--chunk"),
        (["MODEL", "hi", "--dtype", "int3"], 2, "int3"),
        (["MODEL", "hi", "--kv", "int4"], 2, "--kv 'int4' is not known: use auto, bf16 or int8"),
        (["MODEL", "hi", "--device", "abacus"], 2, "torch knows no such device): use cpu, cuda or mps"),
        (["mistral-7b", "hi"], 4, "of mistral-7b only the figures are here"),
        (["MODEL", "hi", "--save", "DIR/none/x.session"], 6, "make it first"),
        (["MODEL", "-f", "-", "-f", "-"], 2, "once"),
    ],
)
def test_what_cannot_be_is_one_line_with_an_exit_code(
    sash: Sash, windowed_model: Path, full_model: Path, base_model: Path, broken: Path,
    arguments: list[str], code: int, words: str,
):  # fmt: skip
    names = {"MODEL": str(windowed_model), "FULL": str(full_model), "BASE": str(base_model)}
    given = [names.get(word, word.replace("DIR", str(broken))) for word in arguments]
    found, out, err = sash("run", *given)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize(("window", "told"), [("8", False), ("16", False), ("17", True), ("full", False)])
def test_a_window_larger_than_all_of_the_models_own_is_told_to_change_nothing(
    sash: Sash, windowed_model: Path, window: str, told: bool
):
    code, _, err = sash("run", windowed_model, "hi", "--window", window, "-n", "1", "-t", "0")
    assert code == 0
    assert (f"window {window} changes nothing" in err) is told


def test_text_that_is_not_utf8_in_the_middle_of_a_pipe(sash: Sash, base_model: Path):
    code, out, err = sash("run", base_model, "-f", "-", stdin=b"good\n" * 2_000 + b"b\xe4d\n")
    assert (code, out) == (9, "")
    assert "standard input is not UTF-8 (byte 10,001)" in err


def test_an_encoder_is_refused_with_what_it_can_do(sash: Sash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sash.loading.load", lambda name, **options: object())
    code, out, err = sash("run", tmp_path, "hi")
    assert (code, out, err.count("\n")) == (13, "", 1)
    assert "is an encoder" in err
    assert ".fill(text)" in err


def test_ctrl_c_ends_the_answer_and_keeps_what_there_is(terminal: Callable[..., Any], base_model: Path):
    run = terminal("run", base_model, "Once", "-n", "1000000", "--ignore-eos", "--stats", "--window", "auto")
    run.read_until(lambda shown: len(shown) > 200)
    run.send("\x03")
    assert run.wait() == 130
    assert "cancelled" in run.shown
    assert "visible directly" in run.shown
    assert "Traceback" not in run.shown


def test_ctrl_c_while_standard_input_is_awaited(
    base_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    reader, writer = os.pipe()
    main = threading.main_thread().ident
    assert main is not None
    feed, timers = Session.feed, []

    def noted(self: Session, ids: list[int], progress: Any = None) -> int:
        # The pipe stays open and silent from here on; only a signal can end the waiting, and there is only one.
        if not timers:
            timers.append(threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)))
            timers[0].start()
        return feed(self, ids, progress)

    monkeypatch.setattr(Session, "feed", noted)
    os.write(writer, b"a line\nb")
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.execute(["run", str(base_model), "-f", "-"]) == 130
    os.close(writer)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_while_reading_leaves_a_whole_session(base_model: Path, sash: Sash, monkeypatch: pytest.MonkeyPatch):
    feed, sessions = Session.feed, []

    def interrupted(self: Session, ids: list[int], progress: Any = None) -> int:
        sessions.append(self)

        def count(done: int) -> None:
            signal.raise_signal(signal.SIGINT)
            progress(done)

        return feed(self, ids, count)

    monkeypatch.setattr(Session, "feed", interrupted)
    assert sash("run", base_model, "x" * 900, "--chunk", "64")[:2] == (130, "")
    (session,) = sessions
    monkeypatch.undo()
    rest = session.tokens
    assert rest == 901
    assert session.generate(SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)).token_ids == tuple(
        load_decoder(base_model).generate("x" * 900, max_tokens=4, temperature=0.0, ignore_eos=True).token_ids
    )


def test_the_handler_of_ctrl_c_is_given_back(sash: Sash, base_model: Path):
    before = signal.getsignal(signal.SIGINT)
    assert sash("run", base_model, "Once", "-n", "2")[0] == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_to_a_live_pipe_starts_after_its_end(
    base_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    reader, writer = os.pipe()
    pause = 0.02

    def write() -> None:
        for line in (b"a first line\n", b"and a second\n", b"the last"):
            os.write(writer, line)
            time.sleep(pause)
        os.close(writer)

    thread = threading.Thread(target=write)
    with open(reader, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        thread.start()
        assert cli.execute(["run", str(base_model), "-f", "-", "-n", "5", "--ignore-eos", "--json", "--stats"]) == 0
    thread.join()
    out, err = capsys.readouterr()
    stats = json.loads(out)["stats"]
    assert stats["prompt_tokens"] == 1 + len("a first line\nand a second\nthe last")
    # The wait for the first pieces counts for one figure and not for the other.
    assert 0 < stats["first_token_after_input_seconds"] < stats["first_token_seconds"]
    assert "after the end of the input" in err


def test_who_stops_reading_the_answer_ends_it(base_model: Path, monkeypatch: pytest.MonkeyPatch):
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

        def flush(self) -> None: ...

    from sash.cli.interrupt import Interrupt
    from sash.cli.prompt_reader import Reading
    from sash.cli.run import write

    lm = load_decoder(base_model)
    reading = Reading(lm.session())
    reading.feed(lm.tokenizer.encode("Once"), lambda count: None)
    monkeypatch.setattr(sys, "stdout", Closed())
    params = SamplingParams(max_tokens=50, seed=1, ignore_eos=True)
    with pytest.raises(BrokenPipeError):
        write(lm, reading, params, chat=False, show_text=True, interrupt=Interrupt())
    assert reading.session.tokens < 50


@pytest.mark.models
def test_gemma_reads_through_its_window(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    chapters = Path(__file__).parents[2] / "examples" / "emma_chapters_1_to_5.txt"
    text = "".join(chapters.read_text(encoding="utf-8").splitlines(keepends=True)[:150])
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    flags = [*GREEDY, "--dtype", "float32", "--json", "--stats"]
    assert cli.execute(["run", "gemma-3-270m", "-f", str(tmp_path / "text.txt"), *flags]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    lm = load_decoder("gemma-3-270m", dtype="float32")
    ids = lm.tokenizer.encode(text)
    assert found["stats"]["prompt_tokens"] == len(ids) > 1024
    assert found["token_ids"] == list(lm.generate(ids, max_tokens=12, temperature=0.0).token_ids)
    assert f"{len(ids) - 512:,} of {len(ids):,} tokens slid out of direct sight in 15 of 18 layers" in captured.err
    assert "visible directly in 15 of 18 layers, all in 3" in captured.err


@pytest.mark.models
def test_an_instruct_model_answers_about_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "note.txt").write_text("The password of the gate is marigold.\n\nThe gate is blue.\n")
    given = ["-f", str(tmp_path / "note.txt"), "What is the password of the gate?"]
    assert cli.execute(["run", "smollm2-135m-instruct", *given, "-t", "0", "-n", "20"]) == 0
    assert "marigold" in capsys.readouterr().out.lower()


@pytest.mark.models
def test_live_pieces_of_a_novel_are_its_tokens():
    from sash.cli.live_tokens import encode_live

    chapters = Path(__file__).parents[2] / "examples" / "emma_chapters_1_to_5.txt"
    text = chapters.read_text(encoding="utf-8")
    pieces = [text[start : start + 777] for start in range(0, len(text), 777)]
    for name in ("gemma-3-270m", "smollm2-135m-instruct"):
        tokenizer = load_decoder(name).tokenizer
        assert [i for part in encode_live(tokenizer, pieces) for i in part] == tokenizer.encode(text)
