"""A request's tokens depend on nobody else: not on company, arrival, order, or neighbours that leave."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from sash.engine.lanes import Lane
from tests.engine.runs import PATHS, Taken, alone, finish, heard, network_on, request_of, service_over, submit, turn

N = 8


@pytest.fixture(scope="module", params=PATHS)
def network(request):  # type: ignore[no-untyped-def]
    return network_on(request.param)


@pytest.fixture(scope="module")
def lonely(network) -> list[Taken]:  # type: ignore[no-untyped-def]
    return [alone(network, request_of(index)) for index in range(N)]


def assert_same(network, got: Taken, wanted: Taken) -> None:  # type: ignore[no-untyped-def]
    """The same ids; on native kernels the same bits."""
    assert got.sequence.finish_reason == wanted.sequence.finish_reason == "length"
    assert heard(network, got) == heard(network, wanted)


@pytest.mark.parametrize(
    "options",
    [{}, {"token_budget": 64, "chunk": 8, "read_slice": 1}, {"max_rows": 3}, {"read_slice": None, "max_rows": 4}],
)
def test_company_changes_nothing(network, lonely, options) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, **options)
    together = [submit(service, request_of(index))[1] for index in range(N)]
    finish(service)
    for got, wanted in zip(together, lonely, strict=True):
        assert_same(network, got, wanted)


@pytest.mark.parametrize("seed", range(4))
def test_arrival_order_and_leaving_neighbours_change_nothing(network, lonely, seed) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(seed)
    service = service_over(network, max_rows=6)
    order = draw.sample(range(N), N)
    taken = {}
    for index in order:
        ticket, neighbour = submit(service, request_of(20 + index))
        _, taken[index] = submit(service, request_of(index))
        for _ in range(draw.randint(0, 6)):
            turn(service)
        service.cancel(ticket)
        turn(service)
        assert neighbour.sequence.finish_reason in ("cancelled", "length")
    finish(service)
    for index in range(N):
        assert_same(network, taken[index], lonely[index])


def test_threads_that_sample_change_nothing(network, lonely, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before = threading.active_count()
    service = service_over(network, token_budget=200, read_slice=200)
    together = [submit(service, request_of(index))[1] for index in range(N)]
    finish(service)
    assert threading.active_count() > before
    service._steps.close()
    assert threading.active_count() == before
    for got, wanted in zip(together, lonely, strict=True):
        assert_same(network, got, wanted)


def test_a_larger_chunk_changes_no_bit_on_native_kernels(network, lonely) -> None:  # type: ignore[no-untyped-def]
    if not network.independent:
        pytest.skip("with torch chunks change the last bits, and stay where they are")
    for chunk in (1, 13, 64):
        for index in (0, 3):
            assert_same(network, alone(network, request_of(index), chunk=chunk), lonely[index])


def test_lanes_are_no_company(network, lonely) -> None:  # type: ignore[no-untyped-def]
    lanes = [Lane(5, 0), Lane(5, 3), Lane(None, 4), Lane(9, 0)]
    pins = [(), (range(2, 5),), (range(1, 3), range(9, 11)), ()]
    asked = [(request_of(index, pins=pin), lane) for index, (lane, pin) in enumerate(zip(lanes, pins, strict=True))]
    wanted = [alone(network, request, lane) for request, lane in asked]
    service = service_over(network)
    got = [submit(service, request, lane)[1] for request, lane in asked]
    own = [submit(service, request_of(index))[1] for index in range(4)]
    finish(service)
    for one, other in zip(got, wanted, strict=True):
        assert_same(network, one, other)
    for one, other in zip(own, lonely, strict=False):
        assert_same(network, one, other)
    assert wanted[0].said != lonely[0].said  # a window of 5 is not one of 16
    assert wanted[2].said != lonely[2].said  # nor are pins nothing


def test_idle_lanes_make_room(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network)
    taken = [submit(service, request_of(window), Lane(window, 0))[1] for window in range(3, 12)]
    most = 0
    while service._n_open:
        turn(service)
        most = max(most, service.figures().lanes)
    finish(service)
    assert most == 5
    assert {one.sequence.finish_reason for one in taken} == {"length"}
