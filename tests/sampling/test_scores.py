"""What a request changes in its logits: against plain Python and transformers, and nothing where nothing is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sash.errors import NumericalError, UsageError
from sash.sampling import OutputCounts, SamplingParams, new_generator, sample
from sash.sampling.scores import allowed, changed_scores

INF = math.inf

# Steps of 1/8 are exact in float32, so that the comparison can be exact too.
logit_rows = st.lists(st.integers(-40, 40).map(lambda step: step / 8), min_size=2, max_size=12)
eighths = st.integers(-16, 16).map(lambda step: step / 8)


def changed(logits: list[float], params: SamplingParams, **given_: object) -> list[float]:
    row = np.array(logits, dtype=np.float32)
    asked = {"output": None, "mask": None, "end_ids": (), **given_}
    return changed_scores(row, params, [], **asked).tolist()  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(logits=logit_rows, presence=eighths, frequency=eighths, data=st.data())
def test_the_two_penalties_follow_the_formula(
    logits: list[float], presence: float, frequency: float, data: st.DataObject
) -> None:
    output = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=30))
    params = SamplingParams(presence_penalty=presence, frequency_penalty=frequency)
    expected = [
        score - output.count(token) * frequency - (token in output) * presence for token, score in enumerate(logits)
    ]
    assert changed(logits, params, output=OutputCounts(output)) == expected


@settings(max_examples=60, deadline=None)
@given(logits=logit_rows, packed=st.sampled_from(["bool", "uint8", "int32"]), data=st.data())
def test_only_what_the_mask_allows_is_drawn(logits: list[float], packed: str, data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)).filter(any))
    mask = np.array(flags)
    if packed != "bool":
        bits = np.zeros(32, dtype=np.bool_)
        bits[: len(flags)] = flags
        mask = np.packbits(bits, bitorder="little").view(packed)
    params = SamplingParams(temperature=data.draw(st.sampled_from([0.0, 1.0, 5.0])), seed=1, top_k=2)
    generator = new_generator(params)
    drawn = {sample(torch.tensor(logits), params, [], generator, mask=mask).token_id for _ in range(20)}
    assert all(flags[token] for token in drawn)
    row = changed(logits, SamplingParams(), mask=mask)
    assert row == [score if flag else -INF for score, flag in zip(logits, flags, strict=True)]


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40).map(lambda step: step / 8), min_size=4, max_size=12),
    penalty=st.sampled_from([1.0, 1.5, 0.5]),
    min_tokens=st.integers(0, 4),
    data=st.data(),
)
def test_the_scores_are_those_of_transformers(
    logits: list[float], penalty: float, min_tokens: int, data: st.DataObject
) -> None:
    size = len(logits)
    tokens = st.integers(0, size - 1)
    prompt, output = data.draw(st.lists(tokens, min_size=1, max_size=5)), data.draw(st.lists(tokens, max_size=4))
    biases = data.draw(st.dictionaries(tokens, eighths, max_size=3))
    banned = data.draw(st.sets(tokens, max_size=1))
    # The end and one more stay free, for a row with nothing left is an error here and nonsense there.
    open_ids = sorted(data.draw(st.sets(tokens)) | {0, *(token for token in range(size) if token not in banned)})
    params = SamplingParams(
        repetition_penalty=penalty,
        min_tokens=min_tokens,
        logit_bias=(
            *((token, bias) for token, bias in biases.items() if token not in banned),
            *((b, -100) for b in banned),
        ),
    )
    steps = LogitsProcessorList([PrefixConstrainedLogitsProcessor(lambda *_: open_ids, num_beams=1)])
    if biases:
        steps.append(SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in biases.items()]))
    if banned:
        steps.append(SuppressTokensLogitsProcessor(sorted(banned)))
    if penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(penalty))
    if min_tokens:
        steps.append(MinNewTokensLengthLogitsProcessor(len(prompt), min_tokens, size - 1))
    oracle = steps(torch.tensor([prompt + output]), torch.tensor([logits]))[0].tolist()
    mask = np.isin(np.arange(size), open_ids)
    row = np.array(logits, dtype=np.float32)
    try:
        ours = changed_scores(
            row, params, prompt + output, output=OutputCounts(output), mask=mask, end_ids=(size - 1,)
        ).tolist()
    except UsageError:
        assert max(oracle) == -INF
        return
    if max(oracle) > -INF:
        assert ours == oracle


@settings(max_examples=60, deadline=None)
@given(
    logits=logit_rows,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 5),
    top_p=st.sampled_from([0.51, 0.93, 1.0]),
    min_p=st.sampled_from([0.0, 0.11]),
    data=st.data(),
)
def test_what_can_be_drawn_is_what_transformers_leaves(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, data: st.DataObject
) -> None:
    # transformers' top_p keeps a different one of equal tokens than ours; without ties there is no choice.
    logits = [score + index / 64 for index, score in enumerate(dict.fromkeys(logits))]
    biases = data.draw(st.dictionaries(st.integers(0, len(logits) - 1), st.integers(-2, 2), max_size=3))
    steps = LogitsProcessorList([])
    if biases:
        steps.append(SequenceBiasLogitsProcessor([[[token], float(bias)] for token, bias in biases.items()]))
    steps.append(TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    if min_p:
        steps.append(MinPLogitsWarper(min_p))
    oracle = steps(torch.tensor([[0]]), torch.tensor([logits]))[0]
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=3, logit_bias=tuple(biases.items())
    )
    generator = new_generator(params)
    drawn = {sample(torch.tensor(logits), params, [], generator).token_id for _ in range(30)}
    assert drawn <= set(torch.isfinite(oracle).nonzero().flatten().tolist())


def test_a_request_that_asks_nothing_gets_the_very_row() -> None:
    row = np.linspace(-1, 1, 9, dtype=np.float32)
    params = SamplingParams(top_k=3, top_p=0.5, min_p=0.1)
    same = changed_scores(row, params, [1, 2], output=OutputCounts([1, 1]), mask=None, end_ids=(3,))
    assert same is row


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**20), temperature=st.sampled_from([0.0, 0.7]), top_p=st.sampled_from([0.8, 1.0]))
def test_options_that_do_nothing_draw_the_same_tokens(seed: int, temperature: float, top_p: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(seed))
    plain = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
    idle = SamplingParams(
        temperature=temperature, top_p=top_p, seed=seed, presence_penalty=1.0, logit_bias=((5, 0.0),), min_tokens=1
    )
    one, other = new_generator(plain), new_generator(idle)
    mask = np.ones(3000, dtype=np.bool_)
    for _ in range(5):
        expected = sample(logits, plain, [], one)
        assert sample(logits, idle, [], other, mask=mask, end_ids=(), output=OutputCounts()) == expected


def test_banned_and_forced_tokens() -> None:
    logits = torch.tensor([9.0, 1.0, 0.0, 0.0])
    banned = SamplingParams(temperature=2.0, logit_bias=((0, -100), (1, -100.0)), seed=1)
    generator = new_generator(banned)
    assert {sample(logits, banned, [], generator).token_id for _ in range(60)} == {2, 3}
    forced = SamplingParams(temperature=2.0, logit_bias=((3, 100),), seed=1)
    generator = new_generator(forced)
    assert {sample(logits, forced, [], generator).token_id for _ in range(60)} == {3}


def test_the_end_comes_once_enough_is_written() -> None:
    params, logits = SamplingParams(temperature=0.0, min_tokens=2), torch.tensor([5.0, 1.0, 9.0])
    generator, output, drawn = new_generator(params), OutputCounts(), []
    for _ in range(3):
        drawn.append(sample(logits, params, [], generator, output=output, end_ids=frozenset({2})).token_id)
        output.extend(drawn[-1:])
    assert drawn == [0, 0, 2]
    only_the_end = np.array([False, False, True])
    assert sample(logits, params, [], generator, mask=only_the_end, end_ids={2, 7}).token_id == 2


def test_nothing_left_is_an_error_that_says_so() -> None:
    generator = new_generator(SamplingParams(seed=1))
    for params, mask in (
        (SamplingParams(), np.zeros(3, dtype=np.bool_)),
        (SamplingParams(), np.zeros(1, dtype=np.uint8)),
        (SamplingParams(temperature=0.0, logit_bias=((0, -100), (1, -100), (2, -100))), None),
        (SamplingParams(logit_bias=((1, -100),)), np.array([False, True, False])),
    ):
        with pytest.raises(UsageError, match="no token is left to choose from"):
            sample(torch.zeros(3), params, [], generator, mask=mask)
    with pytest.raises(UsageError, match="no token is left"):
        sample(torch.tensor([0.0, -INF]), SamplingParams(), [], generator, mask=np.array([False, True]))


@pytest.mark.parametrize("row", [[math.nan, 0.0], [INF, 0.0], [-INF, -INF]])
def test_broken_logits_are_no_answer_even_where_they_are_masked(row: list[float]) -> None:
    with pytest.raises(NumericalError):
        sample(torch.tensor(row), SamplingParams(), [], new_generator(SamplingParams()), mask=np.array([False, True]))


def test_large_numbers_stay_numbers() -> None:
    logits = torch.tensor([3e38, 1.0, -3e38])
    for params in (
        SamplingParams(temperature=1.0, seed=1, repetition_penalty=1e-30),
        SamplingParams(temperature=1.0, seed=1, logit_bias=((0, 100), (2, -99.0))),
        SamplingParams(temperature=1.0, seed=1, repetition_penalty=100.0, frequency_penalty=-2.0),
    ):
        drawn = sample(logits, params, [0, 2], new_generator(params), output=OutputCounts([0, 2]))
        assert drawn.token_id == 0


def test_ids_outside_of_the_row_are_refused() -> None:
    with pytest.raises(UsageError, match="logit_bias names token 3"):
        changed([0.0, 0.0, 0.0], SamplingParams(logit_bias=((3, 1.0),)))
    with pytest.raises(UsageError, match="output ids"):
        changed([0.0, 0.0, 0.0], SamplingParams(presence_penalty=1.0), output=OutputCounts([3]))


def test_a_mask_of_another_width_forbids_what_it_does_not_name() -> None:
    assert allowed(np.array([True, True]), 4).tolist() == [True, True, False, False]
    assert allowed(np.array([-1], dtype=np.int32), 3).tolist() == [True] * 3
    assert allowed(np.array([1 << 9], dtype=np.int32), 12).nonzero()[0].tolist() == [9]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", "1"),
        ("min_tokens", -1),
        ("min_tokens", True),
        ("min_tokens", 257),
        ("logit_bias", {1: 2.0}),
        ("logit_bias", ((1, 2.0, 3),)),
        ("logit_bias", ((1, 100.5),)),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((2**31, 1.0),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", tuple((token, 1.0) for token in range(1025))),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]
