"""What goes wrong in one request ends that request; the others' bits are as if it had never been.

`SASH_FAULTS=1000` draws so many bouts of faults; a few suffice by default.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sash.engine.lanes import Lane
from sash.engine.request import Event, Request
from sash.engine.service import Service
from sash.errors import DoesNotFitError, EmptyPromptError, NumericalError, PinsError, SashError, UsageError
from sash.network.cache import KVCache
from sash.network.packed import Network
from sash.network.slots import Layout
from tests.engine.runs import PATHS, Taken, alone, finish, heard, network_on, request_of, service_over, submit, turn

N = 4
FAULTS = int(os.environ.get("SASH_FAULTS", "8"))
VICTIM = 1234


class Boom(Exception):
    """Something that nobody foresaw."""


class Faulty:
    """A network that fails where it is told to: while it computes the victim's tokens."""

    def __init__(self, network: Network) -> None:
        self.network, self.config, self.independent = network, network.config, network.independent
        self.dtype, self.device = network.dtype, network.device
        self.victim: Any = None
        self.fails: Callable[[int], str | None] = lambda count: None
        self.count = 0
        self.poisoned: int | None = None

    def with_config(self, config: Any) -> Any:
        return self.network.with_config(config)

    def __call__(self, batch: Any, cache: KVCache) -> torch.Tensor:
        self.poisoned = None
        fault = None
        for span in batch.spans:
            if self.victim is not None and span.row == self.victim.row and self.victim.finish_reason is None:
                fault = self.fails(self.count)
                self.count += 1
                self.poisoned = span.stop - 1 if fault in ("nan", "inf", "logits") else None
        if fault == "before":
            raise Boom
        hidden_TD = self.network(batch, cache)
        if fault == "after":  # all layers have written what they had to
            raise RuntimeError("out of memory")
        if fault == "between":  # and nobody has noted it
            for span in batch.spans:
                cache.lengths[span.row] -= len(span)
            raise Boom
        if self.poisoned is not None:
            hidden_TD = hidden_TD.clone()
            hidden_TD[self.poisoned] = {"nan": torch.nan, "inf": torch.inf, "logits": -12345.0}[str(fault)]
        return hidden_TD

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        if bool((hidden_TD == -12345.0).all(-1).any()):
            raise RuntimeError("out of memory")
        return self.network.logits(hidden_TD)


@pytest.fixture(scope="module", params=PATHS)
def network(request):  # type: ignore[no-untyped-def]
    return network_on(request.param)


@pytest.fixture(scope="module")
def lonely(network) -> list[Taken]:  # type: ignore[no-untyped-def]
    return [alone(network, request_of(index)) for index in range(N)]


def run_among_siblings(
    service: Service, lonely: list[Taken], network: Network, victim: Callable[[], Taken], turns: int = 2
) -> Taken:
    """A victim among requests that are under way; their tokens are compared, and the victim's end is given back."""
    siblings = [submit(service, request_of(index))[1] for index in range(N - 1)]
    for _ in range(turns):
        turn(service)
    taken = victim()
    siblings.append(submit(service, request_of(N - 1))[1])
    finish(service)
    assert service.health.state == "loading"  # nobody started its thread, and nothing ended it
    for got, wanted in zip(siblings, lonely, strict=True):
        assert got.sequence.finish_reason == "length"
        assert heard(network, got) == heard(network, wanted)
    assert taken.sequence.finish_reason is not None
    return taken


@pytest.mark.parametrize("kind", ["before", "after", "between", "nan", "inf", "logits"])
@pytest.mark.parametrize("pins", [0, 4])
def test_a_step_that_fails_ends_its_culprit(network, lonely, kind, pins) -> None:  # type: ignore[no-untyped-def]
    faulty, wanted = Faulty(network), alone(network, request_of(VICTIM, 30))
    for at in (0, 6, 8) if network.independent else (0, 7):
        service = service_over(faulty)  # type: ignore[arg-type]

        def victim(service: Service = service, at: int = at) -> Taken:
            ticket, taken = submit(service, request_of(VICTIM, 30))
            faulty.victim, faulty.count = ticket.sequence, 0
            faulty.fails = lambda count: kind if count >= at else None
            return taken

        ended = run_among_siblings(service, lonely, network, victim, turns=2 + pins)
        assert ended.sequence.finish_reason == "error"
        expected = NumericalError if kind in ("nan", "inf") else SashError
        assert isinstance(ended.sequence.error, expected)
        said = heard(network, ended)
        assert said == heard(network, wanted)[: len(said)]  # what was sent before was right


def test_prompt_logprobs_that_are_no_numbers(network, lonely) -> None:  # type: ignore[no-untyped-def]
    faulty = Faulty(network)
    service = service_over(faulty)  # type: ignore[arg-type]

    def victim() -> Taken:
        ticket, taken = submit(service, request_of(VICTIM, 30, prompt_logprobs=1))
        faulty.victim, faulty.fails = ticket.sequence, lambda count: "nan" if count == 1 else None
        return taken

    ended = run_among_siblings(service, lonely, network, victim, turns=12)
    assert isinstance(ended.sequence.error, NumericalError)
    assert not ended.said


def test_a_step_that_fails_once_costs_nobody_anything(network, lonely) -> None:  # type: ignore[no-untyped-def]
    faulty = Faulty(network)
    wanted = alone(network, request_of(VICTIM, 40))
    for at in range(0, 12, 3):
        service = service_over(faulty)  # type: ignore[arg-type]

        def victim(service: Service = service, at: int = at) -> Taken:
            ticket, taken = submit(service, request_of(VICTIM, 40))
            faulty.victim, faulty.count = ticket.sequence, 0
            faulty.fails = lambda count: "after" if count == at else None
            return taken

        ended = run_among_siblings(service, lonely, network, victim)
        if ended.sequence.finish_reason == "length":
            assert heard(network, ended) == heard(network, wanted)
        else:  # it was alone in its forward
            assert isinstance(ended.sequence.error, SashError)


class Picky:
    """A grammar that fails where it is told to."""

    finished = False

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.left = stage, after

    def _fail(self, stage: str) -> None:
        if stage == self.stage:
            self.left -= 1
            if self.left < 0:
                raise Boom

    def mask(self) -> np.ndarray[Any, Any] | None:
        self._fail("mask")
        return None

    def take(self, token_id: int) -> None:
        self._fail("take")


@pytest.mark.parametrize("stage", ["mask", "take"])
@pytest.mark.parametrize("after", [0, 3])
def test_a_grammar_that_fails(network, lonely, stage, after) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network)
    request = request_of(VICTIM, grammar=Picky(stage, after))
    ended = run_among_siblings(service, lonely, network, lambda: submit(service, request)[1])
    assert ended.sequence.finish_reason == "error"
    assert "Boom" in str(ended.sequence.error)
    assert len(ended.said) == after


def test_a_grammar_is_followed_and_ends(network) -> None:  # type: ignore[no-untyped-def]
    class Counting:
        def __init__(self) -> None:
            self.left = [5, 9, 7]

        @property
        def finished(self) -> bool:
            return not self.left

        def mask(self) -> np.ndarray[Any, Any]:
            allowed = np.zeros(network.config.vocab_size, dtype=bool)
            allowed[self.left[0]] = True
            return allowed

        def take(self, token_id: int) -> None:
            assert token_id == self.left.pop(0)

    taken = alone(network, request_of(0, grammar=Counting()))
    assert (taken.sequence.output_ids, taken.sequence.finish_reason) == ([5, 9, 7], "stop")


def test_a_sampler_that_fails(network, lonely) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network)
    nothing_left = tuple((token_id, -100.0) for token_id in range(network.config.vocab_size))
    request = request_of(VICTIM, logit_bias=nothing_left)
    ended = run_among_siblings(service, lonely, network, lambda: submit(service, request)[1])
    assert isinstance(ended.sequence.error, UsageError)
    assert not ended.said


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_receiver_that_fails(network, lonely, after) -> None:  # type: ignore[no-untyped-def]
    service, taken = service_over(network), Taken()

    def take(event: Event) -> None:
        taken(event)
        if len(taken.events) >= after:
            raise Boom

    def victim() -> Taken:
        service.submit(request_of(VICTIM), take)
        return taken

    ended = run_among_siblings(service, lonely, network, victim)
    assert ended.sequence.finish_reason == "error"
    assert len(ended.events) == after + 1


def test_what_can_be_known_before_is_refused_at_once(network) -> None:  # type: ignore[no-untyped-def]
    service = service_over(network, kv_memory=2**20)
    nothing = Taken()
    params = request_of(0).params
    with pytest.raises(EmptyPromptError):
        Request(prompt_ids=(), params=params)
    with pytest.raises(UsageError, match="token ids"):
        service.submit(Request(prompt_ids=(1, 10**6), params=params), nothing)
    with pytest.raises(PinsError, match="pin fewer"):
        service.submit(request_of(0, pins=(range(3),)), nothing, Lane(8, 2))
    with pytest.raises(PinsError):
        service.submit(request_of(0), nothing, Lane(2, 5))
    with pytest.raises(PinsError, match="prompt"):
        request_of(0, 5, pins=(range(3, 9),))
    with pytest.raises(DoesNotFitError, match="fewer tokens"):
        service.submit(request_of(0, max_tokens=10**9), nothing)
    with pytest.raises(UsageError):
        service.submit(request_of(0, row=0), nothing)
    assert not nothing.events
    assert service.figures().waiting == 0


@pytest.mark.parametrize("first", [0, 6])
def test_whatever_allocation_fails_only_its_own_request_ends(network, lonely, first, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    zeros = Layout.zeros
    for nth in range(first, first + 6):
        service = service_over(network)
        calls = 0

        def failing(self: Layout, *shape: int, nth: int = nth) -> Any:
            nonlocal calls
            calls += 1
            if calls > nth and len(shape) > 3 and 0 not in shape:
                raise RuntimeError("not enough memory")
            return zeros(self, *shape)

        siblings = [submit(service, request_of(index))[1] for index in range(N)]
        with monkeypatch.context() as patched:
            patched.setattr(Layout, "zeros", failing)
            for _ in range(4):
                turn(service)
        finish(service)
        for got, wanted in zip(siblings, lonely, strict=True):
            if got.sequence.finish_reason == "error":
                assert isinstance(got.sequence.error, DoesNotFitError)
            else:
                assert got.sequence.output_ids == wanted.sequence.output_ids


def test_faults_drawn_at_random(network, lonely) -> None:  # type: ignore[no-untyped-def]
    for seed in range(FAULTS if network.independent else FAULTS // 2):
        draw = random.Random(seed)
        faulty = Faulty(network)
        service = service_over(faulty, max_rows=draw.choice([2, 3, 8]))  # type: ignore[arg-type]
        kinds = [draw.choice(["before", "after", "between", "nan", "inf", "logits"]) for _ in range(3)]
        at = draw.randint(0, 9)

        def victim(
            service: Service = service, kinds: list[str] = kinds, at: int = at, faulty: Faulty = faulty
        ) -> Taken:
            ticket, taken = submit(service, request_of(VICTIM, 36))
            faulty.victim, faulty.count = ticket.sequence, 0
            faulty.fails = lambda count: kinds[count - at] if at <= count < at + 3 else None
            return taken

        ended = run_among_siblings(service, lonely, network, victim, turns=draw.randint(0, 12))
        assert ended.sequence.finish_reason in ("error", "length"), f"seed {seed}"
