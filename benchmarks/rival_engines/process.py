"""An engine in a process of its own, asleep whenever another one is measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class EngineFailed(Exception):
    """An engine did not load a model, or broke off; the message says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """An engine with a model.

    Attributes:
        name: in tables, such as "vllm bf16".
        engine: which worker runs it.
        python: the interpreter of its environment.
        model: folder or file.
        load: arguments of the engine's own loading function; Sash only.
    """

    name: str
    engine: str
    python: Path
    model: Path
    load: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its model on disk."""
        if self.model.is_file():
            return self.model.stat().st_size
        return sum(file.stat().st_size for file in self.model.iterdir() if file.is_file())


class Worker:
    """A contestant that is running. It sleeps except while it is asked for something."""

    def __init__(self, contestant: Contestant, *, threads: int, context: int, streams: int, logs: Path) -> None:
        """Start it and wait until its model is loaded.

        Raises:
            EngineFailed: it is not.
        """
        self.contestant = contestant
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{contestant.name.replace(' ', '-')}.log"
        options = {
            "model": str(contestant.model), "threads": threads, "context": context, "streams": streams,
            "load": contestant.load,
        }  # fmt: skip
        script = HERE / f"worker_{contestant.engine.replace('.', '_')}.py"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [str(contestant.python), str(script), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
            )
        self.told = self._answer()
        self._signal(signal.SIGSTOP)

    def run(self, prompts: list[list[int]], write: int) -> dict[str, Any]:
        """Read prompts and write so many tokens in each; see `worker.Ran.to_json` for the answer.

        Raises:
            EngineFailed: it broke off.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps({"prompts": prompts, "write": write}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def stop(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = self.log.read_text(errors="replace").strip().splitlines()
            raise EngineFailed(f"{said[-1] if said else 'it ended'} (see {self.log})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: int) -> None:
        """To the engine and all processes that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


class Stable:
    """Keeps workers loaded as long as memory allows: loading takes some of them a minute."""

    def __init__(self, *, threads: int, context: int, streams: int, logs: Path) -> None:
        self._settings: dict[str, Any] = {"threads": threads, "context": context, "streams": streams, "logs": logs}
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Stable:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.stop()

    def fetch(self, contestant: Contestant) -> Worker:
        """A contestant's worker; where memory is short, those that were used longest ago are ended for it.

        Raises:
            EngineFailed: it does not load.
        """
        worker = self._workers.pop(contestant.name, None)
        if worker is None:
            while self._workers and available_memory() < 2 * contestant.nbytes + 4 * 2**30:
                self._workers.pop(next(iter(self._workers))).stop()
            worker = Worker(contestant, **self._settings)
        self._workers[contestant.name] = worker
        return worker

    def drop(self, contestant: Contestant) -> None:
        """End a contestant's worker, if it has one."""
        worker = self._workers.pop(contestant.name, None)
        if worker is not None:
            worker.stop()


def available_memory() -> int:
    """Bytes that can still be had."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize
