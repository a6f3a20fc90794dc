"""Packing slice by slice, joining packed weights, and the modules that compute with them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sash.errors import UsageError
from sash.kernels.linear import linear_twin
from sash.kernels.packed import PackedForm, PackedWeight, dequantize
from sash.quantize import (
    PackedEmbedding,
    PackedLinear,
    Packer,
    fuse_rows,
    interleave_tiles,
    pack,
    padded_rows,
    take_tiles,
)

FORMS = [
    {"kind": "bf16"},
    {"kind": "int8"},
    {"kind": "int8", "rotation": 32},
    {"kind": "int4", "group": 32},
    {"kind": "int4m", "group": 64},
    {"kind": "int4m", "group": 32, "rotation": 32},
]
ERRORS = {"bf16": 0.005, "int8": 0.015, "int4": 0.12, "int4m": 0.13}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(n: int, k: int, form: dict, seed: int = 0) -> PackedWeight:
    return pack(PackedForm(n=n, k=k, **form), [noise(n, k, seed=seed)])


def same(one: PackedWeight, other: PackedWeight) -> bool:
    theirs = other.tensors()
    return one.form == other.form and all(torch.equal(part, theirs[name]) for name, part in one.tensors().items())


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(16, 64), (37, 96), (1, 32), (100, 224)])
def test_a_packed_weight_stands_for_what_was_packed(form, n, k):
    weight_NK = noise(n, k)
    weight = pack(PackedForm(n=n, k=k, **form), [weight_NK])
    assert (dequantize(weight) - weight_NK).norm() < ERRORS[form["kind"]] * weight_NK.norm()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_slices_of_rows_are_packed_as_the_whole_is(form):
    weight_NK = noise(75, 96)
    whole = pack(PackedForm(n=75, k=96, **form), [weight_NK])
    parts = pack(PackedForm(n=75, k=96, **form), [weight_NK[:16], weight_NK[16:64], weight_NK[64:]])
    assert same(whole, parts)


def test_slices_that_are_no_tiles_too_many_or_too_few_are_refused():
    packer = Packer(PackedForm(kind="int8", n=40, k=32))
    packer.add(noise(16, 32))
    with pytest.raises(UsageError, match="16 of 40 rows"):
        packer.done()
    with pytest.raises(UsageError, match="whole tiles"):
        packer.add(noise(25, 32))
    packer = Packer(PackedForm(kind="int8", n=40, k=32))
    packer.add(noise(10, 32))
    with pytest.raises(UsageError, match="whole tiles"):
        packer.add(noise(16, 32))


def test_levels_are_packed_as_they_are_and_lacking_minima_are_zeros():
    q_NK = torch.randint(-8, 8, (20, 96), dtype=torch.int8)
    scale_NG, low_NG = noise(20, 3).half(), noise(20, 3, seed=1).half()
    packer = Packer(PackedForm(kind="int4", n=40, k=96, group=32, minimum=True))
    packer.add_levels(q_NK[:16], scale_NG[:16], low_NG[:16])
    packer.add_levels(torch.cat((q_NK[16:], q_NK)), torch.cat((scale_NG[16:], scale_NG)), None)
    weight_NK = dequantize(packer.done())
    wide_NK = q_NK.float() * scale_NG.float().repeat_interleave(32, 1)
    assert torch.equal(weight_NK[:16], wide_NK[:16] + low_NG[:16].float().repeat_interleave(32, 1))
    assert torch.equal(weight_NK[20:], wide_NK)
    plain = Packer(PackedForm(kind="int4", n=20, k=96, group=32))
    with pytest.raises(UsageError, match="minima"):
        plain.add_levels(q_NK, scale_NG, low_NG)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_joined_rows_give_what_each_gives_alone(form):
    weights = [packed(n, 96, form, seed=n) for n in (32, 16, 40)]
    joined, x_TK = fuse_rows(weights), noise(5, 96, seed=9)
    assert joined.n == 32 + 16 + 48
    out_TN, first = linear_twin(x_TK, joined), 0
    for weight in weights:
        assert torch.equal(out_TN[:, first : first + weight.n], linear_twin(x_TK, weight))
        again = take_tiles(joined, first, weight.n)
        assert same(again, weight)
        assert again.data.data_ptr() == joined.data[first // 16 :].data_ptr()
        first += padded_rows(weight.n)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_tiles_in_turn_give_what_each_gives_alone(form):
    first, second = packed(40, 96, form, seed=1), packed(40, 96, form, seed=2)
    x_TK = noise(5, 96, seed=9)
    out = linear_twin(x_TK, interleave_tiles(first, second)).view(5, 3, 2, 16)
    assert torch.equal(out[:, :, 0].flatten(1)[:, :40], linear_twin(x_TK, first))
    assert torch.equal(out[:, :, 1].flatten(1)[:, :40], linear_twin(x_TK, second))


def test_weights_that_differ_are_not_joined():
    int8, rotated = packed(16, 64, {"kind": "int8"}), packed(16, 64, {"kind": "int8", "rotation": 32})
    with pytest.raises(UsageError, match="same inputs"):
        fuse_rows([int8, rotated])
    with pytest.raises(UsageError, match="same inputs"):
        interleave_tiles(int8, packed(16, 32, {"kind": "int8"}))
    with pytest.raises(UsageError, match="as many outputs"):
        interleave_tiles(int8, packed(32, 64, {"kind": "int8"}))
    for first, n in ((8, 8), (0, 40), (16, 1), (-16, 16), (0, 0)):
        with pytest.raises(UsageError, match="whole tiles"):
            take_tiles(int8, first, n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_linear_layer_keeps_shape_and_type(dtype):
    weight, bias_N = packed(40, 96, {"kind": "int8", "rotation": 32}), noise(40)
    x = noise(2, 3, 96).to(dtype)
    layer = PackedLinear(weight, bias_N)
    out = layer(x)
    assert out.shape == (2, 3, 40)
    assert out.dtype == dtype
    wanted_TN = linear_twin(x.view(6, 96).float(), weight) + bias_N
    assert torch.allclose(layer.logits(x.view(6, 96)), wanted_TN, atol=1e-4, rtol=1e-5)
    assert torch.equal(out.view(6, 40), layer.logits(x.view(6, 96)).to(dtype))
    assert list(layer.parameters()) == []
    with pytest.raises(UsageError, match="as many biases"):
        PackedLinear(weight, noise(41))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_embedding_reads_rows_and_serves_as_a_head(form):
    table = packed(61, 96, form)
    embedding = PackedEmbedding(table, torch.bfloat16)
    tokens = torch.tensor([[3, 60], [0, 3]])
    out = embedding(tokens)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, dequantize(table)[tokens].bfloat16())
    hidden_TD = noise(4, 96, seed=2)
    assert torch.allclose(embedding.logits(hidden_TD), linear_twin(hidden_TD, table), atol=1e-4, rtol=1e-5)


def test_copies_of_a_network_share_its_packed_weights():
    layer = PackedLinear(packed(16, 64, {"kind": "int8"}), noise(16))
    assert copy.deepcopy(layer).weight is layer.weight
