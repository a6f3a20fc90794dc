"""The thread that owns the model: its door, its end, and what it says of itself."""

from __future__ import annotations

import random
import threading
import time

import pytest

from sash.attention.pattern import AttentionPattern
from sash.engine.figures import Capacity
from sash.engine.lanes import Lane
from sash.engine.request import Event
from sash.engine.service import Service
from sash.errors import DoesNotFitError, DrainingError, QueueFullError, SashError, UsageError
from tests.conftest import small_config, small_decoder
from tests.engine.runs import (
    PATHS,
    Taken,
    alone,
    assert_empty,
    finish,
    network_on,
    request_of,
    running,
    service_over,
    submit,
    turn,
)

LONG = 240.0


@pytest.fixture(scope="module")
def network():  # type: ignore[no-untyped-def]
    return network_on(PATHS[-1])


def test_many_threads_are_served(network) -> None:  # type: ignore[no-untyped-def]
    wanted = {index: alone(network, request_of(index)).sequence.output_ids for index in range(6)}
    got: dict[tuple[int, int], Taken] = {}

    def client(number: int) -> None:
        for index in range(6):
            _, got[number, index] = submit(service, request_of(index))
            assert got[number, index].ended.wait(LONG)

    with running(network) as service:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert service.drain(LONG)
        assert_empty(service)
        figures = service.figures()
    assert {key: taken.sequence.output_ids for key, taken in got.items()} == {
        (number, index): wanted[index] for number in range(4) for index in range(6)
    }
    assert figures.finished == {"length": 24}
    assert figures.output_tokens == 4 * sum(len(ids) for ids in wanted.values())
    assert figures.prompt_tokens == 4 * sum(len(request_of(index).prompt_ids) for index in range(6))
    one = got[0, 0].sequence
    assert one.arrived <= one.admitted <= one.first_token <= one.finished


def test_cancelling_at_any_moment_frees_the_row(network) -> None:  # type: ignore[no-untyped-def]
    draw, go_on = random.Random(0), threading.Event()
    with running(network, max_rows=3) as service:
        service.submit(request_of(0), lambda event: go_on.wait(LONG) and None)  # nobody is done before one is cancelled
        tickets = [submit(service, request_of(index % 7, max_tokens=40)) for index in range(40)]
        service.cancel(tickets[-1][0])
        go_on.set()
        for ticket, _ in draw.sample(tickets[:-1], 24):
            time.sleep(draw.random() / 200)
            service.cancel(ticket)
            service.cancel(ticket)
        for _, taken in tickets:
            assert taken.ended.wait(LONG)
        reasons = {taken.sequence.finish_reason for _, taken in tickets}
        for ticket, _ in tickets:
            service.cancel(ticket)  # too late: nothing happens
        assert service.drain(LONG)
        assert_empty(service)
    assert reasons == {"length", "cancelled"}


def test_a_cancelled_row_is_free_before_the_next_step(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, max_rows=1)
    ticket, first = submit(service, request_of(0, max_tokens=50))
    _, second = submit(service, request_of(1))
    for _ in range(8):
        turn(service)
    assert not second.events
    service.cancel(ticket)
    turn(service)
    assert first.sequence.finish_reason == "cancelled"
    assert second.sequence.row == 0
    finish(service)
    assert second.sequence.output_ids == alone(network, request_of(1)).sequence.output_ids


def test_a_receiver_can_stop_its_request(network) -> None:  # type: ignore[no-untyped-def]
    service, taken = service_over(network), Taken()

    def take(event: Event) -> bool:
        taken(event)
        return len(taken.said) == 3

    service.submit(request_of(0), take)
    finish(service)
    assert taken.sequence.finish_reason == "stop"
    assert len(taken.said) == 3
    assert taken.events[-1].token is None


def test_the_queue_is_bounded(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, max_rows=2, max_waiting=3)
    taken = [submit(service, request_of(index))[1] for index in range(5)]
    with pytest.raises(QueueFullError, match="try again"):
        submit(service, request_of(5))
    turn(service)
    assert (service.figures().running, service.figures().waiting) == (2, 3)
    with pytest.raises(QueueFullError):
        submit(service, request_of(5))
    finish(service)
    assert [one.sequence.finish_reason for one in taken] == ["length"] * 5
    started = [one.sequence.admitted for one in taken]
    assert started == sorted(started)


def test_draining_finishes_what_was_accepted_and_takes_nothing_new(network) -> None:  # type: ignore[no-untyped-def]
    with running(network) as service:
        taken = [submit(service, request_of(index))[1] for index in range(6)]
        assert service.drain(LONG)
        assert service.health.state == "draining"
        assert [one.sequence.finish_reason for one in taken] == ["length"] * 6
        with pytest.raises(DrainingError):
            submit(service, request_of(0))
    assert service.health.state == "dead"


def test_draining_gives_up_in_time(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network)
    submit(service, request_of(0))
    assert not service.drain(0.01)
    finish(service)
    assert service.drain(0.01)


def test_stopping_ends_everything(network) -> None:  # type: ignore[no-untyped-def]
    with running(network, max_rows=2) as service:
        taken = [submit(service, request_of(index, max_tokens=100_000))[1] for index in range(5)]
        while not taken[0].said:
            time.sleep(0.001)
    assert all(one.ended.is_set() for one in taken)
    assert {one.sequence.finish_reason for one in taken} == {"error"}
    assert all(isinstance(one.sequence.error, DrainingError) for one in taken)
    assert_empty(service)
    service.stop()
    with pytest.raises(DrainingError):
        submit(service, request_of(0))
    with pytest.raises(UsageError):
        service.start()


def test_what_was_never_started_can_be_stopped(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network)
    _, taken = submit(service, request_of(0))
    service.stop()
    service.stop()
    assert isinstance(taken.sequence.error, DrainingError)
    assert service.health.state == "dead"
    with pytest.raises(UsageError):
        service.start()


def test_what_fails_in_the_loop_itself_is_said_to_all(network, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    with running(network, max_rows=2) as service:
        assert service.health.state == "ready"

        def fails() -> None:
            raise ZeroDivisionError("no row is left")

        monkeypatch.setattr(service._steps, "compute", fails)
        taken = [submit(service, request_of(index))[1] for index in range(3)]
        assert all(one.ended.wait(LONG) for one in taken)
        service._thread.join(LONG)  # type: ignore[union-attr]
        assert service.health.state == "dead"
        assert "no row is left" in str(service.health.error)
        assert all(isinstance(one.sequence.error, SashError) for one in taken)
        with pytest.raises(DrainingError, match="no row is left"):
            submit(service, request_of(0))
        assert service.drain(LONG)


def test_idle_it_does_nothing(network) -> None:  # type: ignore[no-untyped-def]
    with running(network) as service:
        _, taken = submit(service, request_of(0))
        assert taken.ended.wait(LONG)
        assert service.drain(LONG)
        while service._busy_since is not None:  # the last answer is out a little before the turn is over
            time.sleep(0.001)
        turns = 0
        inner = service._turn

        def counted() -> bool:
            nonlocal turns
            turns += 1
            return inner()

        service._turn = counted  # type: ignore[method-assign]
        steps = service.figures().steps
        time.sleep(0.05)
        assert service.health.heartbeat_seconds == 0
        assert service.figures().steps == steps
        assert turns <= 1


def test_a_step_that_hangs_shows_in_the_heartbeat(network) -> None:  # type: ignore[no-untyped-def]
    entered, go_on = threading.Event(), threading.Event()

    def take(event: Event) -> None:
        entered.set()
        assert go_on.wait(LONG)

    with running(network) as service:
        service.submit(request_of(0), take)
        assert entered.wait(LONG)
        first = service.health.heartbeat_seconds
        time.sleep(0.01)
        assert service.health.heartbeat_seconds > first >= 0
        go_on.set()
        assert service.drain(LONG)


def test_memory_is_never_exceeded_and_figures_say_what_is_held() -> None:
    config = small_config([AttentionPattern(window=16), AttentionPattern()])
    decoder = small_decoder(config)
    service = service_over(decoder, kv_memory=600_000, max_rows=8)
    taken = [submit(service, request_of(index), Lane(8, 0) if index % 3 == 2 else None)[1] for index in range(9)]
    most = 0
    while service._n_open:
        turn(service)
        figures = service.figures()
        held = sum(place.cache.nbytes for place in service._steps.lanes._places.values())
        assert held <= figures.kv_bytes <= figures.kv_reserved <= figures.kv_memory
        most = max(most, figures.running)
    finish(service)
    assert 1 < most < 8
    assert {one.sequence.finish_reason for one in taken} == {"length"}
    assert service.figures().evicted_tokens > 0


def test_capacity_says_how_much_fits() -> None:
    windowed = small_decoder(small_config([AttentionPattern(window=16)] * 2))
    row = 2 * 2 * 16 * 2 * 8 * 4
    assert service_over(windowed, kv_memory=3 * row + 5).capacity() == Capacity(
        rows=3, sequences=3, tokens=None, tokens_each=None, row_bytes=row, kv_memory=3 * row + 5
    )
    full = small_decoder(small_config([AttentionPattern()]))
    token = 2 * 2 * 8 * 4
    capacity = service_over(full, kv_memory=4096 * token, max_rows=2).capacity()
    assert (capacity.sequences, capacity.tokens, capacity.tokens_each) == (None, 4096, 2048)
    with pytest.raises(DoesNotFitError, match="give more"):
        service_over(full, kv_memory=1000 * token)
    with pytest.raises(UsageError):
        Service(full, kv_memory=2**30, max_rows=0)


def test_prompt_logprobs_are_those_of_one_forward() -> None:
    decoder = network_on("torch")
    taken = alone(decoder, request_of(3, 50, prompt_logprobs=2))
    scored = taken.sequence.prompt_logprobs
    whole = alone(decoder, request_of(3, 50, prompt_logprobs=2), chunk=64).sequence.prompt_logprobs
    assert scored[0] is None
    assert [token.token_id for token in scored[1:]] == list(request_of(3, 50).prompt_ids[1:])
    assert [token.logprob for token in scored[1:]] == pytest.approx([token.logprob for token in whole[1:]], abs=1e-4)
    assert all(token.logprob <= token.top[0][1] + 1e-6 and len(token.top) == 2 for token in scored[1:])
