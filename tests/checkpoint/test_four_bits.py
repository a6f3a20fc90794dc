"""ggml's blocks of 4 bits as int4: the values that they had, block by block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sash.checkpoint.dequantize import dequantize
from sash.checkpoint.four_bits import FOUR_BITS, GROUP, WITH_MINIMA, levels
from sash.checkpoint.ggml_types import BY_NAME
from sash.errors import CheckpointError
from sash.kernels.packed import PackedForm
from sash.kernels.packed import dequantize as unpacked
from sash.quantize import Packer

SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2)}


def blocks(kind: str, n: int, k: int) -> Tensor:
    """Random rows of blocks with scales of the usual size, uint8 [n, bytes a row]."""
    stored = BY_NAME[kind]
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (n * k // stored.block, stored.nbytes), dtype=torch.uint8, generator=generator)
    for at in SCALES[kind]:
        scale = (torch.rand(len(raw), 1, generator=generator) * 0.01 + 1e-3).half()
        raw[:, at : at + 2] = scale.view(torch.uint8)
    return raw.view(n, -1)


def restored(q_NK: Tensor, scale_NG: Tensor, minimum_NG: Tensor | None) -> Tensor:
    wide_NK = q_NK.float() * scale_NG.float().repeat_interleave(GROUP, 1)
    return wide_NK if minimum_NG is None else wide_NK + minimum_NG.float().repeat_interleave(GROUP, 1)


@pytest.mark.parametrize("kind", sorted(FOUR_BITS))
def test_values_stay_what_they_were(kind):
    raw_NB = blocks(kind, 20, 512)
    wanted_NK = dequantize(raw_NB.flatten(), kind, (20, 512))
    q_NK, scale_NG, minimum_NG = levels(raw_NB, kind)
    assert q_NK.dtype == torch.int8
    assert int(q_NK.min()) == -8
    assert int(q_NK.max()) == 7
    assert scale_NG.shape == (20, 16)
    assert (minimum_NG is not None) == (kind in WITH_MINIMA)
    got_NK = restored(q_NK, scale_NG, minimum_NG)
    if kind == "Q4_0":
        assert torch.equal(got_NK, wanted_NK)
    else:
        # What was rounded to float16: a minimum of up to 8 scales and a bit, and for Q4_K the scale itself.
        assert (got_NK - wanted_NK).abs().max() <= 2**-10 * wanted_NK.abs().max()
        assert (got_NK - wanted_NK).norm() <= 1e-3 * wanted_NK.norm()


@pytest.mark.parametrize("k", [32, 96])
def test_rows_that_are_no_whole_packed_blocks_are_filled_up(k):
    raw_NB = blocks("Q4_1", 20, k)
    packer = Packer(PackedForm(kind="int4", n=20, k=k, group=GROUP, minimum=True))
    packer.add_levels(*levels(raw_NB, "Q4_1"))
    wanted_NK = dequantize(raw_NB.flatten(), "Q4_1", (20, k))
    assert (unpacked(packer.done()) - wanted_NK).abs().max() <= 2**-10 * wanted_NK.abs().max()


@pytest.mark.parametrize("kind", sorted(FOUR_BITS))
def test_scales_that_are_no_numbers_are_refused(kind):
    raw_NB = blocks(kind, 4, 256)
    raw_NB[2, :2] = torch.tensor([float("inf")]).half().view(torch.uint8)
    with pytest.raises(CheckpointError, match="not finite"):
        levels(raw_NB, kind)


def test_products_beyond_float16_are_refused():
    raw_NB = blocks("Q4_K", 4, 256)
    raw_NB[0, :2] = torch.tensor([60000.0]).half().view(torch.uint8)
    raw_NB[0, 4:16] = 63
    with pytest.raises(CheckpointError, match="use int8"):
        levels(raw_NB, "Q4_K")
