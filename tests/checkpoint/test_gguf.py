from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import torch

from sash.checkpoint.ggml_types import BY_NAME, GGML_TYPES
from sash.checkpoint.gguf import GgufFile
from sash.checkpoint.reading import read_tensor
from sash.errors import CheckpointError, SashError, UnsupportedError


def test_types_are_those_of_the_reference() -> None:
    for kind, (block, nbytes) in reference.GGML_QUANT_SIZES.items():
        ours = GGML_TYPES[int(kind)]
        assert (ours.name, ours.block, ours.nbytes) == (kind.name, block, nbytes)
    assert len(BY_NAME) == len(reference.GGML_QUANT_SIZES)


def test_reads_what_the_reference_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    numbers = {"uint8": 255, "int8": -128, "uint16": 65535, "int16": -5, "uint32": 2**32 - 1, "int32": -7,
               "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 1e300, "bool": True}  # fmt: skip
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(f"x.{name}", value)
    writer.add_string("x.text", "naïve ▁☃")
    lists = {"words": ["a", "", "▁b"], "ints": [1, -2, 3], "floats": [0.5, -1.5], "flags": [True, False]}
    for name, values in lists.items():
        writer.add_array(f"x.{name}", values)
    rng = np.random.default_rng(0)
    plain = {"f32": rng.standard_normal((3, 5), np.float32), "f16": rng.standard_normal(7).astype(np.float16),
             "i32": np.arange(6, dtype=np.int32).reshape(1, 2, 3)}  # fmt: skip
    for name, array in plain.items():
        writer.add_tensor(name, array)
    quantised = reference.quants.quantize(rng.standard_normal((4, 64), np.float32), reference.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", quantised, raw_dtype=reference.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    opened = GgufFile.open(path)
    assert opened.alignment == 64
    assert opened.version == 3
    for name, value in {**numbers, **lists, "text": "naïve ▁☃"}.items():
        assert opened.metadata[f"x.{name}"] == value
        assert type(opened.metadata[f"x.{name}"]) is type(value)
    assert list(opened.tensors) == [*plain, "q"]
    for name, array in plain.items():
        tensor = read_tensor(opened.file, opened.tensors[name])
        assert tensor.shape == array.shape
        assert torch.equal(tensor, torch.from_numpy(array))
    assert opened.tensors["q"].shape == (4, 64)
    read = read_tensor(opened.file, opened.tensors["q"])
    assert torch.equal(
        read, torch.from_numpy(reference.quants.dequantize(quantised, reference.GGMLQuantizationType.Q8_0))
    )


def test_version_2_and_a_file_without_tensors(write, gguf) -> None:
    opened = GgufFile.open(write("m.gguf", gguf.file([gguf.pair("a", 8, "b")], version=2)))
    assert (opened.version, dict(opened.metadata), dict(opened.tensors)) == (2, {"a": "b"}, {})


def test_a_vocabulary_larger_than_the_first_pieces_that_are_read(write, gguf) -> None:
    words = [f"word {i} ▁" * (i % 7) for i in range(20_000)]
    content = gguf.file([gguf.pair("words", 9, (8, words)), gguf.pair("long", 8, "x" * 300_000)])
    opened = GgufFile.open(write("m.gguf", content))
    assert opened.metadata["words"] == words
    assert len(opened.metadata["long"]) == 300_000


def test_the_padding_behind_the_last_tensor_may_be_missing(write, gguf) -> None:
    entries = [gguf.entry("a", [5], 0, 0)]
    for padding in (0, 5, 12):
        opened = GgufFile.open(write("m.gguf", gguf.file([], entries, bytes(20 + padding))))
        assert opened.tensors["a"].nbytes == 20


def test_every_known_lie_is_refused(write, gguf_lies) -> None:
    believed = []
    for name, (content, why) in gguf_lies.items():
        try:
            GgufFile.open(write("lie.gguf", content)).close()
            believed.append((name, "no error"))
        except CheckpointError as error:
            if not re.search(why, str(error)):
                believed.append((name, str(error)))
    assert believed == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"version": 1}, "version 1"),
        ({"version": 0}, "version 0"),
        ({"version": 4}, "version 4"),
        ({"version": 3 << 24}, "big-endian"),
        ({"magic": b"tjgg"}, "older than GGUF"),
    ],
)
def test_other_formats_are_refused_by_name(write, gguf, options, why) -> None:
    with pytest.raises(UnsupportedError, match=why):
        GgufFile.open(write("m.gguf", gguf.file(**options)))


def test_retired_types_and_split_models_are_refused_by_name(write, gguf) -> None:
    with pytest.raises(UnsupportedError, match=r"Q4_2.*another quantisation"):
        GgufFile.open(write("m.gguf", gguf.file([], [gguf.entry("a", [32], 4)], bytes(32))))
    with pytest.raises(UnsupportedError, match=r"3 parts.*merge"):
        GgufFile.open(write("m.gguf", gguf.file([gguf.pair("split.count", 2, 3)])))


def test_a_file_cut_anywhere_is_refused(write, gguf) -> None:
    whole = gguf.small()
    GgufFile.open(write("whole.gguf", whole)).close()
    for length in range(len(whole) - 16):
        with pytest.raises(SashError):
            GgufFile.open(write("cut.gguf", whole[:length]))


def test_metadata_needs_no_torch(write, gguf) -> None:
    path = write("m.gguf", gguf.small())
    code = (
        "import sys; from pathlib import Path; from sash.checkpoint import open_checkpoint; "
        "checkpoint = open_checkpoint(Path(sys.argv[1])); "
        "print(checkpoint.config['llama.block_count'], checkpoint.shape('output.weight'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "1 (1, 256) False"


@pytest.mark.models
def test_real_files_read_as_the_reference_reads_them(real_gguf: Path) -> None:
    ours, theirs = GgufFile.open(real_gguf), reference.GGUFReader(real_gguf)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for key, value in ours.metadata.items():
        assert value == fields[key].contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        stored = ours.tensors[tensor.name]
        assert stored.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert (stored.dtype, stored.offset, stored.nbytes) == (
            tensor.tensor_type.name, int(tensor.data_offset), tensor.n_bytes
        )  # fmt: skip
