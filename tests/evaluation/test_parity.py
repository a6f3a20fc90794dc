"""Parity: what the slices add up to, and what is refused. The comparison itself is tested with `sash eval parity`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from sash.errors import SashError, UnsupportedError
from sash.evaluation import parity


def test_slices_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(7, 11, generator=generator), torch.randn(7, 11, generator=generator)
    theirs[:3] = ours[:3]
    ids = torch.randint(0, 11, (7,), generator=generator)
    sums = parity._Sums()
    for start in (0, 2, 6):
        rows = slice(start, {0: 2, 2: 6, 6: 7}[start])
        sums.add(ours[rows], theirs[rows], ids[1:][rows])
    found = sums.result(7, "5")
    assert found.max_difference == pytest.approx(float((ours - theirs).abs().max()))
    assert found.mean_difference == pytest.approx(float((ours - theirs).abs().mean()))
    assert found.argmax_agreement == float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    scores = ours.log_softmax(-1)[torch.arange(6), ids[1:]]
    assert found.nll == pytest.approx(-float(scores.mean()), abs=1e-6)
    assert found.to_json()["nll_difference"] == found.nll - found.nll_other


def test_nan_is_not_lost_among_differences():
    sums = parity._Sums()
    sums.add(torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2), torch.tensor([0]))
    sums.add(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([], dtype=torch.int64))
    assert math.isnan(sums.largest)


def test_vocabularies_of_two_sizes_are_two_models():
    with pytest.raises(SashError, match="logits"):
        parity._Sums().add(torch.zeros(1, 3), torch.zeros(1, 2), torch.tensor([0]))


def test_what_is_not_installed_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import save_file

    save_file({"norm.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    monkeypatch.setattr(parity, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="python -m pip install transformers"):
        parity.check_comparable(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "params.json")
    (tmp_path / "model.safetensors").rename(tmp_path / "consolidated.safetensors")
    with pytest.raises(UnsupportedError, match="Mistral's own layout"):
        parity.check_comparable(tmp_path)
