"""`--recall N`: what it refuses, and that it reaches the model."""

from __future__ import annotations

import pytest

from sash.cli import model_options
from sash.errors import UsageError


@pytest.mark.parametrize("other", [{"overlap": "8"}, {"hierarchy": 4}, {"speculate": "lookup"}])
def test_it_goes_with_no_other_way_to_remember(other):
    with pytest.raises(UsageError, match="--recall fills what is beside"):
        model_options.load_lm("no-such-model", window="32", recall=16, **other)


def test_it_gives_the_model_an_annex(monkeypatch):
    asked = []

    class Model:
        def with_recall(self, budget):
            asked.append(budget)
            return "recalls"

    monkeypatch.setattr(model_options, "obtain", lambda name: None)
    monkeypatch.setattr("sash.loading.load_decoder", lambda *args, **kwargs: Model())
    assert model_options.load_lm("some", window="32", recall=16) == "recalls"
    assert asked == [16]
