"""Perplexity by position is the perplexity of the parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sash.attention.pattern import AttentionPattern
from sash.errors import EmptyPromptError, UsageError, WindowError
from sash.evaluation.perplexity import perplexity
from sash.evaluation.positions import curves, readers
from sash.lm import LM
from tests.conftest import ByteTokenizer, small_config, small_decoder

TEXT = "The quick brown fox jumps over the lazy dog, and nobody minds it. " * 2
WINDOW = 12


@pytest.fixture(scope="module")
def lm() -> LM:
    config = small_config([AttentionPattern()] * 2, vocab_size=259)
    return LM(small_decoder(config, seed=3), ByteTokenizer(), chunk=16)


def test_parts_are_those_of_the_whole(lm: LM):
    ids = lm.tokenizer.encode(TEXT)
    ways = readers(lm, ["full", "window", "sinks", "overlap", "hierarchy"], WINDOW)
    found = {curve.method: curve for curve in curves(ways, ids, n_stretches=5)}
    alone = {"full": lm, "window": lm.with_window(WINDOW), "sinks": lm.with_window(WINDOW, 4)}
    alone["hierarchy"] = lm.with_window(WINDOW, 4).with_hierarchy(block=3)
    alone["overlap"] = lm.with_window(WINDOW).with_overlap(3)
    for name, other in alone.items():
        curve = found[name]
        assert curve.nll == pytest.approx(perplexity(other, ids).nll)
        assert sum(curve.n_tokens) == len(ids) - 1
        scores = other.score(ids)
        stop = curve.starts[2]
        part = scores[curve.starts[1] - 1 : stop - 1]
        assert curve.nlls[1] == pytest.approx(-float(part.double().mean()), rel=1e-5)
    # Within the first window they are one, but for the overlap's fresh readings.
    short = list(curves(readers(lm, ["full", "window", "sinks"], WINDOW), ids[:WINDOW], n_stretches=1))
    assert short[0].nll == pytest.approx(short[1].nll) == pytest.approx(short[2].nll)
    assert found["full"].nll != pytest.approx(found["window"].nll, rel=1e-3)


def test_what_is_cancelled_is_left_out(lm: LM):
    ids, read = lm.tokenizer.encode(TEXT), []
    ways = readers(lm, ["full", "window"], WINDOW)
    done = curves(ways, ids, progress=read.append, cancelled=lambda: sum(read) > len(ids))
    assert [curve.method for curve in done] == ["full"]


def test_what_cannot_be_is_refused(lm: LM):
    with pytest.raises(UsageError, match="'pins' is no way to read a whole text"):
        readers(lm, ["pins"], WINDOW)
    with pytest.raises(UsageError, match="no ways"):
        readers(lm, [], WINDOW)
    with pytest.raises(WindowError):
        readers(lm, ["window"])
    with pytest.raises(EmptyPromptError):
        list(curves({"full": lm}, [5]))
    with pytest.raises(UsageError, match="1 stretch or more"):
        list(curves({"full": lm}, [5, 6], n_stretches=0))


def test_a_figure_is_the_same_file_from_the_same_curves(lm: LM, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, which is not installed")
    from sash.evaluation.figures import draw_curves

    found = list(curves(readers(lm, ["full", "window"], WINDOW), lm.tokenizer.encode(TEXT)[:60], n_stretches=3))
    for name in ("one.svg", "other.svg"):
        draw_curves(found, WINDOW, "title", tmp_path / name)
    draw_curves(found[:1], WINDOW, "title", tmp_path / "third.svg")
    files = [(tmp_path / name).read_bytes() for name in ("one.svg", "other.svg", "third.svg")]
    assert files[0] == files[1] != files[2]
