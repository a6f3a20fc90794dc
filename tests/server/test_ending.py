"""`sash serve` in a process: what it says, how it ends, and how it begins again after it was killed.

SASH_CHAOS=1 (`make test-chaos`) ends it 50 times under load, and kills it 50 times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.conftest import write_model
from tests.server.live import NAME, Process, until

CHAOS = os.environ.get("SASH_CHAOS") == "1"
ROUNDS = 50 if CHAOS else 1
pytestmark = pytest.mark.timeout(3600 if CHAOS else 300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "windowed")


@pytest.fixture
def start(model: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(*flags: str, wait: bool = True) -> Process:
        started.append(Process(model, *flags, wait=wait))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def ask(url: str, *, stream: bool, n_tokens: int) -> tuple[int, int, str]:
    """The status of a request, how many tokens were written, and why it ended."""
    body = {"model": NAME, "prompt": "Once", "max_tokens": n_tokens, "ignore_eos": True, "stream": stream}
    body |= {"stream_options": {"include_usage": True}} if stream else {}
    with httpx2.Client(base_url=url, trust_env=False, timeout=120) as client:
        if not stream:
            answer = client.post("/v1/completions", json=body)
            if answer.status_code != 200:
                assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 1
                return answer.status_code, 0, ""
            found = answer.json()
            return 200, found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]
        with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return answer.status_code, 0, ""
            count, reason, done = 0, "", False
            for line in answer.iter_lines():
                done = done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk
                    count = (chunk.get("usage") or {}).get("completion_tokens", count)
                    reason = next((c["finish_reason"] for c in chunk["choices"] if c["finish_reason"]), reason)
            assert done
            return 200, count, reason


def running(url: str) -> int:
    page = httpx2.get(f"{url}/metrics", trust_env=False).text
    lines = [
        line for line in page.splitlines() if line.startswith(("sash_num_requests_running", "sash_num_requests_w"))
    ]
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def test_it_says_what_it_serves_and_answers_all_that_was_accepted_before_its_end(start: Callable[..., Process]):
    draw = random.Random(0)
    for number in range(ROUNDS):
        server = start("--max-rows", "4", "--window", "8", "--drain", "60")
        n_tokens = 300
        with ThreadPoolExecutor(9) as pool:
            accepted = [pool.submit(ask, server.url, stream=i % 2 == 0, n_tokens=n_tokens) for i in range(8)]
            until(lambda url=server.url: running(url) == 8)
            time.sleep(draw.random() * 0.3)
            server.signal(signal.SIGTERM if number % 2 == 0 else signal.SIGINT)
            refused: set[int | str] = set()
            while server.process.poll() is None and not all(job.done() for job in accepted):
                try:
                    refused.add(ask(server.url, stream=False, n_tokens=1)[0])
                except httpx2.HTTPError as error:
                    refused.add(type(error).__name__)  # nobody listens any more
                time.sleep(0.02)
            assert [job.result() for job in accepted] == [(200, n_tokens, "length")] * 8
        code, said = server.wait()
        assert code == 0, said
        assert 503 in refused
        assert not refused & {500, 502}
        assert "Traceback" not in said
    lines = said.splitlines()
    assert lines[0].startswith(f"loading  {NAME}")
    assert any("window 8 in 2 of 2 layers" in line for line in lines)
    assert any("64.0 MiB for keys and values: 4 sequences of any length at once" in line for line in lines)
    assert any(f"serving  {server.url}" in line for line in lines)
    assert any("ablation" in line for line in lines)


def chat(url: str, messages: list[dict[str, str]]) -> tuple[str, int]:
    """An answer, and how many tokens of its prompt were not read anew."""
    body = {"model": NAME, "messages": messages, "max_tokens": 12, "temperature": 0}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60).json()
    return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_killed_server_begins_again_and_two_signals_end_it_at_once(start: Callable[..., Process], tmp_path: Path):
    """No snapshot that was being written when it was killed is ever taken for a whole one."""
    folder, draw = tmp_path / "snapshots", random.Random(1)
    first = [{"role": "user", "content": "Hello " * 40}]
    expected: tuple[str, str] | None = None
    for _ in range(ROUNDS):
        server = start("--snapshot-dir", str(folder), "--snapshot-memory", "32M")
        text, _ = chat(server.url, first)
        second = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
        found = (text, chat(server.url, second)[0])
        expected = expected or found
        assert found == expected
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(chat, server.url, [{"role": "user", "content": f"{i} " * draw.randint(1, 400)}])
                for i in range(12)
            ]
            time.sleep(draw.random() * 0.3)
            server.signal(signal.SIGKILL)
            for job in jobs:
                job.exception()
        server.wait()
    last = start("--drain", "600", "--snapshot-dir", str(folder), "--snapshot-memory", "32M")
    assert expected is not None
    text, _ = chat(last.url, first)
    second = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    assert (text, chat(last.url, second)[0]) == expected
    end_at_once(last)


def end_at_once(server: Process) -> None:
    """A first signal begins the end of a server that still answers; a second one ends it."""
    gone: list[Any] = []

    def endless() -> None:
        try:
            gone.append(ask(server.url, stream=True, n_tokens=500_000))
        except (httpx2.HTTPError, AssertionError) as error:
            gone.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    until(lambda: running(server.url) == 1)
    server.signal(signal.SIGINT)
    until(lambda: server.status() == 503)
    server.signal(signal.SIGINT)
    code, said = server.wait(30)
    thread.join()
    assert code == 130
    assert "Traceback" not in said
    assert not isinstance(gone[0], tuple)
