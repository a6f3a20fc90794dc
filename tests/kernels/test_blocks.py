"""Blocks that are packed natively: bit for bit what the twins in torch make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sash.checkpoint.dequantize import dequantize
from sash.checkpoint.four_bits import FOUR_BITS, levels
from sash.checkpoint.ggml_types import BY_NAME
from sash.errors import CheckpointError, UsageError
from sash.kernels import blocks, native
from sash.kernels.activations import rotation_of
from sash.kernels.packed import PackedForm
from sash.quantize import Packer

HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
"""Where a block of each type has numbers of half precision."""

pytestmark = pytest.mark.skipif(not native.available(), reason="blocks are packed natively or by the twins themselves")


def random_rows(kind: str, n: int, k: int, seed: int) -> Tensor:
    """Rows of random blocks; scales of either sign, some of them zero or too small for normal float16."""
    stored, generator = BY_NAME[kind], torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (n * k // stored.block, stored.nbytes), dtype=torch.uint8, generator=generator)
    for at in HALVES[kind]:
        scale = torch.randn(len(raw), 1, generator=generator) * 0.02
        scale *= torch.tensor([1.0, 1.0, 1e-4, 0.0])[torch.randint(0, 4, (len(raw), 1), generator=generator)]
        raw[:, at : at + 2] = scale.half().view(torch.uint8)
    return raw.view(n, -1)


def empty(form: PackedForm) -> dict[str, Tensor]:
    """Tensors of garbage: all of them must be written."""
    return {name: torch.full(shape, 85, dtype=dtype) for name, (dtype, shape) in form.tensors().items()}


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return all(torch.equal(got[name].view(torch.uint8), wanted[name].view(torch.uint8)) for name in wanted)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(HALVES)), st.integers(1, 50), st.integers(1, 5), st.integers(0, 99), st.integers(1, 3))
def test_int8_is_what_the_twin_makes_of_the_floats(kind, n, n_blocks, seed, threads):
    k = BY_NAME[kind].block * n_blocks
    raw_NB = random_rows(kind, n, k, seed)
    form = PackedForm(kind="int8", n=n, k=k, rotation=rotation_of(k))
    packer, tensors = Packer(form), empty(form)
    packer.add(dequantize(raw_NB.flatten(), kind, (n, k)))
    before = native.threads()
    native.set_threads(threads)
    try:
        blocks.pack(raw_NB, kind, form, tensors, tile=0, step=1)
    finally:
        native.set_threads(before)
    assert same(tensors, packer.done().tensors())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FOUR_BITS)), st.booleans(), st.integers(1, 50), st.integers(1, 7), st.integers(0, 99))
def test_levels_and_scales_are_what_the_twin_makes(kind, minimum, n, n_blocks, seed):
    k = BY_NAME[kind].block * n_blocks
    raw_NB = random_rows(kind, n, k, seed)
    form = PackedForm(kind="int4", n=n, k=k, group=32, minimum=minimum or kind != "Q4_0")
    packer, tensors = Packer(form), empty(form)
    packer.add_levels(*levels(raw_NB, kind))
    blocks.pack(raw_NB, kind, form, tensors, tile=0, step=1)
    assert same(tensors, packer.done().tensors())


def test_tiles_in_turn_are_written_and_no_others():
    raw_NB = random_rows("Q4_1", 40, 96, 0)
    one = PackedForm(kind="int4", n=40, k=96, group=32, minimum=True)
    alone, joined = empty(one), empty(replace(one, n=96))
    blocks.pack(raw_NB, "Q4_1", one, alone, tile=0, step=1)
    blocks.pack(raw_NB, "Q4_1", replace(one, n=96), joined, tile=1, step=2)
    for name, part in joined.items():
        assert torch.equal(part[1::2], alone[name])
        assert torch.equal(part[::2], torch.full_like(part[::2], 85))


@pytest.mark.parametrize("kind", sorted(HALVES))
def test_scales_that_are_no_numbers_are_refused(kind):
    raw_NB = random_rows(kind, 20, 512, 0)
    raw_NB[18, HALVES[kind][0] : HALVES[kind][0] + 2] = torch.tensor([float("nan")]).half().view(torch.uint8)
    form = PackedForm(kind="int8", n=20, k=512)
    with pytest.raises(CheckpointError, match="not finite"):
        blocks.pack(raw_NB, kind, form, empty(form), tile=0, step=1)
    if kind in FOUR_BITS:
        form = PackedForm(kind="int4", n=20, k=512, group=32, minimum=True)
        with pytest.raises(CheckpointError, match="too large for int4"):
            blocks.pack(raw_NB, kind, form, empty(form), tile=0, step=1)


def test_products_beyond_float16_are_refused():
    raw_NB = random_rows("Q4_K", 4, 256, 0)
    raw_NB[0, :2] = torch.tensor([60000.0]).half().view(torch.uint8)
    raw_NB[0, 4:16] = 63
    form = PackedForm(kind="int4", n=4, k=256, group=32, minimum=True)
    with pytest.raises(CheckpointError, match="use int8"):
        blocks.pack(raw_NB, "Q4_K", form, empty(form), tile=0, step=1)


def test_what_would_be_misread_is_refused():
    raw_NB = random_rows("Q8_0", 32, 64, 0)
    form = PackedForm(kind="int8", n=32, k=64)
    with pytest.raises(UsageError, match="tiles 1 to 2"):
        blocks.pack(raw_NB, "Q8_0", form, empty(form), tile=1, step=1)
    with pytest.raises(UsageError, match="not of 67 bytes"):
        blocks.pack(raw_NB[:, :67].contiguous(), "Q8_0", form, empty(form), tile=0, step=1)
    with pytest.raises(UsageError, match="not packed natively as int4"):
        blocks.pack(raw_NB, "Q8_0", replace(form, kind="int4", group=32), {}, tile=0, step=1)
    with pytest.raises(UsageError, match="data of a packed int8 weight"):
        blocks.pack(raw_NB, "Q8_0", form, empty(replace(form, n=64)), tile=0, step=1)
