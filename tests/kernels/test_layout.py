"""Packed weights: every layout there and back, at odd sizes, and value by value where its description puts them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.errors import UsageError
from sash.kernels import layout
from sash.kernels.packed import PackedForm, PackedWeight, dequantize, rows

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 200))


def integers(low: int, high: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_every_layout_goes_there_and_back(size):
    n, k = size
    weight_NK = torch.randn(n, k).bfloat16()
    assert torch.equal(layout.unpack_bf16(layout.pack_bf16(weight_NK), n, k), weight_NK)
    q_NK = integers(-127, 127, n, k)
    assert torch.equal(layout.unpack_int8(layout.pack_int8(q_NK), n, k), q_NK)
    q_NK = integers(-8, 7, n, k)
    assert torch.equal(layout.unpack_int4(layout.pack_int4(q_NK), n, k), q_NK)
    scale_NG = torch.randn(n, 3).half()
    assert torch.equal(layout.unpack_groups(layout.pack_groups(scale_NG), n), scale_NG)


@given(SIZES, st.data())
@settings(max_examples=60, deadline=None)
def test_each_value_is_where_the_layout_says(size, data):
    n, k = size
    a, b = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, k - 1))
    weight_NK, q8_NK, q4_NK = torch.randn(n, k).bfloat16(), integers(-127, 127, n, k), integers(-8, 7, n, k)
    tile, lane = divmod(a, 16)
    assert layout.pack_bf16(weight_NK)[tile, b // 32, b % 32 // 2, lane, b % 2] == weight_NK[a, b]
    assert layout.pack_int8(q8_NK)[tile, b // 64, b % 64 // 4, lane, b % 4] == q8_NK[a, b]
    quad = b % 64 // 4
    byte = int(layout.pack_int4(q4_NK)[tile, b // 64, quad % 8, 4 * lane + b % 4])
    assert (byte >> 4 if quad >= 8 else byte & 15) - 8 == q4_NK[a, b]


def test_padding_is_zero():
    assert int(layout.pack_int8(integers(1, 9, 5, 7)).count_nonzero()) == 35
    assert int((layout.pack_int4(integers(1, 7, 5, 7)) != 0x88).sum()) == 35
    assert int(layout.pack_bf16(torch.ones(5, 7)).count_nonzero()) == 35


@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_the_stated_forms_are_those_of_the_packers(kind):
    data = {
        "bf16": layout.pack_bf16(torch.randn(20, 100)),
        "int8": layout.pack_int8(integers(-127, 127, 20, 100)),
        "int4": layout.pack_int4(integers(-8, 7, 20, 100)),
    }[kind]
    form = PackedForm(kind=kind, n=20, k=100, group=32 if kind == "int4" else 0)
    assert form.tensors()["data"] == (data.dtype, tuple(data.shape))


def int4_weight(n: int, k: int, group: int, *, minimum: bool) -> PackedWeight:
    groups = layout.padded(n, k)[1] // group
    scale = layout.pack_groups(torch.rand(n, groups).half())
    low = layout.pack_groups(torch.randn(n, groups).half()) if minimum else None
    data = layout.pack_int4(integers(-8, 7, n, k))
    return PackedWeight(kind="int4", n=n, k=k, data=data, scale=scale, minimum=low, group=group)


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("group", [32, 64])
def test_int4_stands_for_scale_times_q_plus_minimum(group, minimum):
    weight = int4_weight(37, 130, group, minimum=minimum)
    q_NK = layout.unpack_int4(weight.data, 37, 130).float()
    scale_NG = layout.unpack_groups(weight.scale, 37).float()
    wanted_NK = torch.empty(37, 130)
    for b in range(130):
        wanted_NK[:, b] = q_NK[:, b] * scale_NG[:, b // group]
        if minimum:
            wanted_NK[:, b] += layout.unpack_groups(weight.minimum, 37).float()[:, b // group]
    assert torch.equal(dequantize(weight), wanted_NK)
    chosen_R = torch.tensor([36, 0, 17, 17])
    assert torch.equal(rows(weight, chosen_R), wanted_NK[chosen_R])
    assert weight.nbytes == PackedForm(kind="int4", n=37, k=130, group=group, minimum=minimum).nbytes


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kind": "int2"}, "packed as"),
        ({"n": 0}, "1 or more"),
        ({"k": -1}, "1 or more"),
        ({"n": 17}, "data of a packed int8"),
        ({"group": 32}, "only int4"),
        ({"rotation": 3}, "mixes 64 of 64"),
        ({"rotation": 128}, "mixes 64 of 64"),
        ({"rotation": 0}, "mixes 64 of 64"),
        ({"kind": "bf16", "rotation": 1}, "data of a packed bf16"),
        ({"scale": None}, "see scale"),
        ({"minimum": torch.zeros(16)}, "see minimum"),
        ({"scale": torch.zeros(16).double()}, "float64"),
        ({"scale": torch.zeros(32)[::2]}, "contiguous"),
        ({"data": torch.zeros(1, 1, 16, 16, 4)}, "float32"),
        ({"data": torch.zeros(1, 1, 16, 64, dtype=torch.int8)}, "16, 16, 4"),
        ({"kind": "int4", "rotation": 1, "group": 48}, "share an int4 scale"),
        ({"kind": "int4", "group": 32}, "only int8 and int4m weights are rotated"),
    ],
)
def test_a_packed_weight_that_contradicts_itself_is_refused(change, word):
    data = layout.pack_int8(integers(-127, 127, 16, 64))
    values = {"kind": "int8", "n": 16, "k": 64, "data": data, "scale": torch.ones(16), "rotation": 64}
    assert PackedWeight(**values).nbytes == 16 * 64 + 64
    with pytest.raises(UsageError, match=word):
        PackedWeight(**{**values, **change})
