"""Servers as processes: started, waited for until they are healthy, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx2
from rival_engines.environments import RIVALS, python_of

PATIENCE = 900.0
"""Seconds that a server may take to start; some compile first."""


class ServerFailed(Exception):
    """A server did not start; the message says why in one line."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def command_of(engine: str, model: Path, port: int, *, streams: int, context: int, threads: int, folder: Path,
               weights: str = "bf16") -> list[str]:  # fmt: skip
    """How an engine's server is started.

    Args:
        engine: "sash" or "vllm".
        model: the model's folder.
        port: where it listens.
        streams: sequences that it may run at once.
        context: tokens of the longest sequence.
        threads: CPU threads.
        folder: where the rivals' environments are.
        weights: what Sash keeps weights as.
    """
    if engine == "sash":
        return [
            sys.executable, "-m", "sash", "serve", str(model), "--port", str(port), "--alias", "served",
            "--max-rows", str(streams), "--max-waiting", "100000", "--kv-memory", "4G", "--threads", str(threads),
            "--weights", weights,
        ]  # fmt: skip
    return [
        str(python_of(folder, RIVALS["vllm"])), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16",
        "--max-model-len", str(context), "--max-num-seqs", str(streams), "--no-enable-prefix-caching",
    ]  # fmt: skip


class Running:
    """A server that runs as long as it is entered.

    Attributes:
        url: where it is.
        process: its process.
        ready_seconds: from its start until it was healthy.
    """

    def __init__(self, command: list[str], port: int, log: Path, *, threads: int) -> None:
        """`command` listens on `port` of this machine; what it prints goes to `log`."""
        self.url, self._command, self._log = f"http://127.0.0.1:{port}", command, log
        self._threads = threads
        self.ready_seconds = 0.0

    def __enter__(self) -> Running:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        cores = sorted(os.sched_getaffinity(0))[: self._threads]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self._threads),
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        start = time.perf_counter()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        try:
            self._wait(start + PATIENCE)
        except BaseException:
            self._end()
            raise
        self.ready_seconds = time.perf_counter() - start
        return self

    def _wait(self, deadline: float) -> None:
        with httpx2.Client(trust_env=False, timeout=5) as client:
            while True:
                if self.process.poll() is not None:
                    said = self._log.read_text(errors="replace").strip().splitlines()
                    raise ServerFailed(f"{said[-1] if said else 'it ended'} (see {self._log})")
                if time.perf_counter() > deadline:
                    raise ServerFailed(f"it was not healthy in {PATIENCE:.0f} seconds (see {self._log})")
                try:
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                except httpx2.HTTPError:
                    pass
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Ask it to end, then make it; with every process that it has started."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
