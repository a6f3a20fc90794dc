"""`sash plan`, its figures against the bytes that a loaded model and its cache really hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sash import cli
from sash.attention.pattern import AttentionPattern
from sash.cli import plan as verb
from sash.cli.plan import make_plan
from sash.errors import UsageError
from sash.explain.presets import PRESETS
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig
from sash.network.decoder import Decoder

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sash(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line over an empty store and 24 GiB of memory."""
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(verb, "available_memory", lambda: 24 * 2**30)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.execute(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize("kv", ["auto", "bf16", "int8"])
@pytest.mark.parametrize("window", [None, "full"])
@pytest.mark.parametrize("context", [1000, 1025, 2500])
def test_the_figures_are_the_bytes_that_are_held(context: int, window: None, kv: str):
    windowed, full = AttentionPattern(window=48, pins=3), AttentionPattern()
    config = ModelConfig(
        architecture="small",
        vocab_size=30,
        dim=16,
        n_heads=4,
        n_kv_heads=2,
        head_dim=4,
        hidden_dim=16,
        layers=tuple(LayerConfig(pattern=pattern) for pattern in (windowed, windowed, full)),
    )
    plan = make_plan(config, context, batch=2, dtype="float32", kv=kv)
    asked = config.with_window(window)
    decoder = Decoder(asked).requires_grad_(False)
    cache = KVCache(asked, n_rows=2, kv=kv)
    rows = [cache.allocate(), cache.allocate()]
    for start in range(0, context, 500):
        ids = torch.arange(start, min(start + 500, context)).remainder(30).tolist()
        decoder(Batch.pack([ids, ids], [start, start], rows), cache)
    assert cache.nbytes == (plan.kv_full if window == "full" else plan.kv_rolling)
    assert sum(parameter.nbytes for parameter in decoder.parameters()) == plan.weights


def test_mistral_7b_at_128k(sash: Run):
    code, out, err = sash("plan", "mistral-7b", "--context", "128K", "--batch", "4", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "")
    assert data["parameters"] == 7_241_732_096
    assert data["weights_bytes"] == 2 * 7_241_732_096
    assert data["rolling"]["kv_bytes"] == 4 * 512 * 2**20
    assert data["full"]["kv_bytes"] == 4 * 16 * 2**30
    assert (data["full"]["fits"], data["rolling"]["fits"]) == (False, True)


def test_int8_keys_and_values_take_a_little_more_than_half(sash: Run):
    _, out, _ = sash("plan", "mistral-7b", "--context", "128K", "--kv", "int8", "--json")
    data = json.loads(out)
    assert (data["dtype"], data["kv_dtype"]) == ("bfloat16", "int8")
    assert data["weights_bytes"] == 2 * 7_241_732_096
    assert data["rolling"]["kv_bytes"] == 512 * 2**20 * (128 + 4) // 256
    assert "tokens, int8" in sash("plan", "mistral-7b", "--kv", "int8")[1]


def test_the_table_says_what_fits(sash: Run):
    code, out, _ = sash("plan", "mistral-7b", "--context", "128K", "--batch", "4")
    assert code == 0
    verdicts = next(line for line in out.splitlines() if "fit" in line)
    assert verdicts.split("  ")[-1] == "fits"
    assert "does not fit" in verdicts


def test_what_does_not_fit_exits_with_3(sash: Run):
    code, out, err = sash("plan", "mixtral-8x7b")
    assert (code, err) == (3, "")
    assert out.count("does not fit") == 2
    assert "no layer has a window" in out
    code, out, _ = sash("plan", "mixtral-8x7b", "--json")
    assert (code, json.loads(out)["rolling"]["fits"]) == (3, False)


def test_a_forced_window_is_labelled(sash: Run):
    code, out, _ = sash("plan", "mistral-7b", "--window", "1K", "--pins", "4", "--dtype", "fp32", "--json")
    data = json.loads(out)
    assert code == 3
    assert data["forced_window"] == 1024
    assert data["rolling"]["kv_bytes"] == 2 * 32 * 1028 * 8 * 128 * 4
    assert "an ablation" in sash("plan", "mistral-7b", "--window", "1K")[1]


def test_a_system_that_does_not_tell_its_memory(sash: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verb, "available_memory", lambda: None)
    code, out, _ = sash("plan", "mixtral-8x7b", "--json")
    assert (code, json.loads(out)["rolling"]["fits"]) == (0, None)
    assert "available: unknown" in sash("plan", "mixtral-8x7b")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nonsense"], 4, "nonsense"),
        (["mistral-7b", "--context", "0"], 2, "--context"),
        (["mistral-7b", "--context", "long"], 2, "--context"),
        (["mistral-7b", "--batch", "0"], 2, "--batch"),
        (["mistral-7b", "--dtype", "int8"], 2, "int8"),
        (["mistral-7b", "--kv", "float32"], 2, "--kv"),
        (["mistral-7b", "--window", "0"], 10, "window of 0"),
        (["mistral-7b", "--pins", "5K"], 12, "5120 pins"),
        (["mixtral-8x7b", "--pins", "1"], 12, "no window"),
        ([], 2, "MODEL"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(sash: Run, arguments: list[str], code: int, says: str):
    found, out, err = sash("plan", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_a_plan_needs_tokens():
    with pytest.raises(UsageError):
        make_plan(PRESETS["mistral-7b"], 0, 1, "float32")


@pytest.mark.models
@pytest.mark.parametrize(
    ("name", "parameters"), [("gemma-3-270m", 268_098_176), ("smollm2-135m-instruct", 134_515_008)]
)
def test_real_models(name: str, parameters: int, capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["plan", name, "--context", "8K", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["parameters"] == parameters
    assert data["dtype"] == "bfloat16"
    assert data["rolling"]["kv_bytes"] <= data["full"]["kv_bytes"]
