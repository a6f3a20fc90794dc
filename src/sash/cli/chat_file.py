"""Conversations in files: JSON lines of {"messages": [...]}, as trainers take them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sash.errors import InputNotFoundError, TextEncodingError, UsageError

MAX_BYTES = 1 << 24
MAX_MESSAGES = 10_000

Messages = list[dict[str, str]]


def save(path: Path, messages: Messages) -> None:
    """Write one conversation, whole or not at all.

    Raises:
        UsageError: no answer was given yet.
        OSError: it cannot be written.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise UsageError("there is nothing to save: a conversation ends with an answer")
    line = json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path) -> tuple[Messages, int]:
    """The last conversation of a file, and how many there are.

    Raises:
        InputNotFoundError: no such file, or it cannot be read.
        TextEncodingError: it is not UTF-8.
        UsageError: it is too large, or a line is no conversation that ends with an answer.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputNotFoundError(f"cannot read {path}: {reason}") from error
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no conversation is")
    try:
        lines = [line for line in raw.decode("utf-8").removeprefix("\ufeff").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise TextEncodingError(f"{path} is not UTF-8 (byte {error.start:,})") from error
    if not lines:
        raise UsageError(f'{path} is empty: a line is {{"messages": [...]}}')
    return _messages(lines[-1], f"{path}, line {len(lines)}"), len(lines)


def _messages(line: str, where: str) -> Messages:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise UsageError(f'{where} holds no conversation: it is {{"messages": [...]}}, 1 to {MAX_MESSAGES:,} of them')
    for number, message in enumerate(messages, start=1):
        fine = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not fine or message["role"] not in ("system", "user", "assistant"):
            raise UsageError(f'{where}, message {number}: it is {{"role": "user", "content": "..."}}')
    if messages[-1]["role"] != "assistant":
        raise UsageError(f"{where} does not end with an answer: the last message is the {messages[-1]['role']}'s")
    return [{"role": message["role"], "content": message["content"]} for message in messages]
