"""Mistral 7B at its full size, with random weights: needs 24 GiB of memory and 15 GB of disk (make test-large)."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sash.checkpoint import open_checkpoint, quantized
from sash.checkpoint.description import read_description
from sash.checkpoint.load import load_weights
from sash.evaluation.random_weights import RandomCheckpoint, random_part
from sash.explain.presets import PRESETS
from sash.families import Description
from sash.lm import LM
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.shapes import n_parameters, parameter_shapes
from tests.conftest import ByteTokenizer

PARAMETERS = 7_241_732_096
HUGGINGFACE = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "sliding_window": 4096,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
NATIVE = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-5,
    "sliding_window": 4096,
    "vocab_size": 32000,
}


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Random bfloat16 weights of these shapes, one tensor after the other, so that memory stays small."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            left = math.prod(shape)
            scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5
            block = (noise * scale + (len(shape) == 1)).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
            while left:
                count = min(left, noise.numel())
                file.write(block[: 2 * count])
                left -= count


@pytest.fixture(params=["huggingface", "native"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if shutil.disk_usage(tmp_path).free < 16 * 10**9:
        pytest.fail("this test writes a checkpoint of 14.5 GB: make room, or set TMPDIR to where there is some")
    name = "config.json" if request.param == "huggingface" else "params.json"
    values = HUGGINGFACE if request.param == "huggingface" else NATIVE
    (tmp_path / name).write_text(json.dumps(values))
    from sash.families import describe

    description = describe("huggingface" if request.param == "huggingface" else "mistral", values)
    assert isinstance(description.config, ModelConfig)
    shapes = parameter_shapes(description.config)
    file = "model.safetensors" if request.param == "huggingface" else "consolidated.safetensors"
    write_safetensors(tmp_path / file, {description.weights[ours]: shape for ours, shape in shapes.items()})
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.large
@pytest.mark.timeout(3600)
def test_mistral_7b_at_full_size(folder: Path) -> None:
    torch.set_num_threads(2)
    with open_checkpoint(folder) as checkpoint:
        description = read_description(checkpoint)
        config = description.decoder
        decoder = load_weights(lambda: Decoder(config), description, checkpoint, torch.bfloat16, torch.device("cpu"))
    assert isinstance(decoder, Decoder)
    assert n_parameters(config) == PARAMETERS == sum(p.numel() for p in decoder.parameters())
    assert config.windows == (4096,) * 32
    assert config.reach == 131_040
    lm = LM(decoder, ByteTokenizer(), name="mistral-7b")
    assert lm.cache().nbytes == 512 * 2**20
    completion = lm.generate("Mistral", max_tokens=8, temperature=0, ignore_eos=True)
    assert len(completion.token_ids) == 8
    assert completion.stats.kv_bytes == 512 * 2**20
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) * 1024 < 24 * 2**30


MAPPED = """
import sys
import sash.loading
from tests.conftest import ByteTokenizer

sash.loading.tokenizer_of = lambda checkpoint: ByteTokenizer()
lm = sash.load(sys.argv[1])
lm.generate([3, 4, 5, 6], max_tokens=1, ignore_eos=True)
print(next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


@pytest.mark.large
@pytest.mark.timeout(3600)
def test_mistral_7b_in_4_bits_takes_little_more_memory_than_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PRESETS["mistral-7b"]
    checkpoint = RandomCheckpoint(config)
    description = Description(config, {name: name for name in checkpoint.names()})
    monkeypatch.setattr(quantized, "copy_tokenizer", lambda checkpoint, target: "folder")
    monkeypatch.setattr(quantized, "copy_licence", lambda checkpoint, target: None)
    monkeypatch.setattr(quantized.PartPlan, "make", lambda plan: random_part(plan.part, plan.form))
    quantized.save_quantized(checkpoint, description, tmp_path / "q", weights="int4")
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    assert size < 4.3 / 8 * PARAMETERS
    # In a process of its own, so that only loading counts; every weight is read once to write a token.
    command = [sys.executable, "-c", MAPPED, str(tmp_path / "q")]
    told = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True, timeout=900
    )
    shutil.rmtree(tmp_path / "q")
    assert size < int(told.stdout) < 1.1 * size
