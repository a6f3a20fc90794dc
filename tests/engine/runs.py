"""Services over small random networks, stepped by hand or left to their thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sash.attention.pattern import AttentionPattern
from sash.engine.lanes import Lane
from sash.engine.request import Event, Request, Sequence
from sash.engine.service import Service, Ticket
from sash.kernels import native
from sash.network.fused import FusedDecoder
from sash.network.packed import Network
from sash.sampling import SamplingParams
from tests.conftest import small_config, small_decoder
from tests.network.test_fused import config_of, decoder_of, parts_of

W = 16
CHUNK = 8
PATHS = ["torch", *(["native"] if native.available() else [])]


def network_on(path: str, *, full: bool = False) -> Network:
    """A network with windows of 16, and with layers without one."""
    if path == "native":
        decoder = decoder_of(config_of(mixed=True) if not full else config_of(mixed=True, n_layers=2))
        return FusedDecoder(decoder.config, parts_of(decoder))
    windowed, unbounded = AttentionPattern(window=W), AttentionPattern()
    return small_decoder(small_config([unbounded] if full else [windowed, unbounded, windowed]))


def service_over(network: Network, **options: Any) -> Service:
    """A service that was not started: `finish` runs it."""
    defaults = {"kv_memory": 2**28, "max_rows": 8, "chunk": CHUNK, "token_budget": 2 * CHUNK, "read_slice": 5}
    return Service(network, **{**defaults, **options})


def request_of(index: int, n_prompt: int = 0, **changes: Any) -> Request:
    """A prompt of its own, longer than a window unless told; every second one is sampled by its own seed."""
    n_prompt = n_prompt or 20 + 7 * index % 45
    params = {"max_tokens": 9 + index % 5, "temperature": index % 2, "seed": index, "logprobs": 0}
    fields = {key: changes.pop(key) for key in list(changes) if key in SamplingParams.__dataclass_fields__}
    ids = tuple((index * 31 + 7 * place + place * place) % 60 for place in range(n_prompt))
    return Request(prompt_ids=ids, params=SamplingParams(**{**params, **fields}), **changes)


class Taken:
    """What was handed over of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> bool | None:
        assert not self.ended.is_set(), "an event after the last one"
        self.events.append(event)
        if event.sequence.finish_reason is not None:
            self.ended.set()
        return None

    @property
    def sequence(self) -> Sequence:
        return self.events[-1].sequence

    @property
    def said(self) -> list[tuple[int, float | None]]:
        """Ids and log-probabilities: equal where every bit of the logits was."""
        return [(event.token.token_id, event.token.logprob) for event in self.events if event.token is not None]


def heard(network: Network, taken: Taken) -> list[Any]:
    """What was said, as exactly as the network promises it: with torch company may change last bits, and no ids."""
    return taken.said if network.independent else [token_id for token_id, _ in taken.said]


def submit(service: Service, request: Request, lane: Lane | None = None) -> tuple[Ticket, Taken]:
    taken = Taken()
    return service.submit(request, taken, lane), taken


def turn(service: Service) -> None:
    """One turn of the engine's loop, if it has anything to do."""
    if service._n_open or service._cancelled:
        assert service._turn()


def finish(service: Service, turns: int = 100_000) -> None:
    """Run until everything has ended; every row and byte has then come back."""
    while service._n_open and turns:
        turn(service)
        turns -= 1
    assert turns, "it never ends"
    assert_empty(service)


def assert_empty(service: Service) -> None:
    figures = service.figures()
    assert (figures.running, figures.waiting, figures.rows_used, figures.kv_reserved) == (0, 0, 0, 0)
    assert not service._open
    assert not service._steps._runner._generators
    for place in service._steps.lanes._places.values():
        assert place.cache.lengths == [0] * place.cache.n_rows
        assert place.cache.nbytes == 0


def alone(network: Network, request: Request, lane: Lane | None = None, **options: Any) -> Taken:
    """What a request gets from a service of its own."""
    service = service_over(network, **options)
    _, taken = submit(service, request, lane)
    finish(service)
    return taken


@contextmanager
def running(network: Network, **options: Any) -> Iterator[Service]:
    """A service on its thread, which has ended afterwards."""
    service = service_over(network, **options)
    service.start()
    thread = service._thread
    assert thread is not None
    try:
        yield service
    finally:
        service.stop()
        assert not thread.is_alive()
