"""From a checkpoint to a network: what does not fit is named, and what fits is not copied."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern
from sash.checkpoint import open_checkpoint
from sash.checkpoint.description import read_description
from sash.checkpoint.load import load_weights, resolve_dtype
from sash.errors import CheckpointError, ConfigError, SashError, UnsupportedError, UsageError
from sash.families import Description
from sash.network.batch import Batch
from sash.network.config import MoEConfig
from sash.network.decoder import Decoder
from tests.conftest import small_config, small_decoder

CPU = torch.device("cpu")
MIXTURE = MoEConfig(n_experts=3, top_k=2)
PARAMS: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "hidden_dim": 40,
    "norm_eps": 1e-5,
    "vocab_size": 61,
    "sliding_window": 5,
    "rope_theta": 1e4,
}


def folder(path: Path, weights: dict[str, Tensor], **changes: object) -> Path:
    """A folder in Mistral's own layout, whose names of tensors are those of the network."""
    (path / "params.json").write_text(json.dumps({**PARAMS, **changes}))
    safetensors.torch.save_file(weights, path / "consolidated.safetensors")
    return path


def weights_of(*, dtype: torch.dtype = torch.bfloat16, moe: MoEConfig | None = None) -> dict[str, Tensor]:
    decoder = small_decoder(small_config([AttentionPattern(window=5)] * 2, moe=moe))
    return {name: tensor.to(dtype) for name, tensor in decoder.named_parameters()}


def load(path: Path, dtype: torch.dtype = torch.bfloat16) -> Decoder:
    with open_checkpoint(path) as checkpoint:
        description = read_description(checkpoint)
        decoder = load_weights(lambda: Decoder(description.decoder), description, checkpoint, dtype, CPU)
    assert isinstance(decoder, Decoder)
    return decoder


def mapped_from(address: int) -> str:
    """The file that this process has mapped at an address; empty for memory of no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)  # range, rights, offset, device, inode, and the file if there is one
        first, last = (int(part, 16) for part in fields[0].split("-"))
        if first <= address < last:
            return fields[5] if len(fields) > 5 else ""
    return ""


def test_every_weight_arrives(tmp_path: Path) -> None:
    weights = weights_of()
    decoder = load(folder(tmp_path, weights))
    assert not decoder.training
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert not parameter.requires_grad


def test_the_stored_type_is_read_in_place(tmp_path: Path) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("what a process has mapped is read from /proc, which only Linux has")
    path = folder(tmp_path, weights_of())
    file = str(path / "consolidated.safetensors")
    assert {mapped_from(parameter.data_ptr()) for parameter in load(path).parameters()} == {file}
    for parameter in load(path, torch.float32).parameters():
        assert mapped_from(parameter.data_ptr()) != file
        assert parameter.dtype == torch.float32


def test_what_is_read_in_place_outlives_the_checkpoint_and_is_never_written_back(tmp_path: Path) -> None:
    path = folder(tmp_path, weights_of())
    before = (path / "consolidated.safetensors").read_bytes()
    decoder = load(path)
    with torch.no_grad():
        decoder.norm.weight.zero_()
    assert decoder.norm.weight.count_nonzero() == 0
    assert (path / "consolidated.safetensors").read_bytes() == before


def fused(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A Mixtral of one layer whose experts are two tensors a layer."""
    config = {
        "model_type": "mixtral",
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
    }
    shapes = {
        "model.embed_tokens": (61, 32),
        "model.norm": (32,),
        "lm_head": (61, 32),
        **{f"model.layers.0.{norm}_layernorm": (32,) for norm in ("input", "post_attention")},
        **{
            f"model.layers.0.self_attn.{w}_proj": (rows, 32) for w, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 32))
        },
        "model.layers.0.mlp.gate": (3, 32),
    }
    generator = torch.Generator().manual_seed(0)
    weights = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["model.layers.0.mlp.experts.gate_up_proj"] = torch.randn(3, 80, 32, generator=generator)
    weights["model.layers.0.mlp.experts.down_proj"] = torch.randn(3, 32, 40, generator=generator)
    (path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(weights, path / "model.safetensors")
    return path, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_experts_are_views_of_one_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    path, weights = fused(tmp_path)
    decoder = load(path, dtype)
    mixture = decoder.mixtures()[0]
    both, down = (weights[f"model.layers.0.mlp.experts.{name}"].to(dtype) for name in ("gate_up_proj", "down_proj"))
    storages = set()
    for index, expert in enumerate(mixture.experts):
        assert torch.equal(expert.w1.weight, both[index, :40])
        assert torch.equal(expert.w3.weight, both[index, 40:])
        assert torch.equal(expert.w2.weight, down[index])
        storages |= {(w, getattr(expert, w).weight.untyped_storage().data_ptr()) for w in ("w1", "w2", "w3")}
    assert len(storages) == 3  # a name and a storage: each kind of matrix lies in one storage for all experts
    first = mixture.experts[0]
    assert first.w1.weight.untyped_storage().data_ptr() == first.w3.weight.untyped_storage().data_ptr()


def test_nothing_is_left_without_memory(tmp_path: Path) -> None:
    """Buffers that are no weights, such as a router's counters, are real and zero: the network runs."""
    moe = {"num_experts": 3, "num_experts_per_tok": 2}
    decoder = load(folder(tmp_path, weights_of(moe=MIXTURE), moe=moe), torch.float32)
    assert [name for name, tensor in (*decoder.named_parameters(), *decoder.named_buffers()) if tensor.is_meta] == []
    assert decoder.mixtures()[1].expert_tokens_E.tolist() == [0, 0, 0]
    with torch.no_grad():
        decoder(Batch.pack([[1, 2, 3, 4, 5, 6, 7]]))
    assert int(decoder.mixtures()[1].expert_tokens_E.sum()) == 14


WRONG: dict[str, tuple[dict[str, object], dict[str, Tensor | None], type[SashError], str]] = {
    # name: (changes of params.json, changes of the tensors, error, what it says)
    "another shape": (
        {"hidden_dim": 44},
        {},
        CheckpointError,
        r"tensor layers\.0\.feed_forward\.w1\.weight is \[40, 32\], but the configuration makes it \[44, 32\]",
    ),
    "another rank": (
        {},
        {"norm.weight": torch.ones(32, 1)},
        CheckpointError,
        r"tensor norm\.weight is \[32, 1\], but the configuration makes it \[32\]",
    ),
    "a transposed matrix": (
        {},
        {"layers.1.feed_forward.w2.weight": torch.ones(40, 32)},
        CheckpointError,
        r"tensor layers\.1\.feed_forward\.w2\.weight is \[40, 32\]",
    ),
    "a missing tensor": (
        {},
        {"layers.1.attention.wo.weight": None},
        CheckpointError,
        r"tensor layers\.1\.attention\.wo\.weight is missing",
    ),
    "a missing layer": ({"n_layers": 3}, {}, CheckpointError, r"tensor layers\.2\.\S+ and 8 more is missing"),
    "a spare tensor": (
        {},
        {"layers.0.attention.wq.bias": torch.ones(32)},
        ConfigError,
        r"tensor layers\.0\.attention\.wq\.bias is not understood",
    ),
    "a spare layer": ({"n_layers": 1}, {}, ConfigError, r"tensor layers\.1\.\S+ is not understood .*\(and 8 more\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_one_clear_error(name: str, tmp_path: Path) -> None:
    changes, tensors, error, says = WRONG[name]
    weights = {key: tensor for key, tensor in {**weights_of(), **tensors}.items() if tensor is not None}
    with pytest.raises(error, match=says) as caught:
        load(folder(tmp_path, weights, **changes))
    assert "\n" not in str(caught.value)
    assert re.search(r"[a-z)]$", str(caught.value))


def test_a_network_that_its_family_does_not_describe(tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path, weights_of())) as checkpoint:
        description = read_description(checkpoint)
        less = {ours: theirs for ours, theirs in description.weights.items() if ours != "norm.weight"}
        with pytest.raises(UnsupportedError, match=r"parameter norm\.weight"):
            load_weights(
                lambda: Decoder(description.decoder),
                Description(description.config, less),
                checkpoint,
                torch.float32,
                CPU,
            )


CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("stored", "device", "expected"),
    [
        (torch.bfloat16, CPU, torch.bfloat16),
        (torch.float32, CPU, torch.float32),
        (torch.float16, CPU, torch.bfloat16),
        (torch.float16, CUDA, torch.float16),
        (torch.bfloat16, CUDA, torch.bfloat16),
    ],
)
def test_by_default_what_most_of_it_is_stored_in(
    stored: torch.dtype, device: torch.device, expected: torch.dtype, tmp_path: Path
) -> None:
    weights = weights_of(dtype=stored)
    weights["norm.weight"] = weights["norm.weight"].float()
    weights["layers.0.attention_norm.weight"] = weights["layers.0.attention_norm.weight"].half()
    with open_checkpoint(folder(tmp_path, weights)) as checkpoint:
        assert resolve_dtype(None, checkpoint, device) == expected
        assert resolve_dtype("auto", checkpoint, device) == expected


def test_quantised_files_are_computed_in_bfloat16(write: Any, gguf: Any) -> None:
    with open_checkpoint(write("model.gguf", gguf.small())) as checkpoint:
        assert checkpoint.dtype_name("output.weight") == "Q4_K"
        assert resolve_dtype(None, checkpoint, CPU) == torch.bfloat16


def test_a_dtype_by_name(tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path, weights_of())) as checkpoint:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[name]
            assert {resolve_dtype(asked, checkpoint, CPU) for asked in (dtype, name, short)} == {dtype}
        for unknown in ("float64", "int8", "", "FP32"):
            with pytest.raises(UsageError, match=f"dtype '{unknown}' is not known: use auto, float32"):
                resolve_dtype(unknown, checkpoint, CPU)
        for dtype in (torch.float64, torch.int8):
            with pytest.raises(UsageError, match=f"dtype {dtype} cannot be computed in: use one of float32"):
                resolve_dtype(dtype, checkpoint, CPU)
