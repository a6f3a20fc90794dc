"""Guesses change how long an answer takes, and nothing else: neither its tokens nor what the cache holds afterwards."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.engine.engine import Engine
from sash.engine.overlap import Held, Overlap
from sash.engine.proposer import MAX_DRAFTS, PromptLookup, Width, with_drafts
from sash.engine.request import Request, Sequence, Token, Work
from sash.engine.scheduler import Scheduler
from sash.errors import NumericalError, UsageError
from sash.network.cache import KVCache
from sash.network.fused import FusedDecoder
from sash.network.packed import Network
from sash.network.ring_store import RingStore
from sash.sampling import SamplingParams
from tests.conftest import small_config, small_decoder
from tests.engine.runs import PATHS, alone, finish, heard, network_on, request_of, service_over, submit
from tests.network.test_fused import config_of, decoder_of, parts_of

N_IDS = 60


class Replay:
    """Guesses what a plain run wrote: `right` tokens of it, then one that it did not write."""

    def __init__(self, sequence: Many[int], right: int, k: int) -> None:
        self.sequence, self.right, self.k = list(sequence), right, k
        self.tokens: list[int] = []

    def extend(self, ids: Many[int]) -> None:
        self.tokens += ids
        assert self.tokens == self.sequence[: len(self.tokens)]

    def cut(self, length: int) -> None:
        del self.tokens[length:]

    def propose(self, limit: int) -> list[int]:
        ahead = self.sequence[len(self.tokens) : len(self.tokens) + min(limit, self.k)]
        return [token if index < self.right else (token + 1) % N_IDS for index, token in enumerate(ahead)]


def small(windows: list[int | None], pins: int = 0) -> Network:
    patterns = [AttentionPattern(window=w, pins=0 if w is None else min(pins, w)) for w in windows]
    return small_decoder(small_config(patterns), seed=len(windows))


def native(window: int | None, pins: int = 0) -> FusedDecoder:
    patterns = [AttentionPattern(window=window, pins=min(pins, window or 0)), AttentionPattern()]
    config = config_of(n_layers=2)
    layers = tuple(replace(layer, pattern=pattern) for layer, pattern in zip(config.layers, patterns, strict=True))
    decoder = decoder_of(replace(config, layers=layers))
    return FusedDecoder(decoder.config, parts_of(decoder))


def ask(n_prompt: int, max_tokens: int = 24, **changes: object) -> Request:
    ids = tuple((n_prompt * 31 + 7 * place + place * place) % N_IDS for place in range(n_prompt))
    fields = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True, **changes}
    return Request(prompt_ids=ids, params=SamplingParams(**fields), keep_row=True)  # type: ignore[arg-type]


def run(
    network: Network, requests: list[Request], *, kv: str = "auto", chunk: int = 512, log: bool = False
) -> tuple[list[Sequence], KVCache]:
    """Sequences that have ended, and the cache with what they left in it."""
    cache = KVCache(network.config, len(requests), network.dtype, kv=kv, log=log)
    engine = Engine(network, cache, chunk=chunk)
    sequences = [engine.submit(request) for request in requests]
    while not engine.idle:
        engine.step()
        for sequence in sequences:
            if sequence.row is not None:
                assert cache.lengths[sequence.row] == sequence.n_read
    for sequence in sequences:
        assert sequence.error is None
    return sequences, cache


def held(cache: KVCache) -> list[torch.Tensor]:
    """All that the stores hold: every byte of rings and pins, and of what a row can be taken back to."""
    found = []
    for store in cache.stores.values():
        if isinstance(store, RingStore):
            found += [torch.tensor(store.positions), *store.ring.tensors(), *store.pins.tensors()]
    return found + [tensor for row in range(cache.n_rows) for tensor in cache.capture(row).tensors()]


def guessed(plain: Sequence, right: int, k: int) -> Request:
    request = plain.request
    return replace(request, proposer=Replay([*request.prompt_ids, *plain.output_ids], right, k), seen=None)


def check(network: Network, requests: list[Request], right: int, k: int, *, exact: bool, **how: object) -> None:
    plain, cache = run(network, requests, **how)  # type: ignore[arg-type]
    quick, other = run(network, [guessed(one, right, k) for one in plain], **how)  # type: ignore[arg-type]
    for one, two in zip(plain, quick, strict=True):
        assert one.output_ids == two.output_ids
        assert two.n_drafted > 0
        assert two.n_accepted <= two.n_drafted
        assert (two.n_accepted == 0) is (right == 0)
    for a, b in zip(held(cache), held(other), strict=True):
        if exact:
            assert torch.equal(a, b)
        else:
            assert torch.allclose(a.float(), b.float(), atol=2.0 if a.dtype == torch.int8 else 1e-3)


@settings(max_examples=10, deadline=None)
@given(
    windows=st.lists(st.sampled_from([None, 1, 2, 3, 5, 8, 13]), min_size=1, max_size=3),
    pins=st.integers(0, 3),
    k=st.integers(1, 9),
    right=st.integers(0, 9),
    n_prompts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    chunk=st.sampled_from([1, 7, 512]),
    temperature=st.sampled_from([0.0, 0.8]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_guesses_change_nothing_in_float32(windows, pins, k, right, n_prompts, chunk, temperature, penalty) -> None:
    requests = [
        ask(n, temperature=temperature, seed=n, repetition_penalty=penalty, presence_penalty=0.2) for n in n_prompts
    ]
    check(small(windows, pins), requests, right, k, exact=False, chunk=chunk)


@pytest.mark.skipif("native" not in PATHS, reason="native kernels do not serve here: torch does")
@settings(max_examples=8, deadline=None)
@given(
    window=st.sampled_from([None, 1, 3, 8, 16]),
    pins=st.integers(0, 3),
    k=st.integers(1, 12),
    right=st.integers(0, 12),
    n_prompts=st.lists(st.integers(1, 50), min_size=1, max_size=2),
    kv=st.sampled_from(["auto", "int8"]),
    log=st.booleans(),
    temperature=st.sampled_from([0.0, 0.9]),
)
def test_guesses_change_no_bit_natively(window, pins, k, right, n_prompts, kv, log, temperature) -> None:
    requests = [ask(n, temperature=temperature, seed=n, top_p=0.9) for n in n_prompts]
    check(native(window, pins), requests, right, k, exact=True, kv=kv, log=log)


def test_penalties_bans_and_least_lengths_count_every_guessed_token() -> None:
    network = small([5, None])
    changes = {"temperature": 0.7, "frequency_penalty": 0.9, "logit_bias": ((7, -100.0), (9, 3.0)), "seed": 4}
    requests = [ask(30, 40, repetition_penalty=1.2, min_tokens=30, logprobs=2, **changes)]
    requests = [replace(requests[0], stop_ids=frozenset({9, 11}))]
    requests = [replace(requests[0], params=replace(requests[0].params, ignore_eos=False))]
    for right in (0, 2, 9):
        check(network, requests, right, 7, exact=False)


def test_a_stop_token_among_guesses_ends_the_answer_there() -> None:
    network = small([5, None])
    plain, _ = run(network, [ask(20)])
    stop = plain[0].output_ids[9]
    first = plain[0].output_ids.index(stop)
    request = replace(guessed(plain[0], 20, 9), stop_ids=frozenset({stop}), params=SamplingParams(temperature=0.0))
    quick, other = run(network, [request])
    assert quick[0].output_ids == plain[0].output_ids[: first + 1]
    assert quick[0].finish_reason == "stop"
    assert other.lengths == [20 + first]
    assert not quick[0].ahead


def test_a_sequence_cancelled_ahead_of_itself_has_read_what_it_wrote() -> None:
    network = small([5])
    plain, _ = run(network, [ask(20)])
    cache = KVCache(network.config, 1)
    engine = Engine(network, cache)
    sequence = engine.submit(guessed(plain[0], 9, 7))
    while not (sequence.ahead and len(sequence.output_ids) > 6):
        engine.step()
    engine.cancel(sequence)
    assert cache.lengths == [20 + len(sequence.output_ids) - 1]
    again = KVCache(network.config, 1)
    whole = [*sequence.request.prompt_ids, *sequence.output_ids[:-1]]
    _, again = run(network, [Request(prompt_ids=tuple(whole), params=SamplingParams(max_tokens=1), keep_row=True)])
    for a, b in zip(held(cache), held(again), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-3)


class Silent:
    """A network that counts the rows of its forwards."""

    def __init__(self, network: Network) -> None:
        self.network, self.rows = network, []

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)

    def __call__(self, batch, cache):  # type: ignore[no-untyped-def]
        self.rows.append(len(batch.tokens_T))
        return self.network(batch, cache)


def test_right_guesses_save_forwards_and_others_get_theirs() -> None:
    network = Silent(small([5]))
    plain, _ = run(network, [ask(20, 41), ask(12, 41)])  # type: ignore[arg-type]
    assert sum(rows <= 2 for rows in network.rows) == 40
    network.rows.clear()
    _, _ = run(network, [guessed(plain[0], 9, 7), plain[1].request])  # type: ignore[arg-type]
    # The other one writes its 40 tokens by forwards; the one that is guessed takes part in 7 of them.
    assert sum(rows == 1 + 7 for rows in network.rows) == 5
    assert sum(rows <= 8 for rows in network.rows) == 40


class Broken(Replay):
    def propose(self, limit: int) -> list[int]:
        raise NumericalError("no idea")


def test_a_proposer_that_fails_costs_nothing_but_its_guesses() -> None:
    network = small([5])
    plain, _ = run(network, [ask(20)])
    request = replace(plain[0].request, proposer=Broken([*plain[0].request.prompt_ids, *plain[0].output_ids], 1, 1))
    quick, _ = run(network, [request])
    assert quick[0].output_ids == plain[0].output_ids


class Falling:
    """A network that fails where it is given guesses."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __getattr__(self, name: str) -> object:
        return getattr(self.network, name)

    def __call__(self, batch, cache):  # type: ignore[no-untyped-def]
        hidden = self.network(batch, cache)
        if any(span.drafted for span in batch.spans):
            raise RuntimeError("too wide")
        return hidden


def test_a_step_that_fails_with_guesses_is_repeated_without() -> None:
    network = small([5, None])
    plain, _ = run(network, [ask(20), ask(11)])
    quick, _ = run(Falling(network), [guessed(plain[0], 9, 4), guessed(plain[1], 9, 4)])  # type: ignore[arg-type]
    assert [one.output_ids for one in quick] == [one.output_ids for one in plain]
    assert [one.n_drafted for one in quick] == [0, 0]


def test_guesses_fill_the_rows_that_are_cheap_and_no_more() -> None:
    def writing(proposer: object) -> Work:
        sequence = Sequence(replace(ask(5, 40), proposer=proposer))  # type: ignore[arg-type]
        sequence.output_ids.append(1)
        sequence.n_read = 5
        return Work(sequence, 1, True)

    def replay() -> Replay:
        request = ask(5)
        return Replay([*request.prompt_ids, 1, *range(2, 40)], 99, 9)

    works = [writing(replay()), writing(None), writing(replay())]
    drafted = with_drafts(works)
    assert [len(work.drafts) for work in drafted] == [2, 0, 3]
    assert [work.sequence for work in drafted] == [work.sequence for work in works]
    assert [len(work.drafts) for work in with_drafts([writing(replay()) for _ in range(8)])] == [0] * 8
    last = writing(replay())
    last.sequence.output_ids += [2] * 37  # two more may be written: the first of them can be guessed
    last.sequence.request.proposer.tokens = [0] * 43  # type: ignore[union-attr]
    assert len(with_drafts([last])[0].drafts) <= 1


def test_lookup_finds_the_longest_match_and_forgets_to_the_token() -> None:
    lookup = PromptLookup(k=4, min_ngram=2, max_ngram=5).open()
    lookup.extend([9, 1, 2, 3, 4, 5, 6, 1, 2, 3, 7, 7, 9, 8, 2, 3, 5, 5])
    for tail, expected in (([1, 2, 3], [7, 7, 9, 8]), ([9, 1, 2, 3], [4, 5, 6, 1]), ([8, 2, 3], [5, 5])):
        length = len(lookup.tokens)
        before = dict(lookup._latest)
        lookup.extend(tail)
        assert lookup.propose(4)[: len(expected)] == expected
        lookup.cut(length)
        assert lookup._latest == before
    lookup.extend([100, 101])
    assert lookup.propose(4) == []


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=0, max_size=60), n=st.integers(1, 4))
def test_lookup_proposes_what_followed_the_same_tokens(ids: list[int], n: int) -> None:
    settings_ = PromptLookup(k=1, min_ngram=n, max_ngram=n)
    lookup = settings_.open()
    lookup.extend(ids)
    places = [at for at in range(n, len(ids)) if ids[at - n : at] == ids[len(ids) - n :]]
    assert lookup.propose(1) == ([ids[places[-1]]] if places else [])


def test_width_rests_longer_after_each_failure_and_grows_on_success() -> None:
    width = Width(7)
    rests, widths = [], []
    for _ in range(10):
        count = 0
        while not (allowed := width.allowed()):
            count += 1
        rests.append(count)
        widths.append(allowed)
        width.learn(allowed, 0)
    assert rests == [0, 0, 0, 1, 2, 4, 8, 16, 32, 32]
    assert widths == [4, 4, 2, 1, 1, 1, 1, 1, 1, 1]
    width.learn(1, 1)
    assert width.allowed() == 7
    assert Width(2).allowed() == 2


@pytest.mark.parametrize("numbers", [{"k": 0}, {"k": MAX_DRAFTS + 1}, {"min_ngram": 0}, {"min_ngram": 17}])
def test_lookup_refuses_numbers_that_cannot_be(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        PromptLookup(**numbers)


def test_the_scheduler_lets_those_go_first_that_are_ahead() -> None:
    scheduler = Scheduler([0, 1])
    first, second = (scheduler.submit(ask(3, 9)) for _ in range(2))
    scheduler.admit()
    works = scheduler.schedule()
    scheduler.commit([(work, Token(1, 0.0)) for work in works])
    works = [replace(work, drafts=(5, 6, 7)) if work.sequence is first else work for work in scheduler.schedule()]
    scheduler.commit([(work, Token(5, 0.0)) for work in works])
    assert (first.ahead, second.ahead) == (True, False)
    for token_id, ahead in ((6, True), (8, False)):
        works = scheduler.schedule()
        assert works == [Work(first, 1, True, ahead=True)]
        assert works[0].n_rows == 0
        scheduler.commit([(works[0], Token(token_id, 0.0))])
        assert first.ahead is ahead
    assert [work.sequence for work in scheduler.schedule()] == [first, second]
    assert (first.n_drafted, first.n_accepted) == (3, 2)
    assert first.position == 3 + len(first.output_ids) - 1


@pytest.mark.parametrize("path", PATHS)
def test_a_service_that_guesses_says_the_same_to_all(path: str) -> None:
    network = network_on(path)
    requests = [request_of(index, max_tokens=30, ignore_eos=True) for index in range(5)]
    expected = [heard(network, alone(network, request)) for request in requests]
    service = service_over(network, speculation=Guessing())
    taken = [submit(service, request)[1] for request in requests]
    finish(service)
    assert [heard(network, one) for one in taken] == expected
    assert sum(one.sequence.n_accepted for one in taken) > 0
    row = service_over(network).capacity().row_bytes
    assert service.capacity().row_bytes > row


class Guessing:
    """Guesses the last token again, which small networks often write."""

    def open(self) -> Again:
        return Again()


class Again:
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def extend(self, ids: Many[int]) -> None:
        self.tokens += ids

    def cut(self, length: int) -> None:
        del self.tokens[length:]

    def propose(self, limit: int) -> list[int]:
        return (self.tokens[-3:] * limit)[:limit]


def test_guesses_meet_neither_overlapping_windows_nor_what_sees_all() -> None:
    proposer = PromptLookup().open()
    with pytest.raises(UsageError, match="overlap"):
        Request(prompt_ids=(1,), params=SamplingParams(), proposer=proposer, held=Held(Overlap(window=4, stride=2)))
    with pytest.raises(UsageError, match="sees all"):
        Request(prompt_ids=(1,), params=SamplingParams(), proposer=proposer, seers=(range(3),))
    seeing = Request(prompt_ids=(1, 2), params=SamplingParams(), proposer=proposer, seers=(range(2),))
    assert seeing.proposer is proposer
