"""What Prometheus is told: vLLM's stems under `sash_`, and what only a rolling buffer has to report."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from sash.engine.request import Sequence
    from sash.engine.service import Service

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (1, 10, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000)

MAX_RETRY = 30
"""Seconds that a refused client is told to wait at most."""

RETRY_SECONDS = 0.5
"""For how long the same is told to all who are refused: in a storm of requests nobody counts anew for each."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model = model_name
        self._mean_seconds = 1.0
        self._rounds, self._rounds_at = 1.0, -math.inf
        self._service: Service | None = None
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._asked_tokens = self._counter("prefix_cache_queries", "Tokens of prompts that a snapshot could have held.")
        self._cached_tokens = self._counter("prefix_cache_hits", "Tokens of prompts taken from a snapshot.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens written.")
        self._ended = self._counter("request_success", "Answers that ended.", "finished_reason")
        self._reuse = self._counter("prefix_reuse", "Prompts by what a snapshot gave them.", "result")
        self._refused = self._counter("requests_refused", "Requests that got an error.", "status")
        self._first_token = self._histogram("time_to_first_token_seconds", "From arrival to the first token.")
        self._gap = self._histogram("inter_token_latency_seconds", "Between two tokens of an answer.")
        self._whole = self._histogram("e2e_request_latency_seconds", "From arrival to the end.")
        self._queue = self._histogram("request_queue_time_seconds", "Waiting for a row.")
        self._prefill = self._histogram("request_prefill_time_seconds", "From a row to the first token.")
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the end.")
        self._prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._answer_length = self._histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.gap = self._gap.labels(model_name).observe

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sash_{name}", text, ("model_name", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        return Histogram(f"sash_{name}", text, ("model_name",), registry=self.registry, buckets=buckets)

    def watch(self, service: Service) -> None:
        """Report an engine's figures too."""
        self._service = service
        self.registry.register(EngineFigures(self._model, service))

    def refused(self, status: str) -> None:
        """A request got an error."""
        self._refused.labels(self._model, status).inc()

    def ended(self, sequence: Sequence, reason: str) -> None:
        """A sequence is over."""
        model = self._model
        n_prompt, n_output = len(sequence.request.prompt_ids), len(sequence.output_ids)
        self._ended.labels(model, reason).inc()
        self._reuse.labels(model, sequence.reuse).inc()
        self._prompt_tokens.labels(model).inc(n_prompt)
        self._asked_tokens.labels(model).inc(n_prompt if sequence.reuse != "off" else 0)
        self._cached_tokens.labels(model).inc(sequence.n_reused)
        self._generation_tokens.labels(model).inc(n_output)
        self._prompt_length.labels(model).observe(n_prompt)
        self._answer_length.labels(model).observe(n_output)
        arrived, admitted, first, finished = times(sequence)
        self._whole.labels(model).observe(finished - arrived)
        self._queue.labels(model).observe(admitted - arrived)
        if n_output:
            self._first_token.labels(model).observe(first - arrived)
            self._prefill.labels(model).observe(first - admitted)
            self._decode.labels(model).observe(finished - first)
        self._mean_seconds += 0.1 * (finished - admitted - self._mean_seconds)

    def retry_after(self) -> int:
        """Whole seconds after which a refused client may find room: what waits, at the pace of late."""
        if self._service is None:
            return 1
        now = time.monotonic()
        if now - self._rounds_at > RETRY_SECONDS:
            figures = self._service.figures()
            self._rounds, self._rounds_at = 1 + figures.waiting / max(1, figures.rows_total), now
        return min(MAX_RETRY, max(1, math.ceil(self._rounds * self._mean_seconds)))

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


def times(sequence: Sequence) -> tuple[float, float, float, float]:
    """When a sequence arrived, got a row, wrote its first token and ended; stages that never came took no time."""
    finished = sequence.finished if sequence.finished is not None else time.monotonic()
    arrived = sequence.arrived if sequence.arrived is not None else finished
    admitted = sequence.admitted if sequence.admitted is not None else finished
    first = sequence.first_token if sequence.first_token is not None else finished
    return arrived, admitted, first, finished


class EngineFigures(Collector):
    """The engine's own figures, read when Prometheus asks."""

    def __init__(self, model_name: str, service: Service) -> None:
        self._model, self._service = model_name, service

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not read the engine to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        figures = self._service.figures()
        used = figures.kv_reserved / figures.kv_memory if figures.kv_memory else 0.0
        yield self._gauge("num_requests_running", "Requests with a row.", figures.running)
        yield self._gauge("num_requests_waiting", "Requests that wait for a row.", figures.waiting)
        yield self._gauge(
            "kv_cache_usage_perc", "Part of the memory for keys and values that is reserved, 0 to 1.", used
        )
        yield self._gauge("rows_used", "Cache rows in use.", figures.rows_used)
        yield self._gauge("rows_total", "Cache rows.", figures.rows_total)
        kinds = {
            "allocated": figures.kv_bytes,
            "reserved": figures.kv_reserved,
            "memory": figures.kv_memory,
            "full_equivalent": figures.kv_bytes_full,
        }
        bytes_ = GaugeMetricFamily("sash_kv_bytes", "Bytes of keys and values.", labels=("model_name", "kind"))
        for kind, size in kinds.items():
            bytes_.add_metric((self._model, kind), size)
        yield bytes_
        yield self._counter("window_tokens_evicted", "Tokens that slid out of a window.", figures.evicted_tokens)
        yield self._counter("engine_steps", "Steps of the engine.", figures.steps)
        yield from self._snapshots()

    def _snapshots(self) -> Iterator[Metric]:
        """Snapshots of prefixes, where the engine keeps any."""
        found = getattr(self._service, "snapshots", None)
        if found is None:
            return
        figures = found.figures()
        yield self._counter("snapshot_hits", "Prompts that began with a snapshot.", figures.hits)
        yield self._counter("snapshot_evictions", "Snapshots that made room for others.", figures.evictions)
        yield self._gauge("snapshot_bytes", "Bytes of all snapshots.", figures.bytes)
        misses = CounterMetricFamily(
            "sash_snapshot_misses", "Prompts that no snapshot served, by reason.", labels=("model_name", "reason")
        )
        for reason, count in figures.misses.items():
            misses.add_metric((self._model, reason), count)
        yield misses

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"sash_{name}", text, labels=("model_name",))
        family.add_metric((self._model,), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"sash_{name}", text, labels=("model_name",))
        family.add_metric((self._model,), value)
        return family
