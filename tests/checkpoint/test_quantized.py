"""Folders of packed weights: whole or not at all, read back in place, and refused where they contradict themselves."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import sash
from sash.checkpoint import open_checkpoint, quantized
from sash.checkpoint.companions import licence_of, tokenizer_of
from sash.checkpoint.description import read_description
from sash.checkpoint.header import FILE, WEIGHTS_FILE, Header, storage_sizes
from sash.checkpoint.packed_parts import packed_parts
from sash.checkpoint.quantized import read_parts, save_quantized
from sash.errors import CheckpointError, DiskFullError, SashError, UnsupportedError, UsageError
from sash.kernels.packed import PackedWeight
from tests.checkpoint.test_load import mapped_from
from tests.cli.conftest import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def save(model: Path, target: Path, weights: str = "int4", **options: Any) -> Header:
    with open_checkpoint(model) as checkpoint:
        return save_quantized(checkpoint, read_description(checkpoint), target, weights=weights, **options)


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "tiny-int4"
    save(model, target, name="tiny")
    return target


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_what_is_saved_is_read_back(model: Path, tmp_path: Path, weights: str) -> None:
    header = save(model, tmp_path / "q", weights, name="tiny")
    with open_checkpoint(model) as checkpoint:
        description = read_description(checkpoint)
        wanted = packed_parts(checkpoint, description, weights)
    with open_checkpoint(tmp_path / "q") as checkpoint:
        assert checkpoint.kind == "sash"
        assert read_description(checkpoint).config == description.config
        assert Header.from_json(checkpoint.config) == header
        found = read_parts(checkpoint)
    assert list(found) == list(wanted)
    for name, part in found.items():
        other = wanted[name]
        if isinstance(part, PackedWeight) and isinstance(other, PackedWeight):
            assert part.form == other.form
            assert all(torch.equal(tensor, other.tensors()[key]) for key, tensor in part.tensors().items())
        else:
            assert torch.equal(part, other)


def test_other_software_can_read_the_weights(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    assert tensors["layers.0.attention.wo.data"].dtype == torch.uint8
    assert tensors["layers.0.attention_norm.weight"].shape == (32,)


def test_data_is_read_in_place_and_aligned(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        parts = read_parts(checkpoint)
    if not Path("/proc/self/maps").exists():
        pytest.skip("what a process has mapped is read from /proc, which only Linux has")
    for part in parts.values():
        if isinstance(part, PackedWeight):
            assert mapped_from(part.data.data_ptr()) == str(folder / WEIGHTS_FILE)
            assert all(tensor.data_ptr() % 64 == 0 for tensor in part.tensors().values())


def test_a_folder_says_where_it_comes_from(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        header = Header.from_json(checkpoint.config)
        assert licence_of(checkpoint) == header.origin.licence == "cc0-1.0"
    assert (header.origin.name, header.weights, header.origin.tokenizer) == ("tiny", "int4", "folder")
    assert len(header.origin.tensors_sha256) == 64
    assert set(storage_sizes(header.to_json())) == {"int4m", "int8"}
    assert (folder / "README.md").is_file()
    assert not (folder / "config.json").exists()


def test_it_answers_as_the_model_quantised_at_load_does(model: Path, folder: Path) -> None:
    ids = [5, 100, 200, 30]
    saved, loaded = sash.load(folder), sash.load(model, weights="int4")
    one = saved.generate(ids, max_tokens=8, temperature=0.0)
    assert one.token_ids == loaded.generate(ids, max_tokens=8, temperature=0.0).token_ids
    assert saved.tokenizer.eos_ids == loaded.tokenizer.eos_ids
    assert saved.tokenizer.encode("Hé llo") == loaded.tokenizer.encode("Hé llo")
    messages = [{"role": "user", "content": "hi"}]
    assert saved.tokenizer.encode_chat(messages) == loaded.tokenizer.encode_chat(messages)


def test_ends_that_only_the_configuration_names_are_kept(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 77]}))
    save(model, tmp_path / "q")
    with open_checkpoint(tmp_path / "q") as checkpoint:
        assert {1, 77} <= tokenizer_of(checkpoint).eos_ids


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), RuntimeError("no")])
def test_what_fails_on_the_way_leaves_nothing(model: Path, tmp_path: Path, failure: BaseException) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise failure

    with pytest.raises(DiskFullError if isinstance(failure, OSError) else type(failure)):
        save(model, tmp_path / "q", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(quantized.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match="are free"):
        save(model, tmp_path / "q")
    assert list(tmp_path.iterdir()) == []


def test_parts_are_written_one_by_one(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    made: list[weakref.ref[torch.Tensor]] = []
    make = quantized.PartPlan.make

    def watched(plan: quantized.PartPlan) -> PackedWeight | torch.Tensor:
        assert not any(earlier() is not None for earlier in made[:-1])
        part = make(plan)
        made.append(weakref.ref(part.data if isinstance(part, PackedWeight) else part))
        return part

    monkeypatch.setattr(quantized.PartPlan, "make", watched)
    save(model, tmp_path / "q")
    assert len(made) > 10


def test_a_folder_that_holds_something_is_left_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    save(model, tmp_path / "q")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "q").iterdir())
    with pytest.raises(UsageError, match="is there already"):
        save(model, tmp_path / "q")
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "q").iterdir()) == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is there already"):
        save(model, tmp_path / "file")
    save(model, tmp_path / "new" / "deep" / "q")
    assert (tmp_path / "new" / "deep" / "q" / FILE).is_file()


def test_a_quantised_folder_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="quantised already"):
        save(folder, tmp_path / "q")


def test_files_may_be_read_by_who_may_read_new_files(folder: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


# What a folder may not say.


def edit(folder: Path, change: Any) -> None:
    header = json.loads((folder / FILE).read_text())
    change(header)
    (folder / FILE).write_text(json.dumps(header))


def at(*path: Any, value: Any) -> Any:
    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


def without(*path: Any) -> Any:
    def change(header: Any) -> None:
        for key in path[:-1]:
            header = header[key]
        del header[path[-1]]

    return change


WO = ("parts", "layers.0.attention.wo")
LIES: dict[str, tuple[Any, str]] = {
    "format": (at("format", value="gguf"), "format"),
    "no version": (without("version"), "version"),
    "version text": (at("version", value="1"), "version"),
    "later version": (at("version", value=2), "update Sash"),
    "unknown key": (at("extra", value=1), "unknown 'extra'"),
    "no config": (without("config"), "no 'config'"),
    "weights": (at("weights", value="int2"), "weights"),
    "origin": (at("origin", value=[]), "origin"),
    "origin key": (at("origin", "url", value="http"), "origin.url is not known"),
    "tokenizer": (at("origin", "tokenizer", value="pickle"), "origin.tokenizer"),
    "long name": (at("origin", "name", value="x" * 10_000), "origin.name"),
    "parts list": (at("parts", value=[]), "parts"),
    "part missing": (without(*WO), "wo"),
    "part unknown": (at("parts", "layers.9.attention.wo", value={}), "layers.9"),
    "part empty": (at(*WO, value={}), "wo"),
    "kind": (at(*WO, "kind", value="int3"), "kind"),
    "n": (at(*WO, "n", value=31), "31 x 32"),
    "n negative": (at(*WO, "n", value=-1), "broken"),
    "k huge": (at(*WO, "k", value=2**40), "wo.k"),
    "k true": (at(*WO, "k", value=True), "wo.k"),
    "group": (at(*WO, "group", value=7), "group|scale"),
    "rotation": (at(*WO, "rotation", value=3), "rotation"),
    "other rotation is of another size": (at(*WO, "rotation", value=64), "rotation"),
    "minimum": (at(*WO, "minimum", value=True), "minima"),
    "minimum number": (at(*WO, "minimum", value=1), "minimum"),
    "kind of another file": (at(*WO, value={**dict.fromkeys(["group"], 0), "kind": "int8", "n": 32, "k": 32,
                                             "minimum": False, "rotation": 32}), "multiplier|should be"),
    "config key": (at("config", "unknown", value=1), "unknown is not known"),
    "config lacks": (without("config", "norm_eps"), "norm_eps is missing"),
    "dim": (at("config", "dim", value=0), "dim"),
    "dim float": (at("config", "dim", value=32.0), "dim"),
    "dim huge": (at("config", "dim", value=10**30), "dim"),
    "dim other": (at("config", "dim", value=48), "tok_embeddings"),
    "heads": (at("config", "n_heads", value=3), "multiple"),
    "activation": (at("config", "activation", value="relu"), "activation"),
    "no layers": (at("config", "layers", value=[]), "layer"),
    "window": (at("config", "layers", 0, "pattern", "window", value=0), "window"),
    "window text": (at("config", "layers", 0, "pattern", "window", value="16"), "window"),
    "pins": (at("config", "layers", 0, "pattern", "pins", value=99), "pins"),
    "theta": (at("config", "layers", 0, "rope", "theta", value=-1.0), "theta"),
    "theta huge": (at("config", "layers", 0, "rope", "theta", value=10**300), "theta"),
    "experts": (at("config", "layers", 0, "moe", value={"n_experts": 10**9, "top_k": 1, "expert": None}), "experts"),
    "nested experts": (
        at("config", "layers", 0, "moe", value={"n_experts": 60_000, "top_k": 1, "expert": {
            "n_experts": 60_000, "top_k": 1, "expert": None}}), "experts"),
    "vocabulary": (at("config", "vocab_size", value=999_999_999), "vocab|tok_embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_before_anything_is_read(
    copied: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, word = LIES[lie]
    edit(copied, change)
    monkeypatch.setattr("sash.checkpoint.source.Checkpoint.read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises((CheckpointError, UnsupportedError), match=word):
        sash.load(copied)


def test_layers_without_end_are_refused(copied: Path) -> None:
    edit(copied, lambda header: header["config"].update(layers=header["config"]["layers"] * 6000))
    with pytest.raises(SashError, match="layers"):
        sash.load(copied)


@pytest.mark.parametrize("seed", range(60))
def test_a_header_with_any_value_changed_loads_or_is_refused(copied: Path, seed: int) -> None:
    """Whatever is changed, nothing but Sash's own errors comes out, and no tensor of another shape gets in."""
    generator = random.Random(seed)
    values = [None, True, -1, 0, 3, 2**31, 2**70, 1.5, -1e300, "", "int8", [], {}, [1], {"a": 1}]

    def mutate(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = generator.choice(list(keys))
        if isinstance(node[key], dict | list) and node[key] and generator.random() < 0.9:
            mutate(node[key])
        else:
            node[key] = generator.choice(values)

    edit(copied, mutate)
    try:
        lm = sash.load(copied)
    except SashError:
        return
    assert torch.isfinite(lm.logits([5, 100, 200])).all()


def rewrite(folder: Path, change: Any) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop("norm.weight"), "lacks 'norm.weight'"),
        (lambda t: t.update(more=torch.zeros(1)), "does not belong"),
        (lambda t: t.update({"norm.weight": torch.zeros(31)}), "should be F32"),
        (lambda t: t.update({"norm.weight": torch.zeros(32).half()}), "should be F32"),
        (lambda t: t.update({"output.data": t["output.data"].view(torch.uint8)}), "should be I8"),
        (lambda t: t.update({"output.data": t["output.data"][:1].clone()}), "should be I8"),
    ],
)
def test_a_file_of_other_tensors_than_the_header_says_is_refused(copied: Path, change: Any, word: str) -> None:
    rewrite(copied, change)
    with pytest.raises(CheckpointError, match=word):
        sash.load(copied)


def test_files_that_are_cut_short_or_gone_are_refused(copied: Path) -> None:
    data = (copied / WEIGHTS_FILE).read_bytes()
    (copied / WEIGHTS_FILE).write_bytes(data[:-1])
    with pytest.raises(CheckpointError):
        sash.load(copied)
    (copied / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot open"):
        sash.load(copied)
    (copied / FILE).write_text("{")
    with pytest.raises(CheckpointError):
        sash.load(copied)


def test_weights_that_the_folder_does_not_hold_are_refused(folder: Path) -> None:
    assert sash.load(folder, weights="int4").generate([5], max_tokens=1).token_ids
    for weights in ("int8", "bf16"):
        with pytest.raises(UsageError, match=f"int4 weights, not {weights}"):
            sash.load(folder, weights=weights)
