"""Windows side by side: the perplexity, bytes and answers that each has alone."""

from __future__ import annotations

import pytest

from sash.attention.pattern import AttentionPattern
from sash.errors import PinsError
from sash.evaluation.ablation import ablations
from sash.evaluation.perplexity import perplexity
from sash.evaluation.prompts import Source
from sash.evaluation.trials import Grid
from sash.lm import LM
from tests.conftest import ByteTokenizer, small_config, small_decoder

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds it. " * 3
GRID = Grid(tasks=("passkey",), lengths=(160,), depths=(0.0, 1.0), n_trials=1)


def make_lm() -> LM:
    config = small_config([AttentionPattern(window=40), AttentionPattern()], vocab_size=259)
    return LM(small_decoder(config, seed=3), ByteTokenizer(), chunk=32)


def test_each_window_has_the_figures_that_it_has_alone():
    lm = make_lm()
    ids = lm.tokenizer.encode(TEXT)
    source = Source(lm.tokenizer, TEXT)
    found = list(ablations(lm, [8, "full", None], ids, source, GRID, pins=2))
    assert [(one.window, one.pins, one.of) for one in found] == [(8, 2, 2), ("full", 0, 2), (None, 0, 2)]
    alone = [lm.with_window(8, 2), lm.with_window("full"), lm]
    for one, other in zip(found, alone, strict=True):
        assert one.perplexity.nll == pytest.approx(perplexity(other, ids).nll)
        session = other.session()
        session.feed(ids)
        assert one.kv_bytes == session.nbytes
    assert found[0].perplexity.nll != pytest.approx(found[1].perplexity.nll, rel=1e-3)


def test_what_is_not_done_is_left_out_and_what_cannot_be_is_refused_at_once():
    lm = make_lm()
    ids, source = lm.tokenizer.encode(TEXT), Source(lm.tokenizer, TEXT)
    read: list[int] = []
    done = ablations(lm, [8, 16], ids, source, GRID, progress=read.append, cancelled=lambda: len(read) > 9)
    assert [one.window for one in done] == [8]
    with pytest.raises(PinsError):
        next(ablations(lm, [64, 8], ids, source, GRID, pins=9))
