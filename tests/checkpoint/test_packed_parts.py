"""Which weights are packed how, by where they come from; and that only what is needed is read."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern
from sash.checkpoint import open_checkpoint
from sash.checkpoint.description import read_description
from sash.checkpoint.packed_parts import packed_parts, plan_parts, source_digest
from sash.errors import CheckpointError, UnsupportedError, UsageError
from sash.families import Description
from sash.kernels import blocks, native
from sash.kernels.packed import PackedWeight, dequantize
from tests.conftest import small_config, small_decoder
from tests.network.test_packed import checkpoint_of

DIM, HIDDEN, VOCAB, N_LAYERS = 128, 256, 64, 1
SHAPES = {
    "token_embd": (VOCAB, DIM),
    "output": (VOCAB, DIM),
    "output_norm": (DIM,),
    "blk.0.attn_norm": (DIM,),
    "blk.0.attn_q": (DIM, DIM),
    "blk.0.attn_k": (64, DIM),
    "blk.0.attn_v": (64, DIM),
    "blk.0.attn_output": (DIM, DIM),
    "blk.0.ffn_norm": (DIM,),
    "blk.0.ffn_gate": (HIDDEN, DIM),
    "blk.0.ffn_up": (HIDDEN, DIM),
    "blk.0.ffn_down": (DIM, HIDDEN),
}


def write_gguf(path, kinds: dict[str, str], usual: str) -> dict[str, Tensor]:
    """A random Llama whose tensors are stored as `kinds` say; what they stand for."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(DIM)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    generator, values = np.random.default_rng(0), {}
    for name, shape in SHAPES.items():
        weight = generator.standard_normal(shape).astype(np.float32) * 0.1
        kind = gguf.GGMLQuantizationType[kinds.get(name, usual) if len(shape) > 1 else "F32"]
        stored = gguf.quants.quantize(weight, kind)
        values[f"{name}.weight"] = torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind)))
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def forms(path, weights: str, group: int | None = None) -> dict[str, tuple]:
    """Kind, group and minimum of each packed part, by its last name."""
    with open_checkpoint(path) as checkpoint:
        plans = plan_parts(checkpoint, read_description(checkpoint), weights, group)
    found = {plan.name.split(".")[-1]: plan.form for plan in plans if plan.form is not None}
    return {name: (form.kind, form.group, form.minimum) for name, form in found.items()}


INT8, PLAIN4 = ("int8", 0, False), ("int4m", 64, False)
TABLES8 = {"tok_embeddings": INT8, "output": INT8}
LAYER = ("wqkv", "wo", "w13", "w2")


@pytest.mark.parametrize(
    ("usual", "kinds", "expected"),
    [
        ("F32", {}, TABLES8 | dict.fromkeys(LAYER, PLAIN4)),
        ("BF16", {}, TABLES8 | dict.fromkeys(LAYER, PLAIN4)),
        ("Q4_0", {}, dict.fromkeys((*TABLES8, *LAYER), ("int4", 32, False))),
        ("Q4_1", {}, dict.fromkeys((*TABLES8, *LAYER), ("int4", 32, True))),
        ("Q4_1", {"token_embd": "Q8_0", "output": "BF16"}, TABLES8 | dict.fromkeys(LAYER, ("int4", 32, True))),
        # The finer of several weights decides: wv has 8 bits here, and w1 minima.
        (
            "Q4_0",
            {"token_embd": "Q8_0", "output": "Q8_0", "blk.0.attn_v": "Q8_0", "blk.0.ffn_gate": "Q4_1"},
            TABLES8 | {"wqkv": INT8, "wo": ("int4", 32, False), "w13": ("int4", 32, True), "w2": ("int4", 32, False)},
        ),
        ("Q5_0", {"blk.0.attn_k": "Q4_0"}, TABLES8 | dict.fromkeys(LAYER, INT8)),
        ("Q4_0", {"blk.0.ffn_up": "F32"}, dict.fromkeys((*TABLES8, *LAYER), ("int4", 32, False)) | {"w13": PLAIN4}),
    ],
)
def test_int4_keeps_what_the_file_has_and_8_bits_for_what_it_has_more_of(tmp_path, usual, kinds, expected):
    write_gguf(tmp_path / "m.gguf", kinds, usual)
    assert forms(tmp_path / "m.gguf", "int4") == expected
    assert set(forms(tmp_path / "m.gguf", "int8").values()) == {INT8}
    assert set(forms(tmp_path / "m.gguf", "bf16").values()) == {("bf16", 0, False)}


def test_a_group_that_is_asked_for_is_what_weights_get(tmp_path):
    write_gguf(tmp_path / "m.gguf", {}, "Q4_1")
    assert set(forms(tmp_path / "m.gguf", "int4", 64).values()) == {PLAIN4, INT8}
    assert forms(tmp_path / "m.gguf", "int4", 32) == forms(tmp_path / "m.gguf", "int4")
    write_gguf(tmp_path / "n.gguf", {}, "F32")
    assert forms(tmp_path / "n.gguf", "int4", 32)["wo"] == ("int4m", 32, False)


@pytest.mark.parametrize(
    ("usual", "weights", "error"),
    [
        ("Q4_0", "int4", 0.0),
        ("Q4_1", "int4", 1e-3),
        ("Q8_0", "int8", 0.012),
        ("F32", "int8", 0.012),
        ("F32", "int4", 0.11),
        ("Q5_1", "bf16", 0.003),
    ],
)
def test_packed_parts_stand_for_what_the_file_holds(tmp_path, usual, weights, error):
    values = write_gguf(tmp_path / "m.gguf", {}, usual)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        parts = packed_parts(checkpoint, read_description(checkpoint), weights)
    wqkv = torch.cat([values[f"blk.0.attn_{w}.weight"] for w in "qkv"])
    w1, w3 = (values[f"blk.0.ffn_{w}.weight"].view(-1, 16, DIM) for w in ("gate", "up"))
    wanted = {
        "layers.0.attention.wqkv": wqkv,
        "layers.0.feed_forward.w13": torch.stack((w1, w3), 1).flatten(0, 2),
        "layers.0.feed_forward.w2": values["blk.0.ffn_down.weight"],
    }
    for name, weight_NK in wanted.items():
        part = parts[name]
        assert isinstance(part, PackedWeight)
        assert (dequantize(part) - weight_NK).norm() <= error * weight_NK.norm()
    assert torch.equal(parts["norm.weight"], values["output_norm.weight"])


def test_a_plan_tells_the_bytes_of_its_parts(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"token_embd": "Q8_0"}, "Q4_1")
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        for plan in plan_parts(checkpoint, read_description(checkpoint), "int4"):
            assert plan.make().nbytes == plan.nbytes


def test_weights_are_read_in_slices_that_change_nothing(tmp_path, monkeypatch):
    decoder = small_decoder(small_config([AttentionPattern()]))
    checkpoint, description = checkpoint_of(decoder, tmp_path)
    whole = packed_parts(checkpoint, description, "int4")
    monkeypatch.setattr("sash.checkpoint.packed_parts._SLICE_VALUES", 1)
    most = []
    read_rows = type(checkpoint).read_rows

    def counted(self, name: str, first: int, count: int) -> Tensor:
        most.append(count)
        return read_rows(self, name, first, count)

    monkeypatch.setattr(type(checkpoint), "read_rows", counted)
    for name, part in packed_parts(checkpoint, description, "int4").items():
        other = whole[name]
        if isinstance(part, PackedWeight):
            assert isinstance(other, PackedWeight)
            assert all(torch.equal(tensor, other.tensors()[key]) for key, tensor in part.tensors().items())
    assert max(most) == 16


@pytest.mark.skipif(not native.available(), reason="compares native packing with its twin")
@pytest.mark.parametrize("weights", ["int4", "int8"])
@pytest.mark.parametrize("usual", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_packed_natively_to_the_same_bits(tmp_path, monkeypatch, usual, weights):
    write_gguf(tmp_path / "m.gguf", {"blk.0.attn_k": "Q4_0", "blk.0.ffn_up": "Q4_1", "token_embd": "Q8_0"}, usual)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        description = read_description(checkpoint)
        straight = packed_parts(checkpoint, description, weights)
        monkeypatch.setattr(blocks, "serves", lambda *asked: False)
        by_pieces = packed_parts(checkpoint, description, weights)
    for name, part in by_pieces.items():
        got = straight[name]
        wanted = part.tensors() if isinstance(part, PackedWeight) else {"": part}
        for one, tensor in wanted.items():
            assert torch.equal(got.tensors()[one] if isinstance(got, PackedWeight) else got, tensor), (name, one)


def test_what_is_not_finite_is_refused_by_name(tmp_path):
    decoder = small_decoder(small_config([AttentionPattern()]))
    decoder.layers[0].attention.wk.weight.data[3, 4] = torch.nan
    checkpoint, description = checkpoint_of(decoder, tmp_path)
    for weights in ("int8", "int4"):
        with pytest.raises(CheckpointError, match=r"^layers\.0\.attention\.wqkv: "):
            packed_parts(checkpoint, description, weights)


def test_shapes_that_contradict_the_configuration_are_refused(tmp_path):
    checkpoint, description = checkpoint_of(small_decoder(small_config([AttentionPattern()])), tmp_path)
    narrow = Description(small_config([AttentionPattern()], hidden_dim=48), description.weights)
    with pytest.raises(CheckpointError, match="are not of one model"):
        plan_parts(checkpoint, narrow, "int8")
    odd = dict(description.weights)
    del odd["norm.weight"]
    with pytest.raises(UnsupportedError, match=r"norm\.weight"):
        plan_parts(checkpoint, Description(description.config, odd), "int8")
    for part in ("norm.weight[0]", "layers.0.attention.wq.weight[0, 0:99]", "layers.0.attention.wq.weight[99]"):
        with pytest.raises(CheckpointError, match=r"one model|there is no"):
            plan_parts(
                checkpoint, Description(description.config, {**description.weights, "norm.weight": part}), "int8"
            )


@pytest.mark.parametrize(("weights", "group"), [("int2", None), ("int4", 48), ("int8", 32), ("auto", None)])
def test_what_cannot_be_asked_for_is_refused(tmp_path, weights, group):
    checkpoint, description = checkpoint_of(small_decoder(small_config([AttentionPattern()])), tmp_path)
    with pytest.raises(UsageError):
        plan_parts(checkpoint, description, weights, group)


def test_the_digest_tells_checkpoints_apart_by_names_types_and_shapes(tmp_path):
    digests = set()
    for number, changes in enumerate(({}, {}, {"hidden_dim": 48}, {"tied_embeddings": True})):
        (tmp_path / str(number)).mkdir()
        decoder = small_decoder(small_config([AttentionPattern()], **changes), seed=number)
        digests.add(source_digest(checkpoint_of(decoder, tmp_path / str(number))[0]))
    assert len(digests) == 3
