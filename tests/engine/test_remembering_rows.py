"""Served rows that recall what left their windows, or sum it up: what they say depends on nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from sash.engine.lanes import Lane, cost_of, network_with
from sash.errors import DoesNotFitError
from sash.network.hierarchy import Hierarchy
from sash.network.packed import Network
from sash.network.recall import RecallSettings, recalling
from sash.network.sizing import KV_BYTES, LOG_BLOCK
from tests.engine.runs import PATHS, alone, finish, heard, network_on, request_of, service_over, submit

SETTINGS = RecallSettings(block=8, piece=8, question=4)
WAYS = ["recall", "hierarchy"]


def remembering(path: str, way: str) -> tuple[Network, dict[str, Any]]:
    """A network that remembers, and what its service is told of it."""
    plain = network_on(path)
    if way == "recall":
        return network_with(plain, recalling(plain.config, SETTINGS, 16)), {"recall": SETTINGS}
    return network_with(plain, plain.config.with_hierarchy(Hierarchy(block=8, per_level=2, levels=4))), {}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("way", WAYS)
def test_company_changes_nothing(path: str, way: str):
    network, told = remembering(path, way)
    requests = [request_of(index, n_prompt=30 + 9 * index, max_tokens=4) for index in range(3)]
    wanted = [heard(network, alone(network, request, **told)) for request in requests]
    service = service_over(network, max_rows=2, **told)
    taken = [submit(service, request)[1] for request in requests]
    finish(service)  # which frees every byte
    assert [heard(network, one) for one in taken] == wanted
    plain = network_on(path)
    without = [alone(plain, request).said for request in requests]
    assert all(one.said != other for one, other in zip(taken, without, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_smaller_window_with_pins_remembers_too(way: str):
    network, told = remembering(PATHS[-1], way)
    lane, request = Lane(12, 4), request_of(1, n_prompt=40, max_tokens=4, pins=(range(2, 5),))
    wanted = heard(network, alone(network, request, lane, **told))
    service = service_over(network, **told)
    taken = [submit(service, one, at)[1] for one, at in [(request_of(2), None), (request, lane), (request, lane)]]
    finish(service)
    assert [heard(network, one) for one in taken[1:]] == [wanted, wanted]
    assert wanted != heard(network, alone(network_on(PATHS[-1]), request, lane))


def test_the_log_behind_the_rings_is_counted():
    network, told = remembering("torch", "recall")
    sizes = KV_BYTES["float32"]
    slot = 2 * network.config.n_kv_heads * network.config.head_dim * sizes[0]
    n_windowed = sum(window is not None for window in network.config.windows)
    without, logged = (cost_of(network.config, "auto", "float32", logs=logs) for logs in (False, True))
    assert logged(None, LOG_BLOCK + 1) - without(None, LOG_BLOCK + 1) == 2 * LOG_BLOCK * n_windowed * slot
    service = service_over(network, kv_memory=logged(None, LOG_BLOCK), **told)
    with pytest.raises(DoesNotFitError):
        submit(service, request_of(0, n_prompt=LOG_BLOCK))
