"""Chat templates: rendered by `jinja_worker` in a process of its own, with every cost bounded.

`sash.text.guard` keeps the control tokens of a template apart from those that somebody typed.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sash.errors import TokenizerError
from sash.text.messages import Message, with_guardrail, with_guardrail_in_user_turn
from sash.text.tokenizer import GUARDRAIL

MAX_SOURCE = 256 << 10
"""Characters that a template may have; the longest in use have about 20,000."""

MAX_GROWTH = 1 << 20
"""Characters that a template may add to what the messages themselves say, ten times over."""

DEADLINE = 1.5
"""Seconds for one rendering; a template in use needs about a millisecond."""

START_DEADLINE = 30.0
"""Seconds for the worker to start, on a machine that may be busy."""

_CONTINUE_HERE = "\N{MATHEMATICAL LEFT WHITE SQUARE BRACKET}continue-here\N{MATHEMATICAL RIGHT WHITE SQUARE BRACKET}"


class _Worker:
    """One rendering process, started when first needed, or before, and again after it had to be killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._greeted = False

    def start(self) -> None:
        """Starts the process if there is none, and does not wait for it."""
        with self._lock:
            self._launched()

    def render(self, source: str, variables: Mapping[str, object], max_output: int) -> str:
        request = json.dumps({"source": source, "variables": variables, "max_output": max_output}).encode("ascii")
        with self._lock:
            process = self._running()
            line = _exchange(process, request + b"\n", DEADLINE)
            if not line.endswith(b"\n"):
                self._process = None
                _reap(process)
                raise TokenizerError(f"the chat template was stopped: it ran for over {DEADLINE} s or out of memory")
        answer = json.loads(line)
        if "text" not in answer:
            raise TokenizerError(f"the chat template refused: {answer['error']}")
        return str(answer["text"])

    def close(self) -> None:
        """Ends the process, if it runs."""
        if self._process is not None:
            _reap(self._process)
            self._process = None

    def _launched(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            script = Path(__file__).with_name("jinja_worker.py")
            # -P: modules beside the script, or in the working directory, cannot stand in for installed ones.
            command = [sys.executable, "-P", str(script)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True
            )
            self._greeted = False
        return self._process

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._launched()
        if not self._greeted:
            if not _exchange(process, b"", START_DEADLINE).endswith(b"\n"):
                self._process = None
                _reap(process)
                raise TokenizerError(f"the chat template could not be rendered: {sys.executable} did not start")
            self._greeted = True
        return process


def _exchange(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
    """Writes a request and reads a line; what there is of it when the time is over, for the process is killed then."""
    if process.stdin is None or process.stdout is None:
        return b""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(request)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return b""
    finally:
        timer.cancel()


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and closes its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # unsent bytes of a dead process
                continue


_WORKER = _Worker()
atexit.register(_WORKER.close)


def start_early() -> None:
    """Let the process that renders templates start while a model is loaded; else the first rendering waits for it."""
    _WORKER.start()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A model's chat template.

    Attributes:
        source: Jinja, as the model's makers wrote it.
        special: names that templates read, such as "bos_token", with the tokens' spellings.
    """

    source: str
    special: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise TokenizerError(f"the chat template has {len(self.source):,} characters: {MAX_SOURCE:,} at most")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        continue_final: bool = False,
    ) -> str:
        """The conversation as one text, with the cue for an answer or with the last message left open.

        Raises:
            TokenizerError: the template refuses, fails, or runs out of time or room.
        """
        plain = [dict(message) for message in messages]
        if continue_final:
            plain[-1]["content"] += _CONTINUE_HERE
        max_output = MAX_GROWTH + 10 * (len(json.dumps(plain)) + len(json.dumps(tools)))
        variables = {
            **self.special,
            "messages": plain,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": not continue_final,
        }
        text = _WORKER.render(self.source, variables, max_output)
        if not continue_final:
            return text
        head, mark, _ = text.rpartition(_CONTINUE_HERE)
        if not mark:
            raise TokenizerError("the chat template does not write the last message, so it cannot be continued")
        return head

    def with_safe_prompt(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the guardrail where this template lets it be read.

        Raises:
            TokenizerError: nowhere.
        """
        as_system = with_guardrail(messages)
        try:
            if GUARDRAIL in self.render(as_system):
                return as_system
        except TokenizerError:
            if messages[0]["role"] == "system":
                raise
        return with_guardrail_in_user_turn(messages)


def with_parsed_arguments(message: Message) -> Message:
    """A message as templates read it: arguments of its tool calls as objects, where their text is one."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            arguments = None
        if isinstance(arguments, dict):
            function = {**function, "arguments": arguments}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}
