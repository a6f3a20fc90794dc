"""Going on from snapshots: a warm answer is the cold one, token for token, and only what is new is read."""

from __future__ import annotations

import pytest

from sash.engine.lanes import Lane
from sash.engine.request import Request, Sequence
from sash.engine.snapshots import Snapshots
from sash.errors import CheckpointError
from tests.engine.runs import (
    CHUNK,
    PATHS,
    Taken,
    alone,
    finish,
    heard,
    network_on,
    request_of,
    service_over,
    submit,
    turn,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs in blocks of 16 tokens, so that prompts are several pieces."""
    monkeypatch.setattr("sash.network.sizing.LOG_BLOCK", 16)


@pytest.fixture(scope="module", params=[(path, full) for path in PATHS for full in (False, True)], ids=str)
def network(request):  # type: ignore[no-untyped-def]
    return network_on(request.param[0], full=request.param[1])


def snapshots_for(network, memory: int = 2**28) -> Snapshots:  # type: ignore[no-untyped-def]
    return Snapshots(memory)


def ask(service, request: Request, lane: Lane | None = None) -> Taken:  # type: ignore[no-untyped-def]
    _, taken = submit(service, request, lane)
    finish(service)
    assert taken.sequence.finish_reason == "length"
    return taken


def followed_by(sequence: Sequence, *more: int, **changes: object) -> Request:
    """The next turn of a chat: all that was said, and what is new."""
    ids = (*sequence.request.prompt_ids, *sequence.output_ids, *more)
    fields = {"prompt_ids": ids, "params": sequence.request.params, **changes}
    return Request(**fields)  # type: ignore[arg-type]


def assert_same(network, warm: Taken, cold: Taken) -> None:  # type: ignore[no-untyped-def]
    assert heard(network, warm) == heard(network, cold)


@pytest.mark.parametrize("lane", [None, Lane(6, 0), Lane(6, 4)], ids=str)
def test_the_second_turn_reads_what_is_new(network, lane) -> None:  # type: ignore[no-untyped-def]
    pins = (range(1, 4),) if lane is not None and lane.pins else ()
    service = service_over(network, snapshots=snapshots_for(network))
    first = ask(service, request_of(1, 50, pins=pins), lane)
    assert (first.sequence.reuse, first.sequence.n_reused) == ("miss", 0)
    asked = followed_by(first.sequence, 5, 6, 7, 8, 9, pins=pins)
    second = ask(service, asked, lane)
    if network.independent:
        assert second.sequence.n_reused == len(first.sequence.request.prompt_ids) + len(first.sequence.output_ids) - 1
        assert second.sequence.reuse == "whole"
    else:
        assert second.sequence.n_reused >= 32
    assert sum(event.n_read for event in second.events) == len(asked.prompt_ids) - second.sequence.n_reused
    assert_same(network, second, alone(network, asked, lane))
    other = ask(service, asked, Lane(7, 4))
    assert other.sequence.n_reused == 0  # another window's keys are no use


def test_the_same_again_reads_one_token(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, snapshots=snapshots_for(network))
    first, again = ask(service, request_of(3, 45)), ask(service, request_of(3, 45))
    assert_same(network, again, first)
    assert again.sequence.n_reused == (44 if network.independent else 40)


def test_long_prompts_that_begin_alike_share_their_beginning(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, snapshots=snapshots_for(network))
    one = request_of(2, 100)
    other = Request(prompt_ids=(*one.prompt_ids[:70], *range(20, 50)), params=one.params)
    ask(service, one)
    warm = ask(service, other)
    assert (warm.sequence.n_reused, warm.sequence.reuse) == (70 if network.independent else 64, "part")
    assert_same(network, warm, alone(network, other))


def test_edits_retries_and_branches_go_on_from_where_they_differ(network) -> None:  # type: ignore[no-untyped-def]
    """Three turns; then each of their tokens in turn is another, and all before it is not read again."""
    service = service_over(network, snapshots=snapshots_for(network))
    first = ask(service, request_of(1, 50))
    second = ask(service, followed_by(first.sequence, *range(30)))
    third = followed_by(second.sequence, *range(20))
    ask(service, third)
    for at in (1, 49, 57, 95, len(third.prompt_ids) - 2):
        ids = [*third.prompt_ids]
        ids[at] = (ids[at] + 1) % 60
        edited = Request(prompt_ids=tuple(ids), params=third.params)
        warm = ask(service, edited)
        assert warm.sequence.n_reused == at if network.independent else at - CHUNK < warm.sequence.n_reused <= at
        assert_same(network, warm, alone(network, edited))


@pytest.mark.parametrize("memory", [60_000, 150_000])
def test_with_little_memory_rows_go_on_and_what_is_found_is_right(network, memory) -> None:  # type: ignore[no-untyped-def]
    """Logs and pieces keep to their budget together after every turn; answers are those of a request alone."""
    snapshots = snapshots_for(network, memory)
    service = service_over(network, snapshots=snapshots, max_rows=3)
    reused = 0
    for round_ in range(2):
        requests = [request_of(index, 40 + 9 * index) for index in range(5)]
        asked = [submit(service, request)[1] for request in requests]
        while service._n_open:
            service._turn()
            live = snapshots.room.storages()
            assert snapshots.nbytes + snapshots._held.missing(live) <= memory
        for request, taken in zip(requests, asked, strict=True):
            assert_same(network, taken, alone(network, request))
            reused += taken.sequence.n_reused
        assert round_ or not reused


def test_what_must_not_be_shared_is_not(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, snapshots=snapshots_for(network))
    ask(service, request_of(1, 50, salt=b"one"))
    assert ask(service, request_of(1, 50, salt=b"two")).sequence.reuse == "miss"
    off = ask(service, request_of(1, 50, salt=b"one", reuse=False))
    scored = ask(service, request_of(1, 50, salt=b"one", prompt_logprobs=0))
    assert (off.sequence.reuse, scored.sequence.reuse) == ("off", "off")
    assert len(scored.sequence.prompt_logprobs) == 50
    assert ask(service, request_of(1, 50, salt=b"one")).sequence.n_reused > 0


def test_an_answer_that_was_cut_short_is_kept_too(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, snapshots=snapshots_for(network))
    request = request_of(1, 33, max_tokens=30)
    ticket, taken = submit(service, request)
    while len(taken.said) < 20:
        service._turn()
    service.cancel(ticket)
    finish(service)
    assert taken.sequence.finish_reason == "cancelled"
    asked = followed_by(taken.sequence, 4, 5)
    warm = ask(service, asked)
    assert warm.sequence.n_reused == (33 + 20 - 1 if network.independent else 32)
    assert_same(network, warm, alone(network, asked))


def test_what_cannot_be_restored_is_read(network, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, snapshots=snapshots_for(network))
    cold = ask(service, request_of(1, 50))
    cache = service._steps.lanes.own.cache

    def fails(*_: object) -> None:
        raise CheckpointError("torn")

    with monkeypatch.context() as patched:
        patched.setattr(cache, "restore", fails)
        again = ask(service, request_of(1, 50))
        patched.setattr(cache, "capture", fails)
        third = ask(service, request_of(1, 50, reuse=True))
    assert (again.sequence.reuse, again.sequence.n_reused) == ("miss", 0)
    assert third.sequence.finish_reason == "length"
    assert_same(network, again, cold)
    assert_same(network, third, cold)


def test_in_company_warm_is_cold(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, snapshots=snapshots_for(network), max_rows=4)
    first = [submit(service, request_of(index, 40 + index))[1] for index in range(6)]
    finish(service)
    asked = [followed_by(one.sequence, 3, 1, 4, index) for index, one in enumerate(first)]
    second = [submit(service, request)[1] for request in asked]
    finish(service)
    for request, warm in zip(asked, second, strict=True):
        assert warm.sequence.n_reused > 0
        assert_same(network, warm, alone(network, request))


def test_answers_to_one_prompt_read_it_once(network) -> None:  # type: ignore[no-untyped-def]
    wanted = [request_of(1, 57, seed=seed, temperature=1.0) for seed in range(4)]
    service = service_over(network, snapshots=snapshots_for(network), max_rows=3, max_waiting=8)
    leader, first = submit(service, wanted[0])
    others = []
    for request in wanted[1:]:
        taken = Taken()
        service.submit(request, taken, after=leader)
        others.append(taken)
    _, behind = submit(service, request_of(2, 30))
    turn(service)
    assert [sequence.request for sequence in service._steps.scheduler.running] == [wanted[0], request_of(2, 30)]
    finish(service)
    n_read = sum(event.n_read for taken in others for event in taken.events)
    assert n_read == 3 * (1 if network.independent else 57 % CHUNK or CHUNK)
    assert len(behind.said) == request_of(2).params.max_tokens
    for taken, request in zip([first, *others], wanted, strict=True):
        assert_same(network, taken, alone(network, request))


def test_whoever_follows_reads_where_nothing_is_kept_or_the_leader_ends(network) -> None:  # type: ignore[no-untyped-def]
    request = request_of(1, 57)
    for snapshots in (None, snapshots_for(network)):
        service = service_over(network, snapshots=snapshots)
        leader, _ = submit(service, request)
        taken = Taken()
        service.submit(request, taken, after=leader)
        turn(service)
        assert len(service._steps.scheduler.running) == (2 if snapshots is None else 1)
        service.cancel(leader)
        finish(service)
        assert_same(network, taken, alone(network, request))
