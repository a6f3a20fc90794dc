"""`sash explain`, as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sash import cli, hub
from sash.cli.known_model import look_up
from sash.families import describe
from sash.network.shapes import parameter_shapes

DRAWING = """\
Full Attention (N=8):      Sliding Window (N=8, W=4):
  1 2 3 4 5 6 7 8            1 2 3 4 5 6 7 8   (Columns = Keys)
1 X                        1 X
2 X X                      2 X X
3 X X X                    3 X X X
4 X X X X                  4 X X X X
5 X X X X X                5   X X X X           <-- Token 5 attends to 2,3,4,5
6 X X X X X X              6     X X X X         <-- Token 6 attends to 3,4,5,6
7 X X X X X X X            7       X X X X       <-- Token 7 attends to 4,5,6,7
8 X X X X X X X X          8         X X X X     <-- Token 8 attends to 5,6,7,8
(Rows = Queries)           (X = Calculated Attention)
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sash(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line over an empty store: exit code, standard output, standard error."""
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.execute(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Mistral of three layers and a window of 4, without a tokenizer."""
    config = {
        "model_type": "mistral",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "sliding_window": 4,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    }
    path = tmp_path / "small"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    description = describe("huggingface", config)
    shapes = parameter_shapes(description.decoder)
    tensors = {theirs: torch.zeros(shapes[ours]) for ours, theirs in description.weights.items()}
    save_file(tensors, path / "model.safetensors")
    return path


def test_mask_draws_full_and_windowed_side_by_side(sash: Run):
    assert sash("explain", "mask") == (0, DRAWING, "")
    assert sash("explain", "mask", "--window", "4", "--len", "8") == (0, DRAWING, "")


def test_mask_labels_with_words(sash: Run):
    code, out, _ = sash("explain", "mask", "--window", "2", "--pins", "1", "--prompt", "the cat sat down")
    assert code == 0
    assert "down P       X   X" in out
    assert "P = Pinned" in out


def test_mask_of_a_longformer_layer(sash: Run):
    code, out, _ = sash("explain", "mask", "--symmetric", "--window", "3", "--global", "0", "--len", "6", "--json")
    assert code == 0
    full, windowed = json.loads(out)["matrices"]
    assert full["rows"] == ["XXXXXX"] * 6
    assert windowed["rows"] == ["XXGGGG", "XXX...", "GXXX..", "G.XXX.", "G..XXX", "G...XX"]
    assert windowed["causal"] is False


def test_mask_says_when_nothing_slides_out(sash: Run):
    _, out, _ = sash("explain", "mask", "--window", "9", "--len", "5")
    assert out.endswith("All 5 tokens are within the window: nothing slides out.\n")


def test_reach(sash: Run):
    code, out, _ = sash("explain", "reach", "--window", "3", "--layers", "2", "--len", "9", "--json")
    data = json.loads(out)
    assert code == 0
    assert [layer["earliest_reached"] for layer in data["layers"]] == [6, 4]
    found = {"direct": 3, "relay": 2, "out": 4}
    assert data["counts"] == {"pinned": 0, "global": 0, "summarised": 0, "recalled": 0} | found
    code, out, _ = sash("explain", "reach", "--prompt", "a b c d e", "--window", "2")
    assert code == 0
    assert out.splitlines()[5] == "moves   - 3 2 1 0"


def test_reach_of_mistral_7b(sash: Run):
    code, out, _ = sash("explain", "reach", "--model", "mistral-7b", "--len", "200000", "--json")
    assert code == 0
    assert json.loads(out)["layers"][-1]["earliest_reached"] == 199_999 - 131_040


def test_cache(sash: Run):
    code, out, _ = sash("explain", "cache", "--window", "3", "--prompt", "The cat sat on the mat")
    assert code == 0
    assert out.splitlines()[-1].split() == ["5", "on", "the", "[mat]", "sat", "slid", "out"]
    _, out, _ = sash("explain", "cache", "--window", "3", "--pins", "1", "--len", "5", "--json")
    assert json.loads(out)["buffers"][0]["frames"][4]["ring"] == [3, 4, 2]


def test_budget_of_mistral_7b(sash: Run):
    code, out, _ = sash("explain", "budget", "--model", "mistral-7b", "--len", "16K", "--json")
    factors = json.loads(out)["factors"]
    assert code == 0
    assert (factors["kv"], round(factors["pairs"], 2), round(factors["model"], 2)) == (4.0, 2.29, 1.15)
    code, out, _ = sash("explain", "budget")
    assert (code, "8.00x" in out, "1.41x" in out) == (0, True, True)


def test_a_model_brings_its_own_windows(sash: Run, folder: Path):
    code, out, _ = sash("explain", "mask", "--model", str(folder), "--json")
    assert code == 0
    assert json.loads(out)["matrices"][1]["layers"] == [1, 2, 3]
    assert json.loads(out)["matrices"][1]["window"] == 4
    code, out, _ = sash("explain", "reach", "--model", str(folder), "--len", "20", "--json")
    assert json.loads(out)["layers"][-1]["earliest_reached"] == 19 - 3 * 3
    code, out, _ = sash("explain", "cache", "--model", str(folder))
    assert out.startswith("Rolling buffer of 4 slots in layers 1-3")
    code, out, _ = sash("explain", "budget", "--model", str(folder), "--len", "32", "--json")
    assert json.loads(out)["factors"]["kv"] == 8.0
    assert json.loads(out)["itemsize"] == 4


def test_a_forced_window_is_labelled_an_ablation(sash: Run, folder: Path):
    for verb in ("mask", "reach", "cache", "budget"):
        _, out, _ = sash("explain", verb, "--model", str(folder), "--window", "2")
        assert "--window 2 is an ablation" in out
        _, out, _ = sash("explain", verb, "--model", str(folder), "--window", "2", "--json")
        assert "ablation" in json.loads(out)["notes"][0]


def test_usual_dtype_is_what_the_loader_chooses(folder: Path):
    from sash.checkpoint import open_checkpoint
    from sash.checkpoint.load import resolve_dtype

    for dtype, name in ((torch.float32, "float32"), (torch.float16, "bfloat16"), (torch.bfloat16, "bfloat16")):
        description = describe("huggingface", json.loads((folder / "config.json").read_text()))
        shapes = parameter_shapes(description.decoder)
        tensors = {theirs: torch.zeros(shapes[ours], dtype=dtype) for ours, theirs in description.weights.items()}
        save_file(tensors, folder / "model.safetensors")
        with open_checkpoint(folder) as checkpoint:
            assert str(resolve_dtype(None, checkpoint, torch.device("cpu"))) == f"torch.{name}"
        assert look_up(str(folder)).dtype == name


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["mask", "--window", "0"], 10, "window of 0"),
        (["mask", "--window", "-2"], 10, "window of -2"),
        (["mask", "--window", "4", "--symmetric"], 10, "odd"),
        (["mask", "--pins", "5"], 12, "at most 4"),
        (["mask", "--window", "full", "--pins", "1"], 12, "full pattern"),
        (["mask", "--len", "0"], 2, "--len"),
        (["mask", "--len", "65"], 2, "at most 64"),
        (["mask", "--len", "many"], 2, "--len"),
        (["mask", "--dilation", "0"], 14, "dilation"),
        (["mask", "--global", "8"], 2, "position 8"),
        (["mask", "--prompt", ""], 11, "no tokens"),
        (["mask", "--prompt", "  "], 11, "no tokens"),
        (["mask", "--prompt", "a", "--len", "3"], 2, "not both"),
        (["mask", "--prompt", "caf\udce9"], 9, ""),
        (["mask", "--window", "auto"], 2, "--model"),
        (["mask", "--model", "nonsense"], 4, "nonsense"),
        (["mask", "--model", "./nowhere"], 6, "nowhere"),
        (["mask", "--model", "mistral-7b", "--symmetric"], 2, "model's own"),
        (["mask", "--model", "mistral-7b", "--global", "0"], 2, "no global tokens"),
        (["mask", "--model", "mistral-7b", "--prompt", "a"], 2, "no tokenizer"),
        (["mask", "--model", "mistral-7b", "--window", "0"], 10, "window of 0"),
        (["mask", "--model", "mixtral-8x7b", "--pins", "4"], 12, "no window"),
        (["reach", "--layers", "0"], 2, "--layers"),
        (["reach", "--len", "0"], 2, "--len"),
        (["cache", "--window", "full"], 13, "--window"),
        (["cache", "--len", "65"], 2, "at most 64"),
        (["budget", "--len", "0"], 2, "--len"),
        (["budget", "--dtype", "int3"], 2, "int3"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(sash: Run, arguments: list[str], code: int, says: str):
    found, out, err = sash("explain", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def test_explain_alone_lists_its_verbs(sash: Run):
    code, out, err = sash("explain")
    assert (code, err) == (0, "")
    assert all(verb in out for verb in ("mask", "reach", "cache", "budget"))


@pytest.mark.models
def test_a_real_model_draws_with_its_own_tokens(capsys: pytest.CaptureFixture[str]):
    model = str(hub.resolve("gemma-3-270m"))
    assert cli.execute(["explain", "mask", "--model", model, "--prompt", "It is a truth", "--json"]) == 0
    full, windowed = json.loads(capsys.readouterr().out)["matrices"]
    assert windowed["labels"] == ["<bos>", "It", "▁is", "▁a", "▁truth"]
    assert (full["layers"], windowed["window"]) == ([6, 12, 18], 512)
    assert cli.execute(["explain", "reach", "--model", model, "--len", "10000", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["layers"][1]["earliest_direct"] == 10_000 - 512
    assert data["counts"]["direct"] == 10_000
    assert cli.execute(["explain", "cache", "--model", model, "--prompt", "It is a truth"]) == 0
    assert "3 layers see everything" in capsys.readouterr().out
