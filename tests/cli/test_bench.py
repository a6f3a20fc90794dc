"""`sash bench`: tables of speed and memory, of small models, as a user asks for them. Nothing here is timed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sash.cli import bench
from sash.evaluation import limits
from sash.explain.presets import PRESETS
from sash.network.config import ModelConfig
from sash.network.shapes import n_parameters

Sash = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is not measured for long."""
    monkeypatch.setattr(limits, "BUFFER_BYTES", 2**16)
    monkeypatch.setattr(limits, "SHAPES", ((32, 64, 64),))
    monkeypatch.setattr(limits, "SECONDS", 0.01)


def test_every_line_that_was_asked_for_is_there(sash: Sash, windowed_model: Path):
    flags = ["-p", "5,40", "-n", "3", "-d", "0,30", "-b", "1,2", "--rounds", "2", "--chunk", "16", "--json"]
    code, out, err = sash("bench", windowed_model, *flags)
    found = json.loads(out)
    assert (code, err, found["interrupted"]) == (0, "", False)
    lines = [(r["task"], r["tokens"], r["depth"], r["streams"]) for r in found["results"]]
    assert lines == [
        ("read", 5, 0, 1), ("read", 40, 0, 1),
        ("write", 3, 0, 1), ("write", 3, 0, 2), ("write", 3, 30, 1), ("write", 3, 30, 2),
    ]  # fmt: skip
    for result in found["results"]:
        speeds = [result["tokens"] * result["streams"] / seconds for seconds in result["seconds"]]
        assert len(speeds) == 2
        assert result["speed"] == pytest.approx(sum(speeds) / 2)
        assert (result["speed_min"], result["speed_max"]) == (min(speeds), max(speeds))
        assert result["of_limit"] == pytest.approx(result["speed"] / result["limit"])
    assert found["limits"]["memory_read_bytes_per_second"] > 0
    assert set(found["limits"]["matrix_operations_per_second"]) == {"float32"}
    assert found["random_weights"] is False


def test_the_table(sash: Sash, full_model: Path):
    code, out, _ = sash("bench", full_model, "-p", "5", "-n", "2", "-r", "1", "--window", "4")
    lines = out.splitlines()
    assert code == 0
    assert "weights float32 119.0 KiB, KV float32, window 4 in 2 of 2 layers; ready in" in lines[0]
    assert "--window 4 is an ablation" in lines[1]
    assert lines[2].split() == ["tokens", "depth", "streams", "tok/s", "rounds", "limit", "reached", "bound", "by"]
    assert [line.split()[0] for line in lines[3:5]] == ["read", "write"]
    assert "GB/s" in lines[5]
    assert "matrix products, float32" in lines[6]


def test_reading_or_writing_alone(sash: Sash, windowed_model: Path):
    _, out, _ = sash("bench", windowed_model, "-p", "", "-n", "2", "-r", "1", "--json")
    assert [result["task"] for result in json.loads(out)["results"]] == ["write"]
    _, out, _ = sash("bench", windowed_model, "-p", "4", "-n", "0", "-r", "1", "--json")
    assert [result["task"] for result in json.loads(out)["results"]] == ["read"]


def test_a_made_up_shape(sash: Sash, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(bench.SHAPES, "1b", small(bench.SHAPES["1b"]))
    code, out, _ = sash("bench", "random:1b", "-p", "4", "-n", "2", "-r", "1")
    assert code == 0
    assert out.startswith("random:1b: weights bfloat16 ")
    assert "KV bfloat16, window 4,096 in 16 of 16 layers; ready in" in out
    assert "weights are random" in out


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_packed_weights_are_told(sash: Sash, windowed_model: Path, monkeypatch: pytest.MonkeyPatch, weights: str):
    monkeypatch.setitem(bench.SHAPES, "1b", small(bench.SHAPES["1b"]))
    for model in ("random:1b", windowed_model):
        code, out, _ = sash("bench", model, "-p", "4", "-n", "2", "-r", "1", "--weights", weights, "--json")
        found = json.loads(out)
        assert code == 0
        assert {weights} <= set(found["weights_bytes"]) <= {weights, "int8", "bf16", "bfloat16"}
        assert len(found["results"]) == 2


def small(config: ModelConfig) -> ModelConfig:
    return replace(config, vocab_size=50, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=48)


def test_the_shapes_are_those_that_are_promised():
    one = bench.SHAPES["1b"]
    assert (one.dim, one.n_layers, one.n_heads, one.n_kv_heads, one.head_dim) == (2048, 16, 16, 4, 128)
    assert (one.hidden_dim, one.vocab_size, one.windows) == (7168, 32_768, (4096,) * 16)
    assert 1.0e9 < n_parameters(one) < 1.1e9
    assert bench.SHAPES["7b"] == PRESETS["mistral-7b"]


def test_memory_of_a_ring_is_constant(sash: Sash, windowed_model: Path):
    code, out, _ = sash("bench", "memory", windowed_model, "-p", "10,100,200", "--json")
    found = json.loads(out)["footprints"]
    assert code == 0
    assert [one["n_tokens"] for one in found] == [0, 10, 100, 200]
    assert {one["cache"] for one in found} == {
        2 * 2 * 16 * 2 * 8 * 4
    }  # keys, values; layers, slots, heads, values, bytes
    assert all(one["resident"] is None or one["resident"] > 10_000_000 for one in found)


def test_an_int8_cache_is_told_and_smaller(sash: Sash, windowed_model: Path):
    _, out, _ = sash("bench", "memory", windowed_model, "-p", "10", "--kv", "int8", "--json")
    found = json.loads(out)
    assert found["kv_dtype"] == "int8"
    assert {one["cache"] for one in found["footprints"]} == {2 * 2 * 16 * 2 * (8 + 4)}  # a scale of 4 bytes a head


def test_memory_as_a_table(sash: Sash, windowed_model: Path):
    _, out, _ = sash("bench", "memory", windowed_model, "-p", "1K")
    assert out.splitlines()[1].split() == ["tokens", "read", "resident", "keys", "and", "values"]
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["0", "1,024"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["random:3b"], 4, "random:1b"),
        (["nowhere"], 4, "nowhere"),
        (["MODEL", "-p", "x"], 2, "-p takes a number"),
        (["MODEL", "-p", "0"], 2, "-p counts tokens of a prompt"),
        (["MODEL", "-b", "1,0"], 2, "-b counts streams"),
        (["MODEL", "-d", "-1"], 2, "-d counts tokens before"),
        (["MODEL", "--rounds", "0"], 2, "--rounds counts rounds"),
        (["MODEL", "--weights", "int3"], 2, "--weights is"),
        (["random:1b", "--weights", "int3"], 2, "--weights is"),
        (["random:1b", "--device", "cuda"], 2, "--device"),
        (["memory", "MODEL", "-p", "8,4"], 2, "ascend"),
        (["memory"], 2, "MODEL"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    sash: Sash, windowed_model: Path, arguments: list[str], code: int, says: str
):
    given = [str(windowed_model) if argument == "MODEL" else argument for argument in arguments]
    found, out, err = sash("bench", *given)
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1


def test_help(sash: Sash):
    _, out, _ = sash("bench")
    assert "memory" in out
    _, out, _ = sash("bench", "--help")
    assert "speed" in out
    _, out, _ = sash("bench", "speed", "--help")
    assert "--depths" in out


def test_ctrl_c_prints_what_there_is(windowed_model: Path, tmp_path: Path):
    """The prompt of ten million tokens is never done; the line before it is."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sash",
            "-v",
            "bench",
            str(windowed_model),
            "-p",
            "4,10M",
            "-n",
            "0",
            "-r",
            "1",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SASH_HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("read 4 tokens"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    found = json.loads(out)
    assert process.returncode == 130
    assert found["interrupted"] is True
    assert [result["tokens"] for result in found["results"]] == [4]
    assert "interrupted" in err
