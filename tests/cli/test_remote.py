"""`sash chat URL` and `sash run --server URL`, against a server that answers whatever a test says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sash.attention.pattern import AttentionPattern
from sash.cli.server_client import Server, base_of, events
from sash.errors import ServerRefusedError, ServerUnreachableError, UsageError
from sash.explain.audit import audit, draw_audit

Sash = Callable[..., tuple[int, str, str]]
GREEDY = ("-t", "0", "-n", "8", "--seed", "7")
END = {
    "choices": [],
    "usage": {
        "prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 60},
    },
    "timings": {"prompt_ms": 1500.0, "predicted_ms": 900.0},
    "window": {
        "size": 64, "layers": 4, "windowed_layers": 3, "evicted": 36, "pinned": 0, "relayed": 36, "out_of_reach": 0,
    },
}  # fmt: skip


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "text": text, "finish_reason": reason}]}


class Scripted:
    """A server with a script: what it has heard, and what it says."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.card: dict[str, Any] = {"id": "parrot"}
        self.status = 200
        self.refusal: Any = {"error": {"message": "no\nway", "type": "x", "param": None, "code": None}}
        self.says: list[Any] = [piece("Hel\u2028lo"), piece(" you", "stop"), END, "[DONE]"]
        self.waits = 0.0
        self.gone = threading.Event()
        script = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                script.keys.append(self.headers.get("authorization"))
                if script.status != 200:
                    return self.answer(script.status, "application/json", json.dumps(script.refusal).encode())
                return self.answer(200, "application/json", json.dumps({"data": [script.card]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                script.heard.append({"path": self.path, **body})
                if script.status != 200:
                    return self.answer(script.status, "application/json", json.dumps(script.refusal).encode())
                self.answer(200, "text/event-stream", b": ping\n\n")
                try:
                    for chunk in script.says:
                        text = chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False)
                        self.wfile.write(f"data: {text}\n\n".encode())
                        self.wfile.flush()
                        time.sleep(script.waits)
                except OSError:
                    script.gone.set()
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.delenv("SASH_API_KEY", raising=False)
    server = Scripted()
    yield server
    server.close()


def typed(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def test_a_chat_sends_the_whole_conversation_and_shows_pieces(sash: Sash, parrot: Scripted):
    code, out, err = sash("chat", parrot.url + "/v1/", *GREEDY, "-s", "Be brief.", "--stats", stdin=typed("Hi", "And?"))
    assert (code, out) == (0, "Hel\u2028lo you\nHel\u2028lo you\n")
    first, second = parrot.heard
    assert first == {
        "path": "/v1/chat/completions", "model": "parrot", "max_tokens": 8, "temperature": 0.0, "top_p": 1.0,
        "seed": 7, "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    }  # fmt: skip
    assert second["messages"][2:] == [
        {"role": "assistant", "content": "Hel\u2028lo you"}, {"role": "user", "content": "And?"},
    ]  # fmt: skip
    assert second["seed"] == 8
    lines = err.splitlines()
    assert lines[0] == "turn    30 new tokens read, 100 in the conversation"
    assert lines[1].split()[:7] == ["prompt", "30", "tok", "1.50", "s", "20.0", "tok/s"]
    assert lines[2].split() == ["answer", "10", "tok", "0.90", "s", "10.0", "tok/s", "stop"]
    assert lines[3] == ("window  64 of 100 visible directly in 3 of 4 layers, all in 1; 36 only through deeper layers")
    assert [line for line in lines if line.startswith("note:")] == [
        "note: 36 of 100 tokens slid out of direct sight in 3 of 4 layers; --pins N keeps the first N in sight"
    ]


def test_commands_work_on_a_server_too(sash: Sash, parrot: Scripted, tmp_path: Path):
    path = tmp_path / "talk.jsonl"
    lines = ("Hi", "/retry", f"/save {path}", "/undo", "/window 32", "/window", "/set top_k 5", "/system Be long.",
             "Ho", f"/load {path}", "/stats", "More", "/bye", "never")  # fmt: skip
    code, _, err = sash("chat", parrot.url, *GREEDY, "--pins", "4", stdin=typed(*lines))
    assert code == 0
    hi, again, ho, more = parrot.heard
    assert again["messages"] == hi["messages"] == [{"role": "user", "content": "Hi"}]
    assert hi["window"] == {"pins": {"first": 4}}
    assert (ho["window"], ho["top_k"]) == ({"size": 32, "pins": {"first": 4}}, 5)
    assert [message["content"] for message in ho["messages"]] == ["Be long.", "Ho"]
    assert [message["content"] for message in more["messages"]] == ["Hi", "Hel\u2028lo you", "More"]
    assert "window  32 is asked for" in err
    assert "taken back: Hi" in err


def test_run_asks_a_server(sash: Sash, parrot: Scripted, tmp_path: Path):
    (tmp_path / "a.txt").write_text("A text.\n")
    code, out, err = sash("run", "--server", parrot.url, "-f", tmp_path / "a.txt", "Why?", *GREEDY, "--stats")
    assert (code, out) == (0, "Hel\u2028lo you\n")
    assert parrot.heard[0]["messages"] == [{"role": "user", "content": "A text.\n\nWhy?"}]
    assert err.splitlines()[-1].startswith("window  64 of 100")
    flags = ("--raw", "--json", "--logprobs", "2", "--window", "32", "--overflow", "error", "--top-k", "3")
    code, out, _ = sash("run", "parrot-2", "Once", "--server", parrot.url, *GREEDY, *flags)
    asked, told = parrot.heard[1], json.loads(out)
    assert (asked["path"], asked["model"], asked["prompt"]) == ("/v1/completions", "parrot-2", "Once")
    assert (asked["logprobs"], asked["top_k"]) == (2, 3)
    assert asked["window"] == {"size": 32, "overflow": "error"}
    assert told["text"] == "Hel\u2028lo you"
    assert (told["chat"], told["finish_reason"], told["seed"]) == (False, "stop", 7)
    assert told["usage"] == END["usage"]


LEAVING = {
    "sentence": "“Be brief.”", "instruction": "the system prompt", "pin": "system", "size": 9, "window": 64,
    "n_layers": 4, "layers": [4], "verdict": "relay", "moves": 2,
}  # fmt: skip


def knows_windows(parrot: Scripted, **told: Any) -> None:
    """Let it be a server of Sash, whose answers tell more of the window."""
    parrot.card["attention"] = {"windows": [64, 64, 64, None]}
    parrot.says[2] = {**END, "window": {**END["window"], **told}}


def test_pins_marks_and_audits_are_asked_of_a_server(sash: Sash, parrot: Scripted):
    seen = [audit([AttentionPattern(window=64)] * 4, at, [("user: “Once.”", range(3, 9))]) for at in (90, 99)]
    knows_windows(parrot, leaving=LEAVING, audit={"first": seen[0].to_json(), "last": seen[1].to_json()})
    pins = ("--pin", "system", "--pin", "text:Once", "--pins", "4", "--pin-overflow", "head")
    code, out, err = sash("run", "--server", parrot.url, "Once.", *GREEDY, *pins, "-s", "Be brief.", "--audit")
    assert (code, out) == (0, "Hel\u2028lo you\n")
    assert parrot.heard[0]["window"] == {
        "pins": {"first": 4, "rules": ["system", "text:Once"], "overflow": "head", "budget": 32},
        "watch": True, "audit": True,
    }  # fmt: skip
    assert (
        "note: “Be brief.”, of the system prompt, is out of the window of 3 of 4 layers: layer 4 still sees it; "
        "--pin system keeps it, or a larger --window, or say it again"
    ) in err.splitlines()
    assert draw_audit(*seen) in err
    flags = ("--raw", "--instruction", "Once", "--mark", "1:3", "--window", "32", "--audit", "--json")
    code, out, _ = sash("run", "--server", parrot.url, "Once.", *GREEDY, *flags)
    assert parrot.heard[1]["window"] == {"size": 32, "watch": ["text:Once", "1:3"], "audit": True}
    assert json.loads(out)["window"]["audit"]["first"] == seen[0].to_json()
    assert sash("run", "--server", parrot.url, "Once.", "--raw", *GREEDY)[0] == 0
    assert "window" not in parrot.heard[2]


def test_what_is_global_is_asked_of_a_server(sash: Sash, parrot: Scripted):
    knows_windows(parrot)
    flags = ("--global", "text:Once", "--global", "answer")
    code, _, err = sash("run", "--server", parrot.url, "Once.", "--raw", *GREEDY, *flags)
    assert parrot.heard[0]["window"] == {"pins": {"budget": 32}, "global": ["text:Once", "answer"]}
    assert (code, "--global answer" in err) == (0, False)
    _, _, err = sash("run", "--server", parrot.url, "Once.", *GREEDY, *flags[:2], "--pin-budget", "9")
    assert parrot.heard[1]["window"] == {"pins": {"budget": 9}, "watch": True, "global": ["text:Once"]}
    assert err.count("unless what is written sees all, too (--global answer)") == 1
    code, _, err = sash("chat", parrot.url, *GREEDY, "--global", "user:-1", stdin=typed("Hi", "And?"))
    assert [heard["window"]["global"] for heard in parrot.heard[2:]] == [["user:-1"]] * 2
    assert err.count("--global answer") == 1
    parrot.card = {"id": "parrot"}
    code, _, err = sash("run", "--server", parrot.url, "Once.", *flags)
    assert (code, "--global, --instruction, --mark and --audit need `sash serve`" in err) == (13, True)


def test_a_remote_chat_warns_once_when_its_instruction_leaves(sash: Sash, parrot: Scripted):
    knows_windows(parrot, leaving=LEAVING)
    flags = ("--pin", "user:1", "--pin-budget", "20", "-s", "Be brief.")
    code, _, err = sash("chat", parrot.url, *GREEDY, *flags, stdin=typed("Hi", "/window 32", "And?", "Ho"))
    assert code == 0
    asked = {"pins": {"rules": ["user:1"], "overflow": "error", "budget": 20}, "watch": True}
    assert [body["window"] for body in parrot.heard] == [asked, {"size": 32, **asked}, {"size": 32, **asked}]
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2  # once, and once more for another window
    assert notes[0].startswith("note: “Be brief.”, of the system prompt, is out of the window of 3 of 4 layers")


def test_a_server_that_knows_no_windows_is_not_asked_to_pin(sash: Sash, parrot: Scripted):
    for flags in (("--pin", "system"), ("--audit",), ("--instruction", "Hi"), ("--mark", "0:1")):
        code, out, err = sash("run", "--server", parrot.url, "Hi", "-s", "Be brief.", *flags)
        assert (code, out, parrot.heard) == (13, "", [])
        assert "need `sash serve`" in err


@pytest.mark.parametrize("told", [{"leaving": {"sentence": 1}}, {"leaving": 3}, {"audit": {"first": []}}])
def test_what_cannot_be_read_of_a_window_is_said(sash: Sash, parrot: Scripted, told: dict[str, Any]):
    knows_windows(parrot, **told)
    code, _, err = sash("run", "--server", parrot.url, "Hi", *GREEDY, "--audit")
    assert (code, err.count("Traceback")) == (21, 0)
    assert "that can" in err.splitlines()[-1]


def test_a_base_model_gets_plain_text(sash: Sash, parrot: Scripted):
    parrot.card["capabilities"] = {"completion_chat": False}
    assert sash("run", "--server", parrot.url, "Once", *GREEDY)[0] == 0
    assert parrot.heard[0]["prompt"] == "Once"
    code, _, err = sash("run", "--server", parrot.url, "Once", "--chat")
    assert (code, "no chat template" in err) == (13, True)
    code, _, err = sash("chat", parrot.url, stdin=b"Hi\n")
    assert (code, "sash run --server" in err) == (13, True)


def test_a_key_is_sent_and_missed(sash: Sash, parrot: Scripted, monkeypatch: pytest.MonkeyPatch):
    assert sash("run", "--server", parrot.url, "Once", "--api-key", "s3cret")[0] == 0
    monkeypatch.setenv("SASH_API_KEY", "0ther")
    assert sash("run", "--server", parrot.url, "Once")[0] == 0
    assert parrot.keys == ["Bearer s3cret", "Bearer 0ther"]
    parrot.status = 401
    code, out, err = sash("run", "--server", parrot.url, "Once")
    assert (code, out, err.count("\n")) == (21, "", 1)
    assert "refused (401): no way: give --api-key, or set SASH_API_KEY" in err
    assert "0ther" not in err


@pytest.mark.parametrize("arguments", [("chat", "{url}"), ("run", "--server", "{url}", "Hi")])
def test_nobody_there_is_exit_5(sash: Sash, arguments: tuple[str, ...]):
    with socket.socket() as taken:  # bound, and not listening: nobody else can come to answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = sash(*(word.format(url=url) for word in arguments), stdin=b"Hi\n")
    assert (code, out, err.count("\n")) == (5, "", 1)
    assert f"error: {url} cannot be reached" in err


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ([piece("Hel"), {"error": {"message": "the engine failed"}}], "broke the answer off: the engine failed"),
        ([piece("Hel")], "ended the answer in its midst"),
        ([piece("Hel"), "no json"], "no JSON"),
        ([piece("Hel"), "[" * 100_000], "no JSON"),
        ([piece("Hel"), "[1]"], "no chunk"),
    ],
)
def test_an_answer_that_breaks_off(sash: Sash, parrot: Scripted, says: list[Any], words: str):
    parrot.says = says
    code, out, err = sash("run", "--server", parrot.url, "Hi")
    assert (code, out) == (21, "Hel\n")
    assert words in err.splitlines()[-1]


@pytest.mark.parametrize("refusal", [{"detail": "no way"}, "no way", {"message": "no way"}, {"error": "no way"}])
def test_a_refusal_in_any_shape_is_one_line(sash: Sash, parrot: Scripted, refusal: Any):
    parrot.status, parrot.refusal = 429, refusal
    code, out, err = sash("chat", parrot.url, stdin=b"Hi\n")
    assert (code, out, err) == (21, "", f"error: {parrot.url} refused (429): no way\n")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--weights", "int8"), 2, "--weights is decided where the server is started"),
        (("--threads", "2"), 2, "--threads is decided"),
        (("--window", "full"), 10, "smaller only"),
        (("--api-key", "schl\u00fcssel"), 2, "--api-key"),
    ],
)
def test_what_a_server_is_not_asked(sash: Sash, parrot: Scripted, flags: tuple[str, ...], code: int, words: str):
    found, _, err = sash("run", "--server", parrot.url, "Hi", *flags)
    assert (found, words in err) == (code, True)
    assert parrot.heard == []


@pytest.mark.parametrize("url", ["http://", "ftp://x", "http://x:99999", "http://u:p@x", "http://x/?a", "http://[x"])
def test_addresses_that_are_none(url: str):
    with pytest.raises(UsageError, match=r"looks like http://127\.0\.0\.1:8000"):
        base_of(url)


def test_run_without_anything_says_what_is_missing(sash: Sash):
    code, _, err = sash("run")
    assert (code, err.count("\n")) == (2, 1)


def test_events_come_whole_however_they_are_cut():
    stream = 'data: {"a": "\u2028"}\n\n: ping\r\n\r\ndata:x\r\n\r\nevent: y\ndata: [DONE]\n\n'.encode()
    expected = ['{"a": "\u2028"}'.encode(), b"x", b"[DONE]"]
    for size in (1, 2, 7, len(stream)):
        assert list(events(stream[i : i + size] for i in range(0, len(stream), size))) == expected
    with pytest.raises(ServerRefusedError, match="without end"):
        list(events([b"data: " + b"x" * (1 << 24)] * 2))


def test_a_server_that_hangs_up_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ServerUnreachableError):
            _ = Server(url).card


def test_no_torch_is_imported(parrot: Scripted):
    code = (
        "import io, sys; from sash import cli\n"
        f"assert cli.execute(['run', '--server', {parrot.url!r}, 'Hi']) == 0\n"
        "sys.stdin = io.StringIO('Hi\\n')\n"
        f"assert cli.execute(['chat', {parrot.url!r}]) == 0\n"
        "print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_ctrl_c_ends_the_answer_and_not_the_chat(terminal: Callable[..., Any], parrot: Scripted):
    parrot.says, parrot.waits = [piece(f"word{i} ") for i in range(10_000)], 0.02
    talk = terminal("chat", parrot.url)
    talk.read_until(lambda shown: "Ctrl-D leaves" in shown and ">>>" in shown)
    talk.send("Hi\r")
    talk.read_until(lambda shown: "word3" in shown)
    talk.send("\x03")
    talk.read_until(lambda shown: "stopped" in shown and ">>>" in shown.rpartition("stopped")[2])
    assert parrot.gone.wait(240), "the server was not told that nobody listens"
    talk.send("Ho\r")
    talk.read_until(lambda shown: "word3" in shown)
    assert [message["role"] for message in parrot.heard[1]["messages"]] == ["user", "assistant", "user"]
    talk.send("\x03")
    talk.read_until(lambda shown: "stopped" in shown and ">>>" in shown.rpartition("stopped")[2])
    talk.send("\x04")
    assert talk.wait() == 0
    assert "Traceback" not in talk.shown
