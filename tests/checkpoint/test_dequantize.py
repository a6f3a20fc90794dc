from __future__ import annotations

from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import torch

from sash.checkpoint import open_checkpoint
from sash.checkpoint.dequantize import SLICE_VALUES, dequantize
from sash.checkpoint.ggml_types import BY_NAME
from sash.checkpoint.gguf import GgufFile
from sash.checkpoint.reading import read_tensor
from sash.errors import CheckpointError, UnsupportedError

KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def same_bits(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    """Equal to the last bit, and not a number in the same places."""
    bits = torch.from_numpy(np.array(theirs, np.float32))
    if ours.dtype == torch.float32 and torch.equal(ours.view(torch.int32), bits.view(torch.int32)):
        return True
    number = ~bits.isnan()
    return bool(
        ours.dtype == torch.float32
        and ours.shape == bits.shape
        and (ours.isnan() == ~number).all()
        and (ours.view(torch.int32)[number] == bits.view(torch.int32)[number]).all()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_blocks_equal_the_reference_to_the_bit(kind: str) -> None:
    shape = (SLICE_VALUES // 2048 + 3, 2, 1024)  # A little more than one slice.
    size = shape[0] * 2 * 1024 // BY_NAME[kind].block * BY_NAME[kind].nbytes
    raw = np.random.default_rng(KINDS.index(kind)).integers(0, 256, size, np.uint8)
    wanted = reference.quants.dequantize(raw.reshape(*shape[:2], -1), reference.GGMLQuantizationType[kind])
    ours = dequantize(torch.from_numpy(raw), kind, shape)
    assert same_bits(ours, wanted.astype(np.float32))
    assert ours.isfinite().float().mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_the_float32_result_rounded_once(kind: str) -> None:
    size = BY_NAME[kind].nbytes * 512 // BY_NAME[kind].block
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw &= 0xFB  # No exponent of all ones, so no infinity and no NaN.
    rounded = dequantize(raw, kind, (2, 256), torch.bfloat16)
    assert torch.equal(rounded, dequantize(raw, kind, (2, 256)).bfloat16())


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ4_NL", "IQ1_M", "TQ1_0", "MXFP4", "NVFP4", "Q8_K", "Q1_0", "nonsense"])
def test_other_types_are_refused_by_name_with_the_remedy(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{kind}.*another quantisation.*Q4_K"):
        dequantize(torch.zeros(100, dtype=torch.uint8), kind, (1, 256))


def test_a_file_of_such_a_type_opens_and_is_refused_on_reading(write, gguf) -> None:
    content = gguf.file([], [gguf.entry("a", [32], 20)], bytes(18))
    checkpoint = open_checkpoint(write("m.gguf", content))
    assert checkpoint.dtype_name("a") == "IQ4_NL"
    with pytest.raises(UnsupportedError, match="IQ4_NL"):
        checkpoint.read("a")


@pytest.mark.parametrize(("size", "shape"), [(143, (1, 256)), (145, (1, 256)), (144, (2, 256)), (144, (1, 255))])
def test_bytes_that_do_not_fit_the_shape_are_refused(size: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="do not make up"):
        dequantize(torch.zeros(size, dtype=torch.uint8), "Q4_K", shape)


@pytest.mark.models
def test_every_tensor_of_real_files_equals_the_reference_to_the_bit(real_gguf: Path) -> None:
    opened = GgufFile.open(real_gguf)
    for name, stored in opened.tensors.items():
        ours = read_tensor(opened.file, stored, torch.float32)
        rows = ours.view(-1, ours.shape[-1])
        raw = np.frombuffer(opened.file.read(stored.offset, stored.nbytes), np.uint8).reshape(len(rows), -1)
        # The reference takes a minute for an embedding of 262,144 rows: its ends and middle stand for large tensors.
        for first in {0, max(0, len(rows) // 2 - 128), max(0, len(rows) - 256)}:
            part = slice(first, first + 256)
            wanted = reference.quants.dequantize(raw[part], reference.GGMLQuantizationType[stored.dtype])
            assert same_bits(rows[part], wanted), name
