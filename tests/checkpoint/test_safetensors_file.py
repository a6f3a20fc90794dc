from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from sash.checkpoint.reading import PLAIN, read_tensor
from sash.checkpoint.safetensors import ITEM_SIZES, MAX_HEADER_BYTES, MAX_TENSORS, SafetensorsFile
from sash.errors import CheckpointError, SashError, UnsupportedError


def test_every_number_format_reads_back(tmp_path: Path) -> None:
    bits = torch.randint(0, 2**62, (3, 4), generator=torch.Generator().manual_seed(0))
    saved = {name: bits.to(dtype) for name, dtype in PLAIN.items()}
    saved |= {"BOOL": bits % 2 == 0, "empty": torch.empty(0, 7), "scalar": torch.tensor(2.5)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(saved, path, metadata={"format": "pt"})
    opened = SafetensorsFile.open(path)
    assert opened.metadata == {"format": "pt"}
    assert opened.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        assert opened.tensors[name].shape == tuple(tensor.shape)
        read = read_tensor(opened.file, opened.tensors[name])
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert torch.equal(read_tensor(opened.file, opened.tensors[name], torch.float32), tensor.float())
    assert set(ITEM_SIZES) == {*PLAIN, "BOOL"}
    opened.close()


def test_a_tensor_at_an_odd_address_is_copied(write, safetensors_file, entry) -> None:
    header = json.dumps({"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}).encode()
    header += b" " * (-len(header) % 8)
    data = b"\x01" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    opened = SafetensorsFile.open(write("model.safetensors", safetensors_file(header, data)))
    assert read_tensor(opened.file, opened.tensors["b"]).tolist() == [1.5, -2.0]


def test_a_byte_that_is_neither_0_nor_1_is_a_clean_true(write, safetensors_file, entry) -> None:
    opened = SafetensorsFile.open(
        write("model.safetensors", safetensors_file({"a": entry("BOOL", [3], 0, 3)}, b"\x00\x02\x01"))
    )
    assert read_tensor(opened.file, opened.tensors["a"]).tolist() == [False, True, True]
    assert read_tensor(opened.file, opened.tensors["a"]).sum() == 2


def test_hostile_files_are_refused(write, safetensors_file, entry) -> None:
    good = entry("F32", [2, 2], 0, 16)
    sixteen = bytes(16)

    def refused(content: bytes, why: str, error: type[SashError] = CheckpointError) -> None:
        with pytest.raises(error, match=why):
            SafetensorsFile.open(write("model.safetensors", content))

    refused(b"", "no safetensors file")
    refused(b"1234567", "no safetensors file")
    refused(safetensors_file({"a": good}, sixteen, length=2**63), "truncated")
    refused(safetensors_file({"a": good}, sixteen, length=2**64 - 1), "truncated")
    refused(safetensors_file(b" " * (MAX_HEADER_BYTES + 1)), "at most")
    refused(safetensors_file(b' {"a": 1}'), "does not begin")
    refused(safetensors_file(b"[]"), "does not begin")
    refused(safetensors_file(b'{"a\xff": 1}'), "UTF-8")
    refused(safetensors_file(b'{"a":' * 100_000), "levels deep")
    refused(safetensors_file({"a": good}, bytes(15)), "end at byte")
    refused(safetensors_file({"a": good}, bytes(17)), "end at byte")
    refused(safetensors_file({}, bytes(1)), "end at byte")
    refused(safetensors_file({"a": entry("F32", [4], 4, 20)}, bytes(20)), "hole")
    refused(safetensors_file({"a": good, "b": entry("U8", [4], 15, 19)}, bytes(19)), "overlaps")
    refused(safetensors_file({"a": good, "b": good}, sixteen), "overlaps")
    refused(safetensors_file({"a": good, "b": entry("U8", [1], 17, 18)}, bytes(18)), "hole")
    refused(safetensors_file({"a": entry("F32", [2, 3], 0, 16)}, sixteen), "do not make up")
    refused(safetensors_file({"a": entry("F32", [4], 16, 0)}, sixteen), "do not make up")
    refused(safetensors_file({"a": entry("F32", [2**62, 4, 2**62], 0, 0)}), "do not make up")
    refused(safetensors_file({"a": entry("F32", [2**40, 2**40, 0], 0, 0)}), "do not make up")
    refused(safetensors_file({"a": entry("F32", [-2, -2], 0, 16)}, sixteen), "not lists of sizes")
    refused(safetensors_file({"a": entry("F32", [2.0, 2], 0, 16)}, sixteen), "not lists of sizes")  # type: ignore[list-item]
    refused(safetensors_file({"a": entry("F32", [True, 4], 0, 16)}, sixteen), "not lists of sizes")
    refused(safetensors_file({"a": {**good, "data_offsets": [0, 16, 16]}}, sixteen), "not lists of sizes")
    refused(safetensors_file({"a": {**good, "shape": 4}}, sixteen), "not lists of sizes")
    refused(safetensors_file({"a": {**good, "dtype": 4}}, sixteen), "not a string")
    refused(safetensors_file({"a": {**good, "dtype": "F33"}}, sixteen), "unknown dtype 'F33'")
    refused(safetensors_file({"a": {**good, "more": 4}}, sixteen), "exactly dtype, shape")
    refused(safetensors_file({"a": {"dtype": "F32", "shape": [4]}}, sixteen), "exactly dtype, shape")
    refused(safetensors_file({"a": 5}, sixteen), "exactly dtype, shape")
    refused(safetensors_file({"__metadata__": {"a": 1}}), "not a map of strings")
    refused(safetensors_file({"__metadata__": "a"}), "not a map of strings")
    twice = b'{"a":' + json.dumps(good).encode()
    refused(safetensors_file(twice + b"," + twice[1:] + b"}", sixteen), "appears twice")
    refused(safetensors_file({"a": entry("F8_E4M3", [16], 0, 16)}, sixteen), "F8_E4M3", UnsupportedError)
    refused(safetensors_file({"a": entry("U32", [4], 0, 16)}, sixteen), "U32", UnsupportedError)
    many = {str(i): entry("U8", [0], 0, 0) for i in range(MAX_TENSORS + 1)}
    refused(safetensors_file(many), f"at most {MAX_TENSORS}")


def _mutate(rng: random.Random, content: bytes) -> bytes:
    """One to three random edits, most of them in the header and many of them to digits."""
    mutant = bytearray(content)
    header = min(len(mutant), 8 + int.from_bytes(content[:8], "little"))
    digits = [i for i in range(8, header) if chr(mutant[i]).isdigit()]
    for _ in range(rng.randint(1, 3)):
        edit = rng.randrange(7)
        if edit <= 2:
            mutant[rng.choice(digits)] = ord(str(rng.randrange(10)))
        elif edit == 3:
            mutant[rng.randrange(header)] = rng.randrange(256)
        elif edit == 4:
            at = rng.randrange(8, header)
            token = rng.choice(
                [b"0", b"-", b" ", b'"', b"\\u0061", b"1e3", b"null", b"\t", b",", b"[]", b".0", b"\\ud800"]
            )
            mutant[at : at + rng.randrange(2)] = token
            mutant[:8] = (len(mutant) - len(content) + header - 8).to_bytes(8, "little")
        elif edit == 5:
            del mutant[rng.randrange(8, len(mutant)) :]
            mutant += bytes(rng.randrange(3))
        else:
            mutant[rng.randrange(2)] ^= 1 << rng.randrange(8)
        if len(mutant) < len(content):
            break
    return bytes(mutant)


def test_whatever_is_accepted_the_reference_library_accepts_and_reads_alike(tmp_path: Path) -> None:
    rng = random.Random(7)
    tensors = {
        "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
        "b": torch.arange(4, dtype=torch.bfloat16),
        "c": torch.empty(0, 5, dtype=torch.int8),
        "d.é": torch.tensor(7, dtype=torch.int64),
    }
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    path = tmp_path / "model.safetensors"
    accepted = 0
    for number in range(2500):
        mutant = _mutate(rng, content)
        path.write_bytes(mutant)
        try:
            opened = SafetensorsFile.open(path)
        except SashError:
            continue
        accepted += 1
        theirs = dict(safetensors.deserialize(mutant))
        assert theirs.keys() == opened.tensors.keys(), number
        for name, stored in opened.tensors.items():
            assert (stored.dtype, list(stored.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
            assert opened.file.read(stored.offset, stored.nbytes) == bytes(theirs[name]["data"])
        opened.close()
    assert 50 < accepted < 2000
