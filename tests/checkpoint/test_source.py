from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sash.checkpoint import Checkpoint, open_checkpoint
from sash.errors import CheckpointError, ModelNotFoundError, SashError, UnsupportedError

CONFIG = {"model_type": "mistral", "hidden_size": 8}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(3, 4, generator=generator).bfloat16(),
        "b.weight": torch.randn(5, generator=generator),
        "c.weight": torch.randn(2, 2, generator=generator).half(),
    }


def folder(
    path: Path, parts: dict[str, dict[str, torch.Tensor]], *, config: str = "config.json", index: object = None
) -> Path:
    """A model's folder: a configuration, files of weights, and an index if one is given."""
    path.mkdir(exist_ok=True)
    (path / config).write_text(json.dumps(CONFIG))
    for name, part in parts.items():
        safetensors.torch.save_file(part, path / name)
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def split(tensors: dict[str, torch.Tensor], one: str, two: str) -> dict[str, dict[str, torch.Tensor]]:
    names = list(tensors)
    return {one: {name: tensors[name] for name in names[:2]}, two: {name: tensors[name] for name in names[2:]}}


def check(checkpoint: Checkpoint, kind: str, tensors: dict[str, torch.Tensor]) -> None:
    assert checkpoint.kind == kind
    assert checkpoint.config == CONFIG
    assert checkpoint.names() == tensors.keys()
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    assert checkpoint.n_parameters == sum(tensor.numel() for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        for dtype in (None, tensor.dtype, torch.float32, torch.bfloat16, torch.float64):
            read = checkpoint.read(name, dtype)
            assert read.dtype == (dtype or tensor.dtype)
            assert torch.equal(read, tensor.to(read.dtype))
    assert [checkpoint.dtype_name(name) for name in sorted(tensors)] == ["BF16", "F32", "F16"]
    checkpoint.close()


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_hugging_face_folder_in_one_file(tmp_path: Path, tensors) -> None:
    check(open_checkpoint(folder(tmp_path, {"model.safetensors": tensors})), "huggingface", tensors)


def test_hugging_face_folder_in_shards(tmp_path: Path, tensors) -> None:
    parts = split(tensors, *SHARDS)
    index = {name: shard for shard, part in parts.items() for name in part}
    check(open_checkpoint(folder(tmp_path, parts, index=index)), "huggingface", tensors)


@pytest.mark.parametrize(
    "names",
    [
        ("consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors"),
        ("consolidated.00-of-02.safetensors", "consolidated.01-of-02.safetensors"),
        ("consolidated.01-of-02.safetensors", "consolidated.02-of-02.safetensors"),
        ("consolidated.00.safetensors", "consolidated.01.safetensors"),
    ],
)
def test_mistral_folder_in_shards(tmp_path: Path, tensors, names) -> None:
    check(open_checkpoint(folder(tmp_path, split(tensors, *names), config="params.json")), "mistral", tensors)


def test_mistral_folder_in_one_file(tmp_path: Path, tensors) -> None:
    path = folder(tmp_path, {"consolidated.safetensors": tensors}, config="params.json")
    (path / "config.json").write_text("{}")  # As in Mistral's repositories, when only the native weights were fetched.
    check(open_checkpoint(path), "mistral", tensors)


def test_a_folder_with_both_layouts_is_read_as_hugging_face(tmp_path: Path, tensors) -> None:
    folder(tmp_path, {"consolidated.safetensors": {"other": torch.ones(1)}}, config="params.json")
    check(open_checkpoint(folder(tmp_path, {"model.safetensors": tensors})), "huggingface", tensors)


def test_gguf_by_file_and_by_folder(write, gguf) -> None:
    path = write("model.gguf", gguf.small())
    for given in (path, path.parent):
        with open_checkpoint(given) as checkpoint:
            assert checkpoint.kind == "gguf"
            assert checkpoint.path == path
            assert checkpoint.config["general.architecture"] == "llama"
            assert checkpoint.dtype_name("output.weight") == "Q4_K"
            assert checkpoint.read("output.weight").dtype == torch.float32
            assert checkpoint.read("output.weight", torch.bfloat16).shape == (1, 256)
            assert checkpoint.read("output_norm.weight").tolist() == list(range(6))
            assert (checkpoint.n_parameters, checkpoint.nbytes) == (128 + 6 + 256, 136 + 24 + 144)


def test_symbolic_links_into_a_cache_are_followed(tmp_path: Path, tensors) -> None:
    blobs, snapshot = folder(tmp_path / "blobs", {"model.safetensors": tensors}), tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(blobs / name)
    check(open_checkpoint(snapshot), "huggingface", tensors)


def test_the_stored_type_is_a_view_that_outlives_the_checkpoint_and_never_writes_back(tmp_path: Path, tensors) -> None:
    path = folder(tmp_path, {"model.safetensors": tensors})
    before = (path / "model.safetensors").read_bytes()
    checkpoint = open_checkpoint(path)
    first, second = checkpoint.read("b.weight"), checkpoint.read("b.weight", torch.float32)
    assert first.data_ptr() == second.data_ptr()
    assert checkpoint.read("b.weight", torch.float64).data_ptr() != first.data_ptr()
    first.zero_()
    checkpoint.close()
    del checkpoint
    gc.collect()
    assert second.tolist() == [0.0] * 5
    assert (path / "model.safetensors").read_bytes() == before


def test_a_tensor_of_many_slices_converts_whole(tmp_path: Path) -> None:
    big = torch.arange(6_000_001, dtype=torch.int32).to(torch.float32)
    with open_checkpoint(folder(tmp_path, {"model.safetensors": {"big": big}})) as checkpoint:
        assert torch.equal(checkpoint.read("big", torch.float64), big.double())


def test_a_file_that_shrinks_or_is_closed_is_refused_before_it_is_touched(tmp_path: Path, tensors) -> None:
    path = folder(tmp_path, {"model.safetensors": tensors})
    checkpoint = open_checkpoint(path)
    size = (path / "model.safetensors").stat().st_size
    os.truncate(path / "model.safetensors", size - 1)
    for dtype in (None, torch.float64):
        with pytest.raises(CheckpointError, match="changed while it was open"):
            checkpoint.read("b.weight", dtype)
    os.truncate(path / "model.safetensors", size)
    assert checkpoint.read("a.weight").shape == (3, 4)
    checkpoint.close()
    with pytest.raises(CheckpointError, match="was closed"):
        checkpoint.read("a.weight")


def test_a_file_replaced_by_renaming_keeps_serving_the_old_one(tmp_path: Path, tensors) -> None:
    path = folder(tmp_path, {"model.safetensors": tensors})
    with open_checkpoint(path) as checkpoint:
        (path / "new").write_bytes(b"")
        (path / "new").rename(path / "model.safetensors")
        assert torch.equal(checkpoint.read("b.weight"), tensors["b.weight"])


def test_unknown_tensor(tmp_path: Path, tensors) -> None:
    with open_checkpoint(folder(tmp_path, {"model.safetensors": tensors})) as checkpoint:
        for ask in (checkpoint.shape, checkpoint.dtype_name, checkpoint.read):
            with pytest.raises(CheckpointError, match="no tensor 'nowhere"):
                ask("nowhere\n\x1b[2J")


def test_tensors_that_the_index_leaves_out_are_left_out_aloud(tmp_path: Path, tensors, caplog) -> None:
    parts = split(tensors, *SHARDS)
    path = folder(tmp_path, parts, index={"a.weight": SHARDS[0], "c.weight": SHARDS[1]})
    with caplog.at_level(logging.WARNING), open_checkpoint(path) as checkpoint:
        assert checkpoint.names() == {"a.weight", "c.weight"}
    assert "1 tensors" in caplog.text


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "~/x.safetensors", "C:\\x.safetensors",
        "..\\x.safetensors", "\\\\host\\x.safetensors", ".hidden.safetensors", "%2fx.safetensors", "x\x00.safetensors",
        "x.safetensors\n", "x.gguf", "config.json", "x" * 300 + ".safetensors", "/dev/zero", "/proc/self/environ",
        "model\u202e.safetensors", 5, None, ["x.safetensors"], {"x": 1},
    ],
)  # fmt: skip
def test_an_index_leads_nowhere_but_to_files_beside_it(tmp_path: Path, tensors, shard) -> None:
    inside = folder(tmp_path / "model", {SHARDS[0]: tensors}, index={"a.weight": SHARDS[0], "b.weight": shard})
    folder(tmp_path, {"model.safetensors": tensors})
    opened: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and watching and not isinstance(arguments[0], int):
            opened.append(str(arguments[0]))

    watching = True
    sys.addaudithook(watch)
    with pytest.raises(CheckpointError, match="beside it are read"):
        open_checkpoint(inside)
    watching = False
    assert opened
    assert {Path(path).parent for path in opened} == {inside}


def test_an_index_that_is_wrong_is_refused(tmp_path: Path, tensors) -> None:
    parts = split(tensors, *SHARDS)
    wrong = [
        ({"a.weight": SHARDS[1], "c.weight": SHARDS[1]}, "is in model-00002-of-00002.safetensors, and it is not"),
        ({"z.weight": SHARDS[0]}, "and it is not"),
        ({"a.weight": "model-00003-of-00003.safetensors"}, "cannot open"),
        ({}, "no weight_map"),
        ([SHARDS[0]], "no weight_map"),
    ]
    for index, why in wrong:
        with pytest.raises(CheckpointError, match=why):
            open_checkpoint(folder(tmp_path, parts, index=index))
    with pytest.raises(UnsupportedError, match="pickled"):
        open_checkpoint(folder(tmp_path, parts, index={"a.weight": "pytorch_model.bin"}))
    (tmp_path / SHARDS[1]).unlink()
    both = folder(tmp_path, {SHARDS[1]: tensors}, index={"a.weight": SHARDS[0], "c.weight": SHARDS[1]})
    with pytest.raises(CheckpointError, match="in two files"):
        open_checkpoint(both)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".pkl", ".ckpt", ".PT"])
def test_pickles_are_refused_with_the_way_to_convert_them(write, suffix: str) -> None:
    write("config.json", "{}")
    path = write("pytorch_model" + suffix, b"cos\nsystem\n(S'touch owned'\ntR.")
    for given in (path, path.parent):
        with pytest.raises(UnsupportedError, match=r"pickled.*convert\.py"):
            open_checkpoint(given)


def test_a_pickle_by_another_name_is_refused(write) -> None:
    pickled = b"\x80\x04\x95" + b"cos\nsystem\n(S'touch owned'\ntR." * 10
    write("config.json", "{}")
    path = write("model.safetensors", pickled)
    with pytest.raises(CheckpointError, match="safetensors"):
        open_checkpoint(path.parent)
    with pytest.raises(CheckpointError, match="no GGUF file"):
        open_checkpoint(write("x.gguf", pickled))


def test_what_is_missing_is_named(tmp_path: Path, tensors) -> None:
    with pytest.raises(ModelNotFoundError, match=r"there is no .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no model"):
        open_checkpoint(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no consolidated"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)
    folder(tmp_path, {"consolidated-00002-of-00003.safetensors": tensors}, config="params.json")
    with pytest.raises(CheckpointError, match="lacks part 1 of the 3"):
        open_checkpoint(tmp_path)


def test_several_ggufs_and_lone_weights_are_refused(write, gguf, tmp_path: Path, tensors) -> None:
    write("b.gguf", gguf.small())
    folder_of_two = write("a.gguf", gguf.small()).parent
    with pytest.raises(CheckpointError, match=r"2 \.gguf files: name one of them, a\.gguf"):
        open_checkpoint(folder_of_two)
    safetensors.torch.save_file(tensors, tmp_path / "lone.safetensors")
    with pytest.raises(CheckpointError, match="without a configuration"):
        open_checkpoint(tmp_path / "lone.safetensors")


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path, tensors) -> None:
    path = folder(tmp_path, {"model.safetensors": tensors})
    for name in ("config.json", "model.safetensors"):
        (path / name).rename(tmp_path / "kept")
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError, match="pipe or a device"):
            open_checkpoint(path)
        (path / name).unlink()
        for target, why in (("/dev/zero", "pipe or a device"), (str(tmp_path), "folder"), ("/nowhere", "cannot open")):
            (path / name).symlink_to(target)
            with pytest.raises(CheckpointError, match=why):
                open_checkpoint(path)
            (path / name).unlink()
        (path / name).symlink_to(path / name)
        with pytest.raises(CheckpointError, match="cannot open"):
            open_checkpoint(path)
        (path / name).unlink()
        (tmp_path / "kept").rename(path / name)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(SashError, match="pipe or a device"):
        open_checkpoint(tmp_path / "pipe.gguf")


def test_weights_with_an_oversized_configuration_are_refused(tmp_path: Path, tensors) -> None:
    path = folder(tmp_path, {"model.safetensors": tensors})
    (path / "config.json").write_text('{"a": "' + "x" * 2**20 + '"}')
    with pytest.raises(CheckpointError, match="at most 1048576"):
        open_checkpoint(path)
    (path / "config.json").write_text('{"a": [' + "0," * 200_000 + "0]}")
    with pytest.raises(CheckpointError, match="more than 100000 values"):
        open_checkpoint(path)


def test_guards_hold_without_assertions(write, gguf) -> None:
    path = write("m.gguf", gguf.file([], [gguf.entry("a", [9])], bytes(32)))
    code = (
        "import sys; from pathlib import Path; from sash.checkpoint import open_checkpoint; "
        "from sash.errors import CheckpointError\n"
        "try: open_checkpoint(Path(sys.argv[1]))\nexcept CheckpointError: print('refused')"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
