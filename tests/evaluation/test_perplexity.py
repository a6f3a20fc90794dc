"""Perplexity against sums that are written out, and re-reading against one reading a token."""

from __future__ import annotations

import math

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import EmptyPromptError, UsageError
from sash.evaluation.perplexity import Perplexity, perplexity, readings
from sash.lm import LM
from sash.text.tokenizer import Tokenizer
from tests.conftest import small_config, small_decoder

WINDOW = 8


@pytest.fixture
def lm(byte_tokenizer: Tokenizer) -> LM:
    config = small_config([AttentionPattern(window=WINDOW)] * 2, vocab_size=259)
    return LM(small_decoder(config), byte_tokenizer, chunk=5)


@pytest.fixture
def full(byte_tokenizer: Tokenizer) -> LM:
    return LM(small_decoder(small_config([AttentionPattern()] * 2, vocab_size=259)), byte_tokenizer)


def random_ids(count: int, *, bos: bool = False) -> list[int]:
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, 259, (count,), generator=generator).tolist()
    return [1, *ids[1:]] if bos else ids


def test_the_mean_over_all_tokens_but_the_first(lm: LM):
    ids = random_ids(60, bos=True)
    log_probabilities = lm.logits(ids, None).log_softmax(-1)
    expected = -sum(float(log_probabilities[i, ids[i + 1]]) for i in range(59)) / 59
    found = perplexity(lm, ids)
    assert found.nll == pytest.approx(expected, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-4)
    assert (found.n_tokens, found.n_bytes, found.n_read) == (59, 59, 60)
    assert found.bits_per_byte == pytest.approx(expected / math.log(2), rel=1e-5)
    assert found.to_json()["perplexity"] == found.perplexity


@pytest.mark.parametrize("chunk", [1, 7, 8, 9, 1000])
def test_the_chunk_changes_nothing(lm: LM, chunk: int):
    ids, seen = random_ids(50), []
    found = perplexity(lm, ids, chunk=chunk, progress=seen.append)
    assert found.nll == pytest.approx(perplexity(lm, ids).nll, abs=1e-5)
    assert (sum(seen), max(seen)) == (50, min(chunk, 50))


def test_a_window_and_pins_are_measured_as_they_are_set(full: LM):
    ids = random_ids(60)
    values = {perplexity(full.with_window(*view), ids).nll for view in ((None, 0), (8, 0), (8, 2))}
    assert len(values) == 3


def test_control_tokens_spell_no_bytes(lm: LM):
    assert perplexity(lm, [5, 1, 2, 6]).n_bytes == 1
    assert perplexity(lm, [5, 1]).bits_per_byte is None
    assert Perplexity(n_tokens=1, n_bytes=1, nll=1e4, n_read=1, seconds=0.0).perplexity == math.inf


@pytest.mark.parametrize("bos", [False, True])
def test_overlap_with_a_stride_of_1_is_one_fresh_reading_a_token(full: LM, bos: bool):
    ids, window = random_ids(30, bos=bos), 6
    total = 0.0
    for target in range(1, 30):
        context = ids[max(0, target - window) : target]
        if bos and target > window:
            context = [1, *ids[target - window + 1 : target]]
        total -= float(full.logits(context, None)[-1].log_softmax(-1)[ids[target]])
    found = perplexity(full.with_window(window).with_overlap(1), ids)
    assert found.nll == pytest.approx(total / 29, abs=1e-5)
    assert found.n_read == window * (31 - window)
    assert found.to_json()["tokens_read_per_token"] == pytest.approx(window * (31 - window) / 29)


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 12, 100])
def test_a_stride_gives_every_token_nearly_the_whole_window(full: LM, chunk: int):
    ids, window, stride = random_ids(41), 12, 4
    expected, first = [], 1
    for start, stop in readings(41, window, stride):
        scores = full.score(ids[start : stop + 1], None)
        expected += scores.tolist()[first - start - 1 :]
        assert first == 1 or first - start > window - stride
        first = stop + 1
    lm, seen = full.with_window(window).with_overlap(stride), []
    assert lm.score(ids, chunk, seen.append).tolist() == pytest.approx(expected, abs=1e-5)
    assert sum(seen) == 41
    found = perplexity(lm, ids, chunk=chunk)
    assert found.nll == pytest.approx(-sum(expected) / 40, abs=1e-5)
    assert found.n_read == sum(stop - start for start, stop in readings(41, window, stride))


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("stride", [1, 3, 5])
@pytest.mark.parametrize("n_tokens", [2, 5, 6, 7, 23])
def test_every_token_is_read_first_once(n_tokens: int, stride: int, lead: int):
    found = readings(n_tokens, 5, stride, lead)
    assert [stop for _, stop in found] == sorted({stop for _, stop in found})
    assert (found[0][0], found[-1][1]) == (0, n_tokens)
    assert all(start <= before for (start, _), (_, before) in zip(found[1:], found, strict=False))
    assert all(stop - start + (lead if start else 0) <= 5 for start, stop in found)


def test_a_text_that_fits_the_window_is_read_once(full: LM):
    ids = random_ids(20)
    found = perplexity(full.with_window(100).with_overlap(10), ids)
    assert found.n_read == 20
    assert found.nll == pytest.approx(perplexity(full, ids).nll, abs=1e-5)


def test_what_cannot_be_measured(lm: LM):
    with pytest.raises(EmptyPromptError, match="2 tokens"):
        perplexity(lm, [5])
    with pytest.raises(EmptyPromptError, match="2 tokens"):
        perplexity(lm.with_overlap(2), [])
    with pytest.raises(UsageError, match="vocabulary"):
        perplexity(lm, [5, 259])
    for stride in (0, WINDOW + 1):
        with pytest.raises(UsageError, match="stride"):
            lm.with_overlap(stride)
