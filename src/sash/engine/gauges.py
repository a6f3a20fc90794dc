"""Counts what an engine does, and works out what it holds and how much fits; any thread may ask."""

from __future__ import annotations

from collections.abc import Hashable

from sash.engine.admission import Cost
from sash.engine.engine import Steps
from sash.engine.figures import Capacity, Counts, Figures
from sash.engine.lanes import Lane, lane_config
from sash.engine.request import Event

LONGEST = 2**31
"""As long as any sequence can become."""


class Gauges:
    """The figures of one engine; only its own thread counts."""

    def __init__(self, steps: Steps, cost: Cost, kv_memory: int) -> None:
        self._steps, self._cost, self._kv_memory = steps, cost, kv_memory
        self._config = steps.lanes.own.network.config
        self._n_rows = steps.scheduler.admission.n_rows
        self._counts = Counts()

    def step(self) -> None:
        """Count a step."""
        self._counts.steps += 1

    def count(self, event: Event) -> None:
        """Count what an event tells."""
        sequence, counts = event.sequence, self._counts
        counts.prompt_tokens += event.n_read
        counts.output_tokens += event.token is not None
        if sequence.finish_reason is not None:
            counts.finished[sequence.finish_reason] += 1
            counts.reused_tokens += sequence.n_reused
            counts.evicted_tokens += self._evicted(sequence.lane, sequence.position)

    def figures(self, n_arrived: int) -> Figures:
        """What it does at this moment; `n_arrived` requests wait that the scheduler does not know yet."""
        scheduler, counts = self._steps.scheduler, self._counts
        running = scheduler.running
        held = [(sequence.lane, sequence.position) for sequence in running]
        return Figures(
            running=len(running),
            waiting=scheduler.n_waiting + n_arrived,
            rows_used=self._n_rows - scheduler.admission.n_free,
            rows_total=self._n_rows,
            lanes=len(self._steps.lanes),
            kv_bytes=sum(self._cost(lane, length) for lane, length in held),
            kv_reserved=scheduler.admission.reserved,
            kv_memory=self._kv_memory,
            kv_bytes_full=self._token_bytes() * sum(length for _, length in held),
            evicted_tokens=counts.evicted_tokens + sum(self._evicted(*one) for one in held),
            steps=counts.steps,
            prompt_tokens=counts.prompt_tokens,
            reused_tokens=counts.reused_tokens,
            output_tokens=counts.output_tokens,
            finished=dict(counts.finished),
        )

    def capacity(self) -> Capacity:
        """How many sequences fit."""
        each = self._kv_memory // self._n_rows
        bounded = self._cost(None, LONGEST) <= each
        return Capacity(
            rows=self._n_rows,
            sequences=self._n_rows if bounded else None,
            tokens=None if bounded else self._most_tokens(self._kv_memory),
            tokens_each=None if bounded else self._most_tokens(each),
            row_bytes=self._cost(None, 1),
            kv_memory=self._kv_memory,
        )

    def _most_tokens(self, memory: int) -> int:
        """The longest sequence that so many bytes hold."""
        low, high = 0, LONGEST
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._cost(None, middle) <= memory else (low, middle - 1)
        return low

    def _token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        itemsize, scale = self._steps.lanes.own.cache.number_bytes
        config = self._config
        return 2 * config.n_layers * config.n_kv_heads * (config.head_dim * itemsize + scale)

    def _evicted(self, lane: Hashable, length: int) -> int:
        """Tokens of a sequence that have slid out of its largest window."""
        config = lane_config(self._config, lane) if isinstance(lane, Lane) else self._config
        return 0 if config.window is None else max(0, length - config.window)
