"""`--recall N`: what it refuses, and that it reaches the model."""

from __future__ import annotations

import pytest

from sash.cli import eval_recall, model_options
from sash.errors import UsageError


@pytest.mark.parametrize("other", [{"overlap": "8"}, {"hierarchy": 4}, {"speculate": "lookup"}])
def test_it_goes_with_no_other_way_to_remember(other):
    name = next(iter(other))
    with pytest.raises(UsageError, match=rf"--({name}|recall) and --({name}|recall) cannot be together"):
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


def test_it_finds_the_layers(monkeypatch, capsys):
    asked = {}

    class Model:
        config = type("Config", (), {"n_layers": 9})

        def calibrate_recall(self, length):
            asked["length"] = length
            return (2, 5)

    monkeypatch.setattr(model_options, "load_lm", lambda name, **how: asked.update(how) or Model())
    assert eval_recall.recall_command("some", length="1k", weights="int8") == 0
    assert capsys.readouterr().out == "2 of 9 layers recall from now on, with --recall: 2, 5\n"
    assert eval_recall.recall_command("some", as_json=True) == 0
    assert capsys.readouterr().out == '{"layers": [2, 5], "of": 9}\n'
    assert asked == {"length": 512, "weights": "auto", "dtype": None, "device": "cpu", "threads": None}
