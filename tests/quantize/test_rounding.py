"""Choosing scales: bounds that no rounding may pass, grids that must be found, and weights that are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sash.errors import CheckpointError
from sash.quantize import int4_groups, int4_multiples, int8_rows


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(values_NG: Tensor, group: int, k: int) -> Tensor:
    return values_NG.float().repeat_interleave(group, 1)[:, :k]


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_int8_is_off_by_half_a_step_at_most(n, k, seed):
    weight_NK = noise(n, k, seed=seed)
    q_NK, scale_N = int8_rows(weight_NK)
    assert torch.equal(scale_N, weight_NK.abs().amax(1) / 127)
    assert int(q_NK.abs().max()) == 127
    assert bool(((q_NK * scale_N[:, None] - weight_NK).abs() <= scale_N[:, None] * 0.5001).all())


@given(st.integers(1, 40), st.integers(1, 200), st.sampled_from([32, 64]), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_int4_is_better_than_rounding_by_the_largest_value(n, k, group, seed):
    weight_NK = noise(n, k, seed=seed)
    q_NK, scale_NG = int4_groups(weight_NK, group)
    assert q_NK.shape == (n, k)
    assert scale_NG.shape == (n, (k + 63) // 64 * 64 // group)
    assert int(q_NK.min()) >= -8
    assert int(q_NK.max()) <= 7
    padded_NGg = torch.nn.functional.pad(weight_NK, (0, -k % 64)).view(n, -1, group)
    plain = padded_NGg.abs().amax(-1) / 7
    plain_NK = (weight_NK / spread(plain, group, k)).round() * spread(plain, group, k)
    found = (q_NK * spread(scale_NG, group, k) - weight_NK).square().sum()
    # Scales are float16: that alone is off by 2^-11 of a value at most.
    assert found <= (plain_NK - weight_NK).square().sum() * 1.001 + weight_NK.square().sum() * 2**-22


@pytest.mark.parametrize("sign", [1, -1])
def test_a_grid_of_sixteen_levels_is_found_whichever_way_it_leans(sign):
    q_NK = torch.arange(-8, 8, dtype=torch.float32).repeat(3, 4)
    weight_NK = sign * 0.25 * q_NK
    found_NK, scale_NG = int4_groups(weight_NK, 64)
    assert torch.equal(found_NK * spread(scale_NG, 64, 64), weight_NK)
    assert torch.equal(scale_NG.float(), torch.full((3, 1), sign * 0.25))


def test_multiples_are_int8_values_and_nearly_as_good_as_scales_of_their_own():
    weight_NK = noise(64, 512) * torch.linspace(0.5, 2, 64)[:, None]
    q_NK, scale_N, multiplier_NG = int4_multiples(weight_NK, 64)
    product_NK = q_NK * multiplier_NG.repeat_interleave(64, 1)
    assert product_NK.dtype == torch.int8
    assert int(product_NK.short().abs().max()) <= 128
    assert int((q_NK.int() * multiplier_NG.int().repeat_interleave(64, 1)).abs().max()) <= 128
    alone_NK, scale_NG = int4_groups(weight_NK, 64)
    best = (alone_NK * spread(scale_NG, 64, 512) - weight_NK).square().sum()
    assert (product_NK.float() * scale_N[:, None] - weight_NK).square().sum() < 1.1 * best


def test_zeros_stay_zeros():
    weight_NK = torch.zeros(3, 128)
    weight_NK[1, :64] = noise(64)
    for q_NK in (int8_rows(weight_NK)[0], int4_groups(weight_NK, 64)[0], int4_multiples(weight_NK, 64)[0]):
        assert not q_NK[0].any()
        assert not q_NK[1, 64:].any()
        assert q_NK[1, :64].any()
    assert not int8_rows(torch.zeros(2, 5))[1].any()
    assert not int4_multiples(torch.zeros(2, 5), 32)[1].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    weight_NK = noise(4, 64)
    weight_NK[2, 3] = bad
    for rounding in (int8_rows, lambda w: int4_groups(w, 32), lambda w: int4_multiples(w, 64)):
        with pytest.raises(CheckpointError, match=r"not finite|too large"):
            rounding(weight_NK)


def test_values_beyond_float16_scales_are_refused_for_int4_and_fine_for_int8():
    weight_NK = noise(4, 64) * 1e6
    with pytest.raises(CheckpointError, match="use int8"):
        int4_groups(weight_NK, 32)
    q_NK, scale_N = int8_rows(weight_NK)
    assert (q_NK * scale_N[:, None] - weight_NK).norm() < 0.01 * weight_NK.norm()


def test_the_search_is_cut_into_slices_without_a_seam(monkeypatch):
    weight_NK = noise(50, 128)
    q_NK, scale_NG = int4_groups(weight_NK, 32)
    monkeypatch.setattr("sash.quantize.rounding._SLICE_VALUES", 1)
    again_NK, again_NG = int4_groups(weight_NK, 32)
    assert torch.equal(q_NK, again_NK)
    assert torch.equal(scale_NG, again_NG)
