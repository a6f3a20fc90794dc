"""Calibration of recall on a real checkpoint."""

from __future__ import annotations

import pytest

from sash.loading import load_decoder
from sash.network import recall_layers


@pytest.mark.models
def test_few_layers_hold_what_is_asked_for(monkeypatch, tmp_path):
    """Those that were found by hand are among them, and what is found is what recalls from then on."""
    lm = load_decoder("smollm2-135m-instruct")
    monkeypatch.setattr(recall_layers, "models_root", lambda: tmp_path / "models")
    found = lm.calibrate_recall()
    assert {7, 14, 17, 18, 20, 21} <= set(found)
    assert len(found) < lm.config.n_layers
    assert lm.calibrate_recall() == found
    recalls = lm.with_window(128).with_recall()
    assert tuple(at for at, pattern in enumerate(recalls.config.patterns) if pattern.annex) == found
