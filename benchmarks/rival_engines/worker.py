"""The worker's side of `process.py`: load a model, then read prompts and write on, as one is told line by line.

Imports nothing but the standard library, since it runs in every rival's environment. A worker script gives `serve` a
function that loads the engine and returns another, which runs a task.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[list[list[int]], int], "Ran"]


class Ran:
    """Clocks one task: prompts are read, then every stream writes.

    Reading ends when the last of the streams has its first token. What is written counts from there.
    """

    def __init__(self, n_streams: int) -> None:
        self._streams: list[list[int]] = [[] for _ in range(n_streams)]
        self._began = time.perf_counter()
        self._all_started: float | None = None
        self._written, self._ended = 0, self._began

    def wrote(self, stream: int, tokens: list[int]) -> None:
        """A stream has new tokens."""
        self._ended = time.perf_counter()
        self._streams[stream] += tokens
        if self._all_started is not None:
            self._written += len(tokens)

    def step(self) -> None:
        """All that one step gave has been told."""
        if self._all_started is None and all(self._streams):
            self._all_started = self._ended

    def clocked(self, read_seconds: float, write_seconds: float) -> None:
        """Take over the engine's own clock, where it gives all tokens at once."""
        self._all_started = self._began + read_seconds
        self._ended = self._all_started + write_seconds
        self._written = sum(len(tokens) - 1 for tokens in self._streams)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        started = self._all_started or self._ended
        return {
            "read_seconds": started - self._began,
            "write_seconds": self._ended - started,
            "written": self._written,
            "tokens": self._streams,
        }


def serve(load: Callable[[dict[str, Any]], tuple[Run, dict[str, Any]]]) -> None:
    """Load what the command line asks for, then answer one JSON line for each that comes in.

    Args:
        load: takes the options; returns the function that runs a task, and whatever is worth telling.
    """
    # Engines print what they like: on standard error. The answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    began = time.perf_counter()
    options = json.loads(sys.argv[1])
    run, told = load(options)
    answers.write(json.dumps({"load_seconds": time.perf_counter() - began, **told}) + "\n")
    for line in sys.stdin:
        task = json.loads(line)
        answers.write(json.dumps(run(task["prompts"], task["write"]).to_json()) + "\n")
