"""Decoders over packed weights in torch: every part in its place, whatever the architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sash.attention.pattern import AttentionPattern
from sash.attention.torch_backend import attend_segment
from sash.checkpoint.packed_parts import packed_parts
from sash.checkpoint.safetensors import SafetensorsFile
from sash.checkpoint.source import Checkpoint
from sash.errors import UsageError
from sash.families import Description
from sash.kernels import native
from sash.kernels.packed import PackedWeight, dequantize
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig, MoEConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder
from sash.network.packed import network_of, packed_decoder
from sash.network.parts import parts_of
from sash.network.shapes import parameter_shapes
from sash.quantize import modules
from tests.conftest import small_config, small_decoder

PATTERNS = [AttentionPattern(window=5), AttentionPattern()]
INNER = MoEConfig(n_experts=2, top_k=1)
CONFIGS = {
    "mistral": small_config(PATTERNS),
    "tied": small_config(PATTERNS, tied_embeddings=True, embedding_scale=5.5),
    "one key/value head": small_config(PATTERNS, n_kv_heads=1),
    "qwen2": small_config(PATTERNS, qkv_bias=True, n_kv_heads=1),
    "gemma3": small_config(PATTERNS, qk_norm=True, post_norms=True, norm_offset=1.0, activation="gelu_tanh"),
    "mixtral": small_config(PATTERNS, moe=MoEConfig(n_experts=3, top_k=2)),
    "mixture of mixtures": small_config(PATTERNS, moe=MoEConfig(n_experts=2, top_k=2, expert=INNER)),
}


def checkpoint_of(decoder: Decoder, folder: Path) -> tuple[Checkpoint, Description]:
    """Its parameters in a file, under our own names."""
    weights = dict(decoder.named_parameters())
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    file = SafetensorsFile.open(folder / "weights.safetensors")
    tensors = {name: (file.file, stored) for name, stored in file.tensors.items()}
    checkpoint = Checkpoint(kind="mistral", path=folder, config={}, files=(file.file,), tensors=tensors)
    return checkpoint, Description(decoder.config, {name: name for name in weights})


def plain_weights(config: ModelConfig, parts: dict[str, PackedWeight | Tensor]) -> dict[str, Tensor]:
    """What packed parts stand for, by the names of a decoder's parameters."""
    found = {}
    for name, part in parts_of(config).items():
        value = parts[name]
        rows = dequantize(value) if isinstance(value, PackedWeight) else value
        if part.join == "tiles":
            half = rows.view(-1, 2, 16, part.k)
            found |= {source: half[:, i].flatten(0, 1)[: part.rows[0]] for i, source in enumerate(part.sources)}
            continue
        first = 0
        for source, n in zip(part.sources, part.rows, strict=True):
            found[source] = rows[first : first + n]
            first += -(-n // 16) * 16
    return found


@pytest.fixture
def exact_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products with what the packed values stand for, so that only wrong places can make a difference."""
    monkeypatch.setattr(modules, "linear", lambda x_TK, weight: x_TK @ dequantize(weight).T)


@pytest.mark.usefixtures("exact_linear")
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_the_plain_decoder_does_with_the_same_weights(tmp_path, name, weights):
    config = CONFIGS[name]
    parts = packed_parts(*checkpoint_of(small_decoder(config), tmp_path), weights)
    assert set(parts) == set(parts_of(config))
    plain = Decoder(config).eval()
    wanted = plain_weights(config, parts)
    assert {source: tuple(rows.shape) for source, rows in wanted.items()} == parameter_shapes(config)
    plain.load_state_dict(wanted, strict=False)
    packed = packed_decoder(config, parts, torch.float32)
    assert not any(parameter.is_meta for parameter in packed.parameters())
    batch = Batch.pack([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5]])
    with torch.no_grad():
        hidden_TD, expected_TD = packed(batch), plain(batch)
        assert torch.allclose(hidden_TD, expected_TD, atol=1e-4, rtol=1e-4)
        assert torch.allclose(packed.logits(hidden_TD), plain.logits(expected_TD), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("weights", "error"), [("bf16", 0.02), ("int8", 0.05)])
def test_with_rounded_activations_it_stays_near(tmp_path, weights, error):
    config = CONFIGS["mistral"]
    decoder = small_decoder(config)
    packed = packed_decoder(config, packed_parts(*checkpoint_of(decoder, tmp_path), weights), torch.float32)
    batch = Batch.pack([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        wanted_TV, got_TV = decoder.logits(decoder(batch)), packed.logits(packed(batch))
    assert 1e-6 < (got_TV - wanted_TV).norm() / wanted_TV.norm() < error


def test_it_reads_through_a_cache_in_chunks_as_in_one(tmp_path):
    config = CONFIGS["gemma3"]
    parts = packed_parts(*checkpoint_of(small_decoder(config), tmp_path), "int8")
    decoder, ids = packed_decoder(config, parts, torch.float32), [7, 3, 1, 4, 1, 5, 9, 2, 6, 5]
    with torch.no_grad():
        whole_TD = decoder(Batch.pack([ids]))
        cache = KVCache(config, 1, torch.float32, torch.device("cpu"))
        row = cache.allocate()
        chunks = [decoder(Batch.pack([ids[a : a + 3]], [a], [row]), cache) for a in range(0, len(ids), 3)]
    assert torch.allclose(torch.cat(chunks), whole_TD, atol=1e-3, rtol=1e-3)


def test_another_window_sees_the_same_packed_weights(tmp_path):
    config = CONFIGS["mistral"]
    parts = packed_parts(*checkpoint_of(small_decoder(config), tmp_path), "int8")
    decoder = packed_decoder(config, parts, torch.float32)
    other = decoder.with_config(config.with_window(2))
    assert other.tok_embeddings.weight is decoder.tok_embeddings.weight
    batch = Batch.pack([[3, 1, 4, 1, 5, 9, 2, 6]])
    fresh = packed_decoder(config.with_window(2), parts, torch.float32)
    with torch.no_grad():
        assert torch.equal(other(batch), fresh(batch))
        assert not torch.equal(other(batch), decoder(batch))


def test_parts_that_are_not_packed_where_they_should_be_are_refused(tmp_path):
    config = CONFIGS["mistral"]
    parts = packed_parts(*checkpoint_of(small_decoder(config), tmp_path), "int8")
    with pytest.raises(UsageError, match="wo is not packed"):
        packed_decoder(config, parts | {"layers.0.attention.wo": torch.zeros(32, 32)}, torch.float32)
    with pytest.raises(UsageError, match="w2 is not packed"):
        packed_decoder(config, parts | {"layers.1.feed_forward.w2": torch.zeros(32, 40)}, torch.float32)


def test_the_kernels_run_what_they_can_and_torch_the_rest(tmp_path):
    config = small_config(PATTERNS, head_dim=16)
    parts = packed_parts(*checkpoint_of(small_decoder(config), tmp_path), "int8")
    assert isinstance(network_of(config, parts, torch.float32), Decoder)
    assert isinstance(network_of(config, parts, torch.bfloat16, attend_segment), Decoder)
    expected = FusedDecoder if native.available() else Decoder
    assert isinstance(network_of(config, parts, torch.bfloat16), expected)


def test_nothing_packed_is_a_parameter(tmp_path):
    config = CONFIGS["mistral"]
    parts = packed_parts(*checkpoint_of(small_decoder(config), tmp_path), "int4")
    decoder = packed_decoder(config, parts, torch.bfloat16)
    assert {name.split(".")[-2] for name, _ in decoder.named_parameters()} == {"attention_norm", "ffn_norm", "norm"}
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in decoder.modules())
    assert decoder.dtype == torch.bfloat16
