"""The arithmetic of products with packed weights, held against itself done in Python's own numbers."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.errors import UsageError
from sash.kernels import layout, linear
from sash.kernels.activations import is_rotation, rotate, rotation_of
from sash.kernels.linear import fused_multiply_add, linear_twin, quantize_activations
from sash.kernels.packed import PackedWeight, dequantize


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind: str, n: int, k: int, *, group: int = 32, minimum: bool = False, rotation: int = 1) -> PackedWeight:
    if kind == "bf16":
        return PackedWeight(kind="bf16", n=n, k=k, data=layout.pack_bf16(noise(n, k)))
    if kind == "int8":
        q_NK = (40 * noise(n, k)).clamp(-127, 127).to(torch.int8)
        scale = torch.nn.functional.pad(noise(n, seed=1).abs(), (0, -n % 16))
        return PackedWeight(kind="int8", n=n, k=k, data=layout.pack_int8(q_NK), scale=scale, rotation=rotation)
    groups = layout.padded(n, k)[1] // group
    q_NK = (4 * noise(n, k)).clamp(-8, 7).to(torch.int8)
    scale = layout.pack_groups(noise(n, groups, seed=1).abs().half())
    low = layout.pack_groups(noise(n, groups, seed=2).half()) if minimum else None
    return PackedWeight(kind="int4", n=n, k=k, data=layout.pack_int4(q_NK), scale=scale, minimum=low, group=group)


def single(value: Fraction) -> float:
    """The float32 nearest to an exact number of moderate size."""
    near = torch.tensor(float(value), dtype=torch.float32)
    around = [near, torch.nextafter(near, torch.tensor(torch.inf)), torch.nextafter(near, torch.tensor(-torch.inf))]
    best = min(abs(Fraction(one.item()) - value) for one in around)
    closest = [one for one in around if abs(Fraction(one.item()) - value) == best]
    return next(one for one in closest if len(closest) == 1 or one.view(torch.int32) % 2 == 0).item()


MODERATE = st.floats(width=32, min_value=2**-20, max_value=2**20).flatmap(lambda x: st.sampled_from([x, -x]))


@given(MODERATE, MODERATE, MODERATE, st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_fused_sum_is_rounded_once(a, b, c, cancels):
    if cancels:
        c = -single(Fraction(a) * Fraction(b))
    got = fused_multiply_add(torch.tensor(a), torch.tensor(b), torch.tensor(c)).item()
    assert got == single(Fraction(a) * Fraction(b) + Fraction(c))


def test_a_fused_sum_is_rounded_once_where_float64_would_tip_it():
    # 1 + 2^-24 lies half way between two float32; what is below it by 2^-70 must not be lost on the way.
    a, b = torch.tensor(2.0**-35), torch.tensor(-(2.0**-35))
    c = torch.tensor(1.0)
    half = fused_multiply_add(torch.tensor(2.0**-12), torch.tensor(2.0**-12), c)
    assert half.item() == 1.0
    up = fused_multiply_add(torch.tensor(1 + 2.0**-23), torch.tensor(2.0**-24), c)
    assert up.item() == 1 + 2.0**-23
    assert fused_multiply_add(a, b, c).item() == 1.0


def test_int8_is_an_exact_dot_times_one_product_of_scales():
    weight, x_TK = weight_of("int8", 21, 2100), noise(3, 2100, seed=5)
    q_TK, scale_T1 = quantize_activations(x_TK)
    dot_TN = q_TK[:, :2100].long() @ layout.unpack_int8(weight.data, 21, 2100).long().T
    assert int(dot_TN.abs().max()) > 2**17
    wanted_TN = dot_TN.float() * (scale_T1 * weight.scale[:21])
    assert torch.equal(linear_twin(x_TK, weight), wanted_TN)


def test_the_largest_dots_are_exact():
    n, k = 16, 14336
    weight = PackedWeight(
        kind="int8", n=n, k=k, data=layout.pack_int8(torch.full((n, k), 127, dtype=torch.int8)), scale=torch.ones(n)
    )
    assert linear_twin(torch.full((1, k), 127.0), weight).unique().tolist() == [float(127 * 127 * k)]


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("group", [32, 64])
def test_int4_sums_groups_in_order(group, minimum):
    n, k = 19, 200
    weight, x_TK = weight_of("int4", n, k, group=group, minimum=minimum), noise(2, k, seed=5)
    q_TK, scale_TG = quantize_activations(x_TK, group)
    w_NK = layout.unpack_int4(weight.data, n, q_TK.shape[1]).long()
    scale_NG = layout.unpack_groups(weight.scale, n).float()
    wanted_TN = torch.empty(2, n)
    for t in range(2):
        for o in range(n):
            acc = low = 0.0
            for g in range(scale_TG.shape[1]):
                here = slice(g * group, (g + 1) * group)
                dot = int((q_TK[t, here].long() * w_NK[o, here]).sum())
                acc = single(dot * Fraction((scale_TG[t, g] * scale_NG[o, g]).item()) + Fraction(acc))
                if minimum:
                    least = layout.unpack_groups(weight.minimum, n).float()[o, g].item()
                    weighed = (scale_TG[t, g] * float(q_TK[t, here].long().sum())).item()
                    low = single(Fraction(least) * Fraction(weighed) + Fraction(low))
            wanted_TN[t, o] = torch.tensor(acc) + torch.tensor(low)
    assert torch.equal(linear_twin(x_TK, weight), wanted_TN)


KINDS = [
    {"kind": "bf16"},
    {"kind": "int8"},
    {"kind": "int8", "rotation": 4},
    {"kind": "int4", "group": 32},
    {"kind": "int4", "group": 64, "minimum": True},
]


@pytest.mark.parametrize("form", KINDS, ids=str)
def test_the_product_is_near_that_of_the_weight_it_stands_for(form):
    weight, x_TK = weight_of(n=50, k=300, **form), noise(7, 300, seed=5)
    wanted_TN = x_TK @ dequantize(weight).T
    got_TN = linear_twin(x_TK, weight)
    assert got_TN.shape == (7, 50)
    assert got_TN.dtype == torch.float32
    assert (got_TN - wanted_TN).norm() / wanted_TN.norm() < 0.01


@pytest.mark.parametrize("form", KINDS, ids=str)
def test_a_row_does_not_depend_on_its_company(form):
    weight, x_TK = weight_of(n=50, k=300, **form), noise(9, 300, seed=5)
    whole_TN = linear_twin(x_TK, weight)
    for t in range(9):
        assert torch.equal(linear_twin(x_TK[t : t + 1], weight)[0], whole_TN[t])


def test_large_products_are_cut_into_slices_without_a_seam(monkeypatch):
    for form in KINDS:
        weight, x_TK = weight_of(n=50, k=300, **form), noise(3, 300, seed=5)
        whole_TN = linear_twin(x_TK, weight)
        with monkeypatch.context() as patch:
            patch.setattr(linear, "_SCRATCH_VALUES", 1)
            assert torch.equal(linear_twin(x_TK, weight), whole_TN)


@pytest.mark.parametrize("form", KINDS, ids=str)
def test_activations_of_zero_give_zero(form):
    weight = weight_of(n=50, k=300, **form)
    assert not linear_twin(torch.zeros(2, 300), weight).any()


@pytest.mark.parametrize("x", [torch.zeros(2, 64), torch.zeros(300), torch.zeros(2, 300).bfloat16()])
def test_other_activations_are_refused(x):
    with pytest.raises(UsageError, match="activations are float32"):
        linear.linear(x, weight_of("int8", 50, 300))


@pytest.mark.parametrize("block", [1, 2, 4, 64, 256])
def test_a_rotation_is_symmetric_and_its_own_inverse(block):
    matrix = rotate(torch.eye(block), block)
    assert torch.equal(matrix, matrix.T)
    assert torch.allclose(matrix @ matrix, torch.eye(block), atol=1e-6)
    x = noise(3, 2 * block)
    assert torch.allclose(rotate(rotate(x, block), block), x, atol=1e-5)
    assert torch.allclose(rotate(x, block)[:, block:], x[:, block:] @ matrix, atol=1e-5)


@given(st.integers(1, 5000))
@settings(max_examples=100, deadline=None)
def test_the_rotation_is_the_largest_that_fits(k):
    rotation = rotation_of(k)
    assert is_rotation(rotation, k)
    power = max(b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if k % b == 0)
    assert rotation == (k if power < 512 and k // power <= 15 else power)


@pytest.mark.parametrize("k", [3, 12, 40, 96, 576, 640, 832, 1024, 1536])
def test_any_rotation_is_symmetric_and_undone_by_itself(k):
    x, rotation = noise(3, 2 * k), rotation_of(k)
    assert torch.allclose(rotate(rotate(x, rotation), rotation), x, atol=1e-5)
    matrix = rotate(torch.eye(rotation), rotation)
    assert torch.allclose(matrix, matrix.T, atol=1e-6)
    assert matrix.abs().max() <= (2 / rotation) ** 0.5 + 1e-6


def test_activations_are_rounded_by_the_largest_of_their_group():
    x_TK = torch.zeros(2, 70)
    x_TK[0, 0], x_TK[0, 1], x_TK[0, 40], x_TK[1, 69] = -2.0, 1.0, 0.25, 5.0
    q_TK, scale_TG = quantize_activations(x_TK, 32)
    assert q_TK.shape == (2, 128)
    assert scale_TG.shape == (2, 4)
    assert q_TK[0, [0, 1, 40]].tolist() == [-127, 64, 127]  # 63.5 goes to the even neighbour
    assert q_TK[1, 69] == 127
    assert torch.allclose(scale_TG * 127, torch.tensor([[2.0, 0.25, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]]))
    whole_TK, scale_T1 = quantize_activations(x_TK)
    assert whole_TK[0, 40] == round(0.25 / 2 * 127)
    assert scale_T1.shape == (2, 1)
