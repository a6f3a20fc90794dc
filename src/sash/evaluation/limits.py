"""What this machine can do at most, measured here and now: bytes read and numbers multiplied a second.

Figures of another run are worth little beside a measurement: machines are shared, and clocks and neighbours change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sash.kernels import isa, native
from sash.kernels.limits import multiply_numbers, read_memory

Kind = Literal["float32", "bf16", "int8"]
"""What numbers a matrix product multiplies."""

BUFFER_BYTES = 2**29
"""Read as a whole by every pass: five times the largest cache of the last level that is common."""

SECONDS = 1.0
"""Time for each figure."""

ROUNDS = 100_000
"""Of the native loop that multiplies: a few milliseconds."""

SHAPES = ((512, 2048, 2048), (512, 4096, 4096))
"""Rows, inputs and outputs of torch's matrix products, tried where native kernels do not serve; the fastest counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the machine reached, at best, with the threads of this run.

    Attributes:
        threads: CPU threads that took part.
        memory_read: bytes a second.
        matrix: multiplications and additions a second, of each kind of number that was measured.
        sources: how each was measured: "memory", and the kinds.
    """

    threads: int
    memory_read: float
    matrix: dict[Kind, float]
    sources: dict[str, str]

    def best_of(self, other: Limits) -> Limits:
        """The higher of each figure of two measurements of the same kinds."""
        return replace(
            self,
            memory_read=max(self.memory_read, other.memory_read),
            matrix={kind: max(peak, other.matrix[kind]) for kind, peak in self.matrix.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "threads": self.threads,
            "memory_read_bytes_per_second": self.memory_read,
            "matrix_operations_per_second": dict(self.matrix),
            "sources": self.sources,
        }


def measure_limits(kinds: Iterable[Kind]) -> Limits:
    """Measure the limits of this machine, with as many threads as the kernels have, or torch where they do not serve.

    Each figure is that of the fastest pass: whatever else runs here only slows passes down.

    Args:
        kinds: which matrix products.
    """
    speed, source = memory_peak()
    matrix: dict[Kind, float] = {}
    sources = {"memory": source}
    for kind in dict.fromkeys(kinds):
        matrix[kind], sources[kind] = matrix_peak(kind)
    threads = native.threads() if native.available() else torch.get_num_threads()
    return Limits(threads=threads, memory_read=speed, matrix=matrix, sources=sources)


def memory_peak() -> tuple[float, str]:
    """Bytes a second that all threads together read from memory, and by what."""
    # Written to: pages that nobody has touched may all be one page of zeros.
    buffer = torch.ones(BUFFER_BYTES // 4)
    if native.available():
        return BUFFER_BYTES / fastest(lambda: read_memory(buffer), SECONDS), f"native, {isa.serving_isa()}"
    return BUFFER_BYTES / fastest(lambda: buffer.sum(), SECONDS), "torch.sum"


def matrix_peak(kind: Kind) -> tuple[float, str]:
    """Multiplications and additions a second, and by what.

    Natively that is what the units do on registers alone; torch's products read memory, so their peak is lower.
    """
    if native.available() and kind != "float32":
        operations = multiply_numbers(kind, ROUNDS)
        return operations / fastest(lambda: multiply_numbers(kind, ROUNDS), SECONDS), f"native, {isa.serving_isa()}"
    best = 0.0
    for rows, inputs, outputs in SHAPES:
        product, source = _product(kind, rows, inputs, outputs)
        best = max(best, 2 * rows * inputs * outputs / fastest(product, SECONDS / len(SHAPES)))
    return best, source


def _product(kind: Kind, rows: int, inputs: int, outputs: int) -> tuple[Callable[[], Tensor], str]:
    if kind == "int8":
        left = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
        right = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8).t()
        return lambda: torch._int_mm(left, right), "torch._int_mm"
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    return lambda: torch.nn.functional.linear(x, weight), "torch linear"


def fastest(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of several runs, at least three."""
    with torch.inference_mode():
        run()
        best, began, count = float("inf"), time.perf_counter(), 0
        while count < 3 or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
            count += 1
    return best
