"""Sampling: the filters against an obvious reference, the distributions, the same draw from the same seed."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.errors import SashError, UsageError
from sash.sampling import SamplingParams, SeenTokens, new_generator, sample

NO_HISTORY: list[int] = []


def reference(logits: list[float], params: SamplingParams, history: list[int]) -> dict[int, float]:
    """The distribution, filter by filter, in plain Python."""
    scores = list(logits)
    for token in set(history):
        penalty = params.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    scores = [score / params.temperature for score in scores]
    kept = set(range(len(scores)))
    if 0 < params.top_k < len(scores):
        last = sorted(scores, reverse=True)[params.top_k - 1]
        kept = {token for token in kept if scores[token] >= last}
    peak = max(scores)
    weights = {token: math.exp(scores[token] - peak) for token in kept}
    if params.top_p < 1:
        total, reached, chosen = sum(weights.values()), 0.0, set()
        for token in sorted(weights, key=lambda token: (-weights[token], token)):
            if reached >= params.top_p * total:
                break
            chosen.add(token)
            reached += weights[token]
        weights = {token: weights[token] for token in chosen}
    limit = params.min_p * max(weights.values())
    weights = {token: weight for token, weight in weights.items() if weight >= limit}
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def frequencies(logits: torch.Tensor, params: SamplingParams, history: list[int], draws: int) -> dict[int, float]:
    generator = new_generator(params)
    counts: dict[int, int] = {}
    for _ in range(draws):
        token = sample(logits, params, history, generator).token_id
        counts[token] = counts.get(token, 0) + 1
    return {token: count / draws for token, count in counts.items()}


# Steps of 1/8 keep sums and comparisons exact enough that reference and code agree on every tie and edge.
logit_rows = st.lists(st.integers(-40, 40).map(lambda step: step / 8), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    logits=logit_rows,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 6),
    top_p=st.sampled_from([0.3, 0.77, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.07, 0.4]),
    penalty=st.sampled_from([1.0, 2.0]),
    data=st.data(),
)
def test_only_tokens_of_the_reference_are_drawn(
    logits: list[float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    data: st.DataObject,
) -> None:
    history = data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=4))
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=1
    )
    allowed = reference(logits, params, history)
    drawn = frequencies(torch.tensor(logits), params, history, 40)
    assert drawn.keys() <= allowed.keys()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 2.0},
        {"top_k": 3},
        {"top_p": 0.8},
        {"min_p": 0.3},
        {"repetition_penalty": 1.7},
        {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "temperature": 1.3},
    ],
)
def test_draws_follow_the_distribution(changes: dict[str, float]) -> None:
    logits = [1.0, -0.5, 2.0, 0.3, 0.3, -2.0, 1.5]
    params = SamplingParams(**{"temperature": 1.0, "seed": 7, **changes})  # type: ignore[arg-type]
    expected, draws = reference(logits, params, [2, 5, 2]), 4000
    drawn = frequencies(torch.tensor(logits), params, [2, 5, 2], draws)
    assert drawn.keys() <= expected.keys()
    chi_square = sum(draws * (drawn.get(token, 0) - share) ** 2 / share for token, share in expected.items())
    assert chi_square < 30  # 6 degrees of freedom or fewer: once in 25,000 seeds


@pytest.mark.parametrize("top_p", [0.5, 0.99, 0.999999])
def test_a_wide_nucleus_is_found_in_a_large_vocabulary(top_p: float) -> None:
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 0.1
    params = SamplingParams(temperature=1.0, top_p=top_p, seed=3)
    allowed = reference(logits.tolist(), params, NO_HISTORY)
    assert len(allowed) > 1024
    generator = new_generator(params)
    drawn = [sample(logits, params, NO_HISTORY, generator).token_id for _ in range(200)]
    assert len(set(drawn)) > 150
    assert set(drawn) <= allowed.keys()


def test_temperature_0_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    params = SamplingParams(temperature=0.0, seed=1)
    generator = new_generator(params)
    before = generator.get_state()
    assert sample(torch.tensor([1.0, 3.0, 3.0, 2.0]), params, NO_HISTORY, generator).token_id == 1
    assert sample(torch.zeros(100_003), params, NO_HISTORY, generator).token_id == 0
    assert torch.equal(before, generator.get_state())
    penalised = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    assert sample(torch.tensor([1.0, 3.0, 2.9, -1.0]), penalised, [1, 1], generator).token_id == 2
    assert sample(torch.tensor([-1.5, -1.0]), penalised, [1], generator).token_id == 0


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    params = SamplingParams(temperature=1e-40, seed=1)
    generator = new_generator(params)
    logits = torch.tensor([0.0, 5.0, 4.999])
    assert {sample(logits, params, NO_HISTORY, generator).token_id for _ in range(50)} == {1}


def test_logprobs_are_the_models_own() -> None:
    logits = torch.tensor([1.0, -1.0, 0.5, 0.5, 3.0])
    own = torch.log_softmax(logits.double(), dim=0).tolist()
    changed = SamplingParams(temperature=0.1, top_k=1, repetition_penalty=5.0, logprobs=3, seed=1)
    result = sample(logits, changed, [4], new_generator(changed))
    assert result.logprob == pytest.approx(own[result.token_id], abs=1e-6)
    assert [token for token, _ in result.top] == [4, 0, 2]
    assert [value for _, value in result.top] == pytest.approx([own[4], own[0], own[2]], abs=1e-6)
    for asked, given_back in ((None, 0), (0, 0), (20, 5)):
        params = SamplingParams(logprobs=asked, seed=1)
        told = sample(logits, params, NO_HISTORY, new_generator(params))
        assert len(told.top) == given_back
        assert (told.logprob is None) == (asked is None)


@pytest.mark.parametrize("changes", [{"temperature": 0}, {"temperature": 0.8}, {"temperature": 0, "min_tokens": 1}])
def test_telling_logprobs_changes_no_token(changes: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(3000, generator=generator).round(decimals=1)  # with ties for the first place
        silent, told = SamplingParams(seed=3, **changes), SamplingParams(seed=3, logprobs=2, **changes)
        one = sample(logits, silent, NO_HISTORY, new_generator(silent), end_ids=[int(logits.argmax())])
        other = sample(logits, told, NO_HISTORY, new_generator(told), end_ids=[int(logits.argmax())])
        assert one.token_id == other.token_id
        assert one.logprob is None
        assert other.logprob == pytest.approx(float(logits.double().log_softmax(-1)[one.token_id]), abs=1e-5)


def test_a_seed_decides_the_draws_whatever_else_is_drawn() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    params, other = SamplingParams(temperature=1.0, seed=11), SamplingParams(temperature=1.0, seed=12)
    generator = new_generator(params)
    alone = [sample(logits, params, NO_HISTORY, generator).token_id for _ in range(20)]
    generator, neighbour, mixed, others = new_generator(params), new_generator(other), [], []
    for _ in range(20):
        torch.rand(3)
        others.append(sample(logits, other, NO_HISTORY, neighbour).token_id)
        mixed.append(sample(logits, params, NO_HISTORY, generator).token_id)
    assert mixed == alone
    assert others != alone


def test_filters_do_not_change_how_many_numbers_are_drawn() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    states = []
    for changes in ({}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1, "logprobs": 5}):
        params = SamplingParams(temperature=1.0, seed=5, **changes)  # type: ignore[arg-type]
        generator = new_generator(params)
        sample(logits, params, NO_HISTORY, generator)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


def test_no_seed_is_a_fresh_one() -> None:
    seeds = {new_generator(SamplingParams()).initial_seed() for _ in range(4)}
    assert len(seeds) == 4


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    params = SamplingParams(temperature=1.0, seed=2)
    assert frequencies(logits, params, NO_HISTORY, 100).keys() == {1, 3}


@pytest.mark.parametrize(
    ("row", "fault"),
    [([1.0, math.nan], "NaN"), ([1.0, math.inf], "inf"), ([-math.inf] * 3, "all -inf"), ([math.nan, math.inf], "NaN")],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_named(row: list[float], fault: str, temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    with pytest.raises(SashError, match=fault):
        sample(torch.tensor(row), params, NO_HISTORY, new_generator(params))


def test_shapes_and_history_out_of_range_are_refused() -> None:
    params = SamplingParams(repetition_penalty=1.1)
    for logits in (torch.zeros(2, 3), torch.zeros(0)):
        with pytest.raises(UsageError, match="shape"):
            sample(logits, params, NO_HISTORY, new_generator(params))
    for history in ([3], [-1]):
        with pytest.raises(UsageError, match="history"):
            sample(torch.zeros(3), params, history, new_generator(params))


def test_logits_and_history_are_left_alone() -> None:
    logits = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    kept = logits.clone()
    params = SamplingParams(repetition_penalty=2.0, seed=1)
    sample(logits, params, torch.tensor([1]), new_generator(params))
    assert torch.equal(logits, kept)


def test_seen_tokens_are_kept_once() -> None:
    seen = SeenTokens([3, 1, 3])
    assert seen.ids.tolist() == [3, 1]
    seen.extend([1, 7])
    assert seen.ids.tolist() == [3, 1, 7]
    params = SamplingParams(temperature=0.0, repetition_penalty=3.0)
    row = torch.linspace(0.5, 4, 8)
    generator = new_generator(params)
    assert sample(row, params, seen.ids, generator) == sample(row, params, [3, 1, 3, 1, 7], generator)


BAD = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("top_p", 0.0),
    ("top_p", 1.01),
    ("top_k", -1),
    ("min_p", 1.5),
    ("repetition_penalty", 0.0),
    ("seed", -1),
    ("seed", 2**63),
    ("logprobs", 21),
    ("logprobs", False),
    ("stop", "END"),
    ("stop", ["END"]),
    ("stop", ("",)),
    ("stop", ("x",) * 17),
    ("ignore_eos", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(UsageError, match="stop" if field == "stop" else field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def test_parameters_need_no_torch() -> None:
    code = "import sys, sash.sampling as s; s.SamplingParams(); sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
