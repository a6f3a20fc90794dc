"""`sash show`: every figure of a model from the tables of its files, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sash import hub
from sash.cli.window_words import windows_by_layer
from sash.explain.presets import PRESETS
from sash.network.sizing import kv_bytes

Sash = Callable[..., tuple[int, str, str]]


def test_a_windowed_model(sash: Sash, windowed_model: Path):
    code, out, err = sash("show", windowed_model)
    assert (code, err) == (0, "")
    rows = {line[:13].strip(): line[13:].strip() for line in out.splitlines() if line[:13].strip()}
    assert rows["architecture"] == "mistral (decoder, GQA 4/2, head 8)"
    assert rows["window"] == "16 in 2 of 2 layers"
    assert rows["reach"].startswith("30 positions back")
    assert rows["tokenizer"] == "BPE (tokenizer.json)"
    assert rows["chat template"] == "yes"
    assert rows["licence"] == "cc0-1.0"
    assert "query i sees keys i-15 .. i" in out
    assert "ablation" not in out


def test_the_json_has_the_same_figures_as_the_files(sash: Sash, windowed_model: Path):
    code, out, _ = sash("show", windowed_model, "--json")
    found = json.loads(out)
    config = json.loads((windowed_model / "config.json").read_text())
    assert code == 0
    assert found["windows"] == [16, 16]
    assert found["reach"] == 30
    assert found["context"] == config["max_position_embeddings"]
    n_weights = 2 * 260 * 32 + 32 + 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 40)
    assert found["parameters"] == found["active_parameters"] == n_weights
    assert found["stored_bytes"] == 4 * n_weights
    assert found["stored_dtypes"] == {"F32": n_weights}
    assert found["kv_bytes"]["128K"]["rolling"] == found["kv_bytes"]["4K"]["rolling"] == 2 * 2 * 16 * 2 * 8 * 4
    assert found["kv_bytes"]["32K"]["full"] == 2 * 2 * 32_768 * 2 * 8 * 4
    assert found["kv_bytes_int8"]["128K"]["rolling"] == 2 * 2 * 16 * 2 * (8 + 4)
    assert found["kv_bytes_int8"]["32K"]["full"] == 2 * 2 * 32_768 * 2 * (8 + 4)
    assert found["chat_template"] is True
    assert found["notes"] == []


def test_a_model_without_a_window_says_that_one_would_be_an_ablation(sash: Sash, full_model: Path, base_model: Path):
    code, out, _ = sash("show", full_model)
    assert code == 0
    assert "this checkpoint has no sliding window; --window N would be an ablation" in out
    assert "full in 2 of 2 layers" in out
    assert "query i sees" not in out
    assert json.loads(sash("show", base_model, "--json")[1])["chat_template"] is False


def test_layers(sash: Sash, windowed_model: Path):
    lines = sash("show", windowed_model, "--layers")[1].splitlines()
    assert [line.split() for line in lines[-3:]] == [
        ["layer", "window", "rope", "base", "scaling", "experts"],
        ["1", "16", "10,000", "-", "-"],
        ["2", "16", "10,000", "-", "-"],
    ]


def test_models_known_by_their_figures(sash: Sash):
    code, out, _ = sash("show", "mistral-7b")
    assert code == 0
    assert "7.24 B (7,241,732,096)" in out
    assert "131,040 positions back through 32 layers" in out
    rolling = next(line for line in out.splitlines() if line.startswith("rolling"))
    assert rolling.split() == ["rolling", "512.0", "MiB", "512.0", "MiB", "512.0", "MiB"]
    mixtral = sash("show", "mixtral-8x7b")[1]
    assert "46.70 B, 12.88 B active a token" in mixtral
    assert "no sliding window" in mixtral
    assert "2 of 8" in sash("show", "mixtral-8x7b", "--layers")[1]


def test_windows_of_interleaved_layers_in_words():
    mistral = PRESETS["mistral-7b"]
    windowed, full = mistral.layers[0], PRESETS["mixtral-8x7b"].layers[0]
    from dataclasses import replace

    gemma = replace(mistral, layers=((windowed,) * 5 + (full,)) * 3)
    assert windows_by_layer(gemma) == "4,096 in 15 of 18 layers, full in layers 6, 12, 18"
    assert windows_by_layer(replace(mistral, layers=(full, windowed, windowed))) == (
        "4,096 in 2 of 3 layers, full in layer 1"
    )


def test_torch_is_not_imported(windowed_model: Path, tmp_path: Path):
    code = (
        "import sys; from sash import cli\n"
        f"code = cli.execute(['show', {str(windowed_model)!r}, '--layers'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (child.returncode, child.stderr) == (0, "")


def test_a_model_without_a_tokenizer_is_still_shown(sash: Sash, windowed_model: Path, tmp_path: Path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((windowed_model / name).read_bytes())
    code, out, _ = sash("show", folder)
    assert code == 0
    assert "no tokenizer in" in out
    assert "not stated" in out


@pytest.mark.parametrize(("name", "code"), [("mistral-8b", 4), ("./nothing", 6)])
def test_what_is_not_there(sash: Sash, name: str, code: int):
    found, out, err = sash("show", name)
    assert (found, out, err.count("\n")) == (code, "", 1)


@pytest.mark.models
def test_gemma_of_the_catalogue(capsys: pytest.CaptureFixture[str]):
    from sash import cli

    assert cli.execute(["show", "gemma-3-270m"]) == 0
    out = capsys.readouterr().out
    assert "512 in 15 of 18 layers, full in layers 6, 12, 18" in out
    assert "W counts the token itself: query i sees keys i-511 .. i" in out
    assert hub.catalogue()["gemma-3-270m"].licence in out
    from sash.cli.known_model import look_up

    config = look_up("gemma-3-270m").config
    assert "391.5 MiB" in out
    assert kv_bytes(config, 131_072, 2) == 391.5 * 2**20  # type: ignore[arg-type]
