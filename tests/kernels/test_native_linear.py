"""Native products against their definitions in torch, on the instruction set that serves (`make test-isas`: on all)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sash.errors import CheckpointError, UsageError
from sash.kernels import isa, layout, native
from sash.kernels.activations import rotate, rotation_of
from sash.kernels.linear import linear_twin
from sash.kernels.packed import PackedForm, PackedWeight
from sash.kernels.packed import rows as packed_rows
from sash.quantize.rounding import int8_rows

pytestmark = pytest.mark.skipif(not native.available(), reason="native kernels do not serve here: torch does")

FORMS = ("bf16", "int8", "int4 64", "int4 32", "int4 32 minimum", "int4 64 minimum", "int4m 64", "int4m 32")
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def weight_of(form: str, n: int, k: int, seed: int) -> PackedWeight:
    kind, group, *rest = [*form.split(), "0"]
    noise = torch.Generator().manual_seed(seed)
    packed = PackedForm(
        kind=kind,
        n=n,
        k=k,
        group=int(group),
        minimum="minimum" in rest,
        rotation=rotation_of(k) if kind in ("int8", "int4m") else 1,
    )
    q_NK = torch.randint(-127, 128, (n, k), generator=noise, dtype=torch.int8)
    made = {"bf16": layout.pack_bf16(q_NK.float() / 50), "int8": layout.pack_int8(q_NK)}
    tensors = {"data": made[kind] if kind in made else layout.pack_int4((q_NK >> 4).clamp(-8, 7))}
    for name, (dtype, shape) in packed.tensors().items():
        if name == "multiplier":
            tensors[name] = torch.randint(-15, 17, shape, generator=noise, dtype=dtype)
        elif name != "data":
            tensors[name] = (torch.rand(shape, generator=noise) * 0.1 - (0.05 if name == "minimum" else 0)).to(dtype)
    return PackedWeight.of(packed, tensors)


def rows_of(n_rows: int, k: int, seed: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(n_rows, k, generator=noise) * 10 ** torch.randn(n_rows, 1, generator=noise)


CASES = st.tuples(
    st.sampled_from(FORMS), st.integers(1, 130), st.integers(1, 330), st.integers(1, 70), st.integers(0, 2**16)
)


@given(CASES)
@MANY
def test_products_are_those_of_the_definition(case):
    form, n, k, n_rows, seed = case
    weight, x_TK = weight_of(form, n, k, seed), rows_of(n_rows, k, seed)
    got, wanted = native.Linear(weight)(x_TK), linear_twin(x_TK, weight)
    if form == "bf16" or isa.serving_isa() == "portable":  # sums of floats in another order, or rounded twice
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5 * wanted.abs().max().item())
    else:
        assert torch.equal(got, wanted)


@given(CASES, st.integers(1, 4), st.data())
@MANY
def test_a_row_depends_neither_on_its_company_nor_on_the_threads(case, n_threads, data):
    form, n, k, n_rows, seed = case
    linear, x_TK = native.Linear(weight_of(form, n, k, seed)), rows_of(n_rows, k, seed)
    whole = linear(x_TK)
    before = native.threads()
    native.set_threads(n_threads)
    try:
        assert torch.equal(linear(x_TK), whole)
        start = data.draw(st.integers(0, n_rows - 1))
        stop = data.draw(st.integers(start + 1, n_rows))
        assert torch.equal(linear(x_TK[start:stop].contiguous()), whole[start:stop])
    finally:
        native.set_threads(before)


@pytest.mark.parametrize("form", FORMS)
def test_a_large_product_is_the_same_from_run_to_run(form):
    linear, x_TK = native.Linear(weight_of(form, 272, 1088, 3)), rows_of(600, 1088, 4)
    first = linear(x_TK)
    assert first.isfinite().all()
    for _ in range(3):
        assert torch.equal(linear(x_TK), first)
    for row in (250, 599):
        assert torch.equal(linear(x_TK[row : row + 1].contiguous())[0], first[row])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("n", "n_rows"), [(40, 300), (1040, 260), (16, 2049)], ids=["panels", "past caches", "lone last row"]
)
def test_long_rows_that_are_taken_in_panels_are_as_each_by_itself(form, n, n_rows):
    k = 2200 if form == "bf16" else 4200  # two panels of 32 blocks, and a narrow one
    weight, x_TK = weight_of(form, n, k, 5), rows_of(n_rows, k, 6)
    linear = native.Linear(weight)
    whole = linear(x_TK)
    for row in (0, 17, n_rows // 2, n_rows - 1):
        assert torch.equal(linear(x_TK[row : row + 1].contiguous())[0], whole[row])
    few = x_TK[-3:].contiguous()
    wanted = linear_twin(few, weight)
    torch.testing.assert_close(whole[-3:], wanted, rtol=2e-5, atol=2e-5 * wanted.abs().max().item())


@given(st.integers(1, 90), st.integers(1, 330), st.integers(0, 2**16), st.integers(-42, -30))
@settings(max_examples=30, deadline=None)
def test_numbers_too_small_to_be_normal_do_not_depend_on_company(n, k, seed, exponent):
    linear = native.Linear(weight_of("bf16", n, k, seed))
    x_TK = rows_of(17, k, seed) * 10.0**exponent
    x_TK[:, ::3] = 1e-39
    whole = linear(x_TK)
    for row in (0, 16):
        assert torch.equal(linear(x_TK[row : row + 1].contiguous())[0], whole[row])


@given(st.sampled_from(FORMS), st.integers(1, 130), st.integers(1, 330), st.integers(0, 2**16))
@MANY
def test_rows_are_those_that_the_packed_values_stand_for(form, n, k, seed):
    weight, noise = weight_of(form, n, k, seed), torch.Generator().manual_seed(seed)
    linear = native.Linear(weight)
    for count in (1, 40):
        rows_R = torch.randint(0, n, (count,), generator=noise)
        assert torch.equal(linear.rows(rows_R), packed_rows(weight, rows_R))
        assert torch.equal(linear.rows(rows_R, 1.5), packed_rows(weight, rows_R) * 1.5)


@pytest.mark.parametrize("row", [-1, 40])
def test_a_row_that_is_not_there_is_refused(row):
    with pytest.raises(IndexError, match="does not have"):
        native.Linear(weight_of("int8", 40, 64, 0)).rows(torch.tensor([0, row]))


def test_a_bias_is_added():
    weight, bias_N, x_TK = weight_of("int8", 40, 64, 0), torch.arange(40.0), rows_of(3, 64, 1)
    assert torch.equal(native.Linear(weight, bias_N)(x_TK), native.Linear(weight)(x_TK) + bias_N)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("form", ["bf16", "int8", "int4m 64"])
def test_a_feed_forward_network_is_its_three_products(form, activation):
    from sash.network.layers import ACTIVATIONS
    from sash.quantize import interleave_tiles

    w1, w3, w2 = (weight_of(form, n, k, seed) for n, k, seed in ((96, 64, 0), (96, 64, 1), (64, 96, 2)))
    x_TD = rows_of(37, 64, 3) / 100
    up_TH = ACTIVATIONS[activation](linear_twin(x_TD, w1)) * linear_twin(x_TD, w3)
    wanted = linear_twin(up_TH, w2)
    got = native.FeedForward(interleave_tiles(w1, w3), w2, activation)(x_TD)
    # What is rounded to bfloat16 or int8 on the way may fall to the other side.
    assert (got - wanted).norm() < 0.01 * wanted.norm()


def test_norms_divide_by_the_root_of_the_mean_square():
    x_TD, weight_D = rows_of(5, 100, 0), torch.rand(100)
    wanted = x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + 1e-5) * weight_D
    torch.testing.assert_close(native.Norm(weight_D, 1e-5)(x_TD), wanted)


@pytest.mark.parametrize(
    "x_TK", [torch.zeros(3, 65), torch.zeros(3, 64).double(), torch.zeros(64, 3).T, torch.zeros(64)]
)
def test_rows_that_a_kernel_would_misread_are_refused(x_TK):
    with pytest.raises(UsageError, match=r"activations are float32 \[tokens, 64\], contiguous"):
        native.Linear(weight_of("int8", 16, 64, 0))(x_TK)


def test_zeros_and_tiny_values_stay_finite():
    x_TK = torch.zeros(3, 64)
    x_TK[1] = 1e-44
    x_TK[2, 5] = 3e38
    for form in FORMS:
        out = native.Linear(weight_of(form, 16, 64, 0))(x_TK)
        assert out[:2].abs().max() < 1e-30
        assert not out[2].isnan().any()


@given(st.integers(1, 50), st.integers(1, 700), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_rows_are_packed_as_torch_packs_them(n, k, seed):
    weight_NK, rotation = rows_of(n, k, seed), rotation_of(k)
    data, scale_N = native.pack_int8(weight_NK, rotation)
    q_NK, wanted_N = int8_rows(rotate(weight_NK, rotation))
    torch.testing.assert_close(scale_N, wanted_N, rtol=1e-6, atol=0)
    apart = (layout.unpack_int8(data, n, k).int() - q_NK.int()).abs()
    assert apart.max() <= 1  # a value half way between two may fall to either
    assert (apart > 0).float().mean() < 0.01


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(CheckpointError, match="not finite"):
        native.pack_int8(torch.tensor([[1.0, float("nan")]]), 1)
