"""Chat templates: rendered by `jinja_worker` in a process of its own, with every cost bounded.

Also the guard that keeps control tokens out of messages: their spellings inside message contents are wrapped in
private-use characters before rendering, and what comes back wrapped is tokenised as plain text.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sash.errors import TokenizerError
from sash.text.tokenizer import GUARDRAIL, with_guardrail, with_guardrail_in_user_turn

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
    """One rendering process, started when first needed and again after it had to be killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

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

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            script = Path(__file__).with_name("jinja_worker.py")
            # -P: modules beside the script, or in the working directory, cannot stand in for installed ones.
            command = [sys.executable, "-P", str(script)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True
            )
            if not _exchange(process, b"", START_DEADLINE).endswith(b"\n"):
                _reap(process)
                raise TokenizerError(f"the chat template could not be rendered: {sys.executable} did not start")
            self._process = process
        return self._process


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

    def render(self, messages: Sequence[Mapping[str, str]], *, continue_final: bool = False) -> str:
        """The conversation as one text, with the cue for an answer or with the last message left open.

        Raises:
            TokenizerError: the template refuses, fails, or runs out of time or room.
        """
        plain = [dict(message) for message in messages]
        if continue_final:
            plain[-1]["content"] += _CONTINUE_HERE
        max_output = MAX_GROWTH + 10 * sum(len(message["content"]) for message in plain)
        variables = {
            **self.special,
            "messages": plain,
            "tools": None,
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

    def with_safe_prompt(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
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


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation.

    Attributes:
        text: what it says.
        plain: whether control tokens spelled in it are only text.
    """

    text: str
    plain: bool


class Guard:
    """Keeps the spellings of control tokens inside messages apart from those that a template writes."""

    def __init__(self, control_texts: Iterable[str]) -> None:
        """Takes the spellings to guard."""
        texts = sorted({text for text in control_texts if text}, key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        # Where a message ends in the first half of a control token, the template's next words might complete it.
        self._heads = frozenset(text[:cut] for text in texts for cut in range(1, len(text)))
        self._tails = frozenset(text[cut:] for text in texts for cut in range(1, len(text)))
        self._longest = max(map(len, texts), default=0)

    def pieces(
        self, template: ChatTemplate, messages: Sequence[dict[str, str]], *, continue_final: bool = False
    ) -> list[Piece]:
        """The rendered conversation. One piece where no message comes near a control token.

        Raises:
            TokenizerError: from `ChatTemplate.render`.
        """
        opening, closing = _unused_characters(messages, template.source)
        guarded = [{**message, "content": self._mark(message["content"], opening, closing)} for message in messages]
        spelled = any(self.control.search(message["content"]) for message in messages)
        if not spelled:
            text = template.render(messages, continue_final=continue_final)
            if guarded == list(messages):
                return [Piece(text, plain=False)]
        marked = template.render(guarded, continue_final=continue_final)
        pieces = _split(marked, opening, closing, self.control)
        if not spelled:
            written = sum(len(self.control.findall(piece.text)) for piece in pieces)
            if written == len(self.control.findall(text)):
                return [Piece(text, plain=False)]
        return pieces

    def _mark(self, content: str, opening: str, closing: str) -> str:
        """Content with every control token wrapped, and cut off from its surroundings where it could join them."""
        body = content.strip()
        marked = self.control.sub(lambda match: f"{opening}{match[0]}{closing}", body)
        if self._ends_with(body, self._heads) or self._ends_with(content, self._heads):
            marked += closing
        if self._starts_with(body, self._tails) or self._starts_with(content, self._tails):
            marked = closing + marked
        start = content.find(body)
        return content[:start] + marked + content[start + len(body) :]

    def _ends_with(self, text: str, ends: frozenset[str]) -> bool:
        return any(text[-length:] in ends for length in range(1, min(self._longest, len(text) + 1)))

    def _starts_with(self, text: str, starts: frozenset[str]) -> bool:
        return any(text[:length] in starts for length in range(1, min(self._longest, len(text) + 1)))


def _unused_characters(messages: Sequence[Mapping[str, str]], source: str) -> tuple[str, str]:
    """Two private-use characters that occur nowhere in a conversation or its template."""
    used = set(source).union(*(message["content"] for message in messages))
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    try:
        return next(free), next(free)
    except StopIteration:
        raise TokenizerError("the messages use up every private-use character of Unicode's plane 15") from None


def _split(marked: str, opening: str, closing: str, control: re.Pattern[str]) -> list[Piece]:
    """Cuts a rendered text at its marks.

    A template's own string methods may separate the two marks of a token; a mark that stands alone still cuts.

    >>> [(piece.text, piece.plain) for piece in _split("ab{<s>}d}{<e>", "{", "}", re.compile("<s>|<e>"))]
    [('ab', False), ('<s>', True), ('d', False), ('<e>', False)]
    """
    opened, closed = re.escape(opening), re.escape(closing)
    parts = re.split(f"{opened}({control.pattern}){closed}|[{opened}{closed}]", marked)
    return [Piece(part, plain=index % 2 == 1) for index, part in enumerate(parts) if part]
