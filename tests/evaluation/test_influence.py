"""Influence is what two readings differ by, and nothing where no path of windows leads."""

from __future__ import annotations

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.evaluation.influence import LEAD, divergence, influences, prediction
from sash.evaluation.positions import readers
from sash.evaluation.prompts import Source
from sash.lm import LM
from tests.conftest import ByteTokenizer, small_config, small_decoder

WINDOW, LAYERS = 12, 3
REACH = LAYERS * (WINDOW - 1)
TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds it. " * 3


@pytest.fixture(scope="module")
def lm() -> LM:
    config = small_config([AttentionPattern()] * LAYERS, vocab_size=259)
    return LM(small_decoder(config, seed=3), ByteTokenizer(), chunk=16)


def test_a_change_arrives_as_far_as_the_layers_reach_and_not_a_token_farther(lm: LM):
    distances = [1, WINDOW - 1, WINDOW, REACH - 1, REACH, REACH + 1, 2 * REACH]
    found = influences(
        readers(lm, ["full", "window"], WINDOW), Source(lm.tokenizer, TEXT), distances, n_trials=3, n_changed=2
    )  # fmt: skip
    by_method: dict[str, list[tuple[int, bool]]] = {}
    for one in found:
        assert one.of == 3
        assert 0 <= min(one.mean, one.median) <= one.largest
        by_method.setdefault(one.method, []).append((one.distance, one.reached > 0))
    assert by_method["full"] == [(distance, True) for distance in distances]
    assert by_method["window"] == [(distance, distance <= REACH) for distance in distances]


def test_it_is_the_divergence_of_two_forwards(lm: LM):
    source = Source(lm.tokenizer, TEXT)
    (one,) = influences(readers(lm, ["window"], WINDOW), source, [5], n_trials=1, n_changed=2, seed=4)
    import random

    rng = random.Random("4 influence 0")
    start, other = rng.randrange(source.size), rng.randrange(source.size)
    ids = [1, *source.filler(start, LEAD + 7)]
    changed = [*ids[: LEAD + 1], *source.filler(other, 2), *ids[LEAD + 3 :]]
    windowed = lm.with_window(WINDOW)
    plain, now = (windowed.logits(tokens, None)[-1].double().log_softmax(-1) for tokens in (ids, changed))
    assert one.mean == pytest.approx(float((plain.exp() * (plain - now)).sum()), rel=1e-4)


def test_a_difference_too_small_to_measure_is_still_one():
    plain = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    assert divergence(plain, plain.clone()) == 0.0
    assert divergence(plain, plain + torch.tensor([1e-16, 0.0]).double()) > 0


def test_the_prediction_does_not_depend_on_chunks(lm: LM):
    ids = Source(lm.tokenizer, TEXT).stretch(0, 50)
    whole = lm.logits(ids, None)[-1].double().log_softmax(-1)
    assert torch.allclose(prediction(lm, ids), whole, atol=1e-5)


def test_what_cannot_be_is_refused(lm: LM):
    ways, source = readers(lm, ["window"], WINDOW), Source(lm.tokenizer, TEXT)
    for distances, n_trials in (([], 1), ([0], 1), ([5], 0)):
        with pytest.raises(UsageError, match="influence needs"):
            list(influences(ways, source, distances, n_trials=n_trials))
    assert list(influences(ways, source, [5], cancelled=lambda: True)) == []
