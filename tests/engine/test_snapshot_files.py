"""Files of snapshots are read whole and right, or refused.

SASH_CHAOS=1 (`make test-chaos`) plays 200 kills while they are written, 1,000 flipped bits and 1,000 cuts.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.engine import snapshot_files
from sash.engine.snapshot_files import SUFFIX, Label, read, read_label, write
from sash.errors import CheckpointError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState
from tests.conftest import small_config, small_decoder
from tests.engine.made_up_rows import files, label_of, make, state

__all__ = ["make"]

ROOT = Path(__file__).parents[2]
KILLS, CHANGES = (200, 1000) if os.environ.get("SASH_CHAOS") == "1" else (50, 300)


def sample(tmp_path: Path) -> tuple[Path, Label, RowState]:
    """A file of a row with a ring, pins, int8 and a block."""
    config = small_config([AttentionPattern(window=4, pins=2), AttentionPattern()])
    cache = KVCache(config, kv="int8")
    row = cache.allocate()
    with torch.inference_mode():
        small_decoder(config)(Batch.pack([list(range(11))], [0], [row]), cache)
    label = label_of(range(11))
    kept = cache.capture(row)
    write(tmp_path, label, kept, tensors_by_store(kept))
    return tmp_path / (label.name + SUFFIX), label, kept


def tensors_by_store(state: RowState) -> list[list[torch.Tensor]]:
    return [list(state.tensors_of(store)) for store in range(len(state.states))]


def same(parts: dict[int, StoreState], kept: RowState) -> bool:
    """Whether the parts are those of a state, by all that they say and every number."""
    state = RowState(kept.length, kept.kinds, tuple(parts.get(i, one) for i, one in enumerate(kept.states)))
    pairs = zip(state.tensors(), kept.tensors(), strict=True)
    return state.describe() == kept.describe() and all(torch.equal(a, b) for a, b in pairs)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path, label, kept = sample(tmp_path)
    assert read_label(path).label == label
    for stores in (None, [0], [1], [1, 0]):
        parts = read(path, label, stores)
        assert sorted(parts) == sorted(stores or [0, 1])
        assert same(parts, kept)
    with pytest.raises(CheckpointError, match="has 2 stores, and number 2 is needed"):
        read(path, label, [2])
    with pytest.raises(CheckpointError, match="something else"):
        read(path, label_of(range(12)))


def test_every_flipped_bit_and_every_cut_is_refused(tmp_path: Path) -> None:
    """Many of each at random, and every bit of the first bytes; a file under another name is refused as well."""
    path, label, _ = sample(tmp_path)
    whole, chance = path.read_bytes(), random.Random(0)
    flips = [*range(8 * 64), *(chance.randrange(8 * len(whole)) for _ in range(CHANGES))]
    cuts = [0, 1, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(CHANGES))]
    changed = [whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :] for bit in flips]
    changed += [whole[:cut] for cut in cuts] + [whole + b"\0", whole + whole, bytes(len(whole)), b""]
    for data in changed:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read(path, label)
    path.write_bytes(whole)
    renamed = path.rename(path.with_name("0" * 40 + SUFFIX))
    with pytest.raises(CheckpointError, match="contradicts itself"):
        read_label(renamed)


def test_a_damaged_part_is_refused_and_the_other_is_read(tmp_path: Path) -> None:
    path, label, kept = sample(tmp_path)
    whole, chance, first = path.read_bytes(), random.Random(1), read_label(path).start
    # What follows the tensors of a part: its digest, and zeros up to 64 bytes.
    second = first + 64 + sum(-(-tensor.nbytes // 64) * 64 for tensor in kept.tensors_of(0))
    places = [(first, second, 0), (second, len(whole), 1)]
    for start, stop, damaged in places:
        for bit in (8 * start, 8 * stop - 1, *(chance.randrange(8 * start, 8 * stop) for _ in range(CHANGES // 10))):
            path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :])
            assert same(read(path, label, [1 - damaged]), kept)
            for stores in (None, [damaged]):
                with pytest.raises(CheckpointError, match="a checksum does not fit"):
                    read(path, label, stores)


def test_parts_of_two_files_or_of_two_stores_are_no_snapshot(tmp_path: Path) -> None:
    """Each checksum is of its own front and place: what is whole elsewhere is refused here."""
    path, label, kept = sample(tmp_path)
    data = path.read_bytes()
    other = label_of(range(1, 12))
    write(tmp_path, other, kept, tensors_by_store(kept))
    path.write_bytes(
        data[: read_label(path).start]
        + (tmp_path / (other.name + SUFFIX)).read_bytes()[-len(data) :][read_label(path).start :]
    )
    for store in (0, 1):
        with pytest.raises(CheckpointError, match="a checksum does not fit"):
            read(path, label, [store])
    twin = RowState(4, ("kind", "kind"), 2 * state(4).states)
    label = label_of(range(4))
    write(tmp_path, label, twin, tensors_by_store(twin))
    path = tmp_path / (label.name + SUFFIX)
    data, first = path.read_bytes(), read_label(path).start
    half = (len(data) - first) // 2
    assert data[first : first + 64] == data[first + half : first + half + 64]
    path.write_bytes(data[:first] + data[first + half :] + data[first : first + half])
    with pytest.raises(CheckpointError, match="a checksum does not fit"):
        read(path, label)


def forged(header: bytes, n_ids: int, n_data: int, ids: bytes = b"", data: bytes = b"") -> bytes:
    """A file whose checksums are right, whatever it says."""
    front = snapshot_files._PRELUDE.pack(snapshot_files._MAGIC, snapshot_files.VERSION, len(header), n_ids, n_data)
    front += header + ids
    front += sha256(front).digest()
    return front + bytes(-len(front) % 64) + data


@pytest.mark.parametrize(
    "data",
    [
        forged(b"{}", 0, 0),
        forged(b"[]", 0, 0),
        forged(b"{" * 5000, 0, 0),
        forged(b"", 2**62, 0),
        forged(b"", 0, 2**62),
        forged(
            b'{"fingerprint": 1, "lane": "", "salt": "", "parent": "", "start": 0, "pins": [], "state": {},'
            b' "tensors": []}', 0, 0,
        ),
        forged(
            b'{"fingerprint": "f", "lane": "", "salt": "", "parent": "", "start": 0, "pins": [], "state": {},'
            b' "tensors": [[["int8", [1099511627776]]]]}', 0, 0,
        ),
        forged(
            b'{"fingerprint": "f", "lane": "", "salt": "", "parent": "", "start": 0, "pins": [], "state": {},'
            b' "tensors": [[["int8", [-64]]]]}', 0, 64, data=bytes(64),
        ),
        forged(
            b'{"fingerprint": "f", "lane": "", "salt": "", "parent": "", "start": 0, "pins": [], "state": {},'
            b' "tensors": [[["object", [64]]]]}', 0, 64, data=bytes(64),
        ),
    ],
)  # fmt: skip
def test_sizes_are_checked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("memory was taken for a file that lies")

    monkeypatch.setattr(torch, "empty", never)
    path = tmp_path / ("0" * 40 + SUFFIX)
    path.write_bytes(data)
    label = Label(fingerprint="f", lane="", salt="", parent="", start=0, pins=(), ids=b"")
    with pytest.raises(CheckpointError):
        read(path, label)


def test_what_is_no_snapshot_is_told_in_the_log_and_left_alone(make, tmp_path: Path, caplog) -> None:  # type: ignore[no-untyped-def]
    snapshots = make()
    snapshots.keep([1, 2], None, state(2))
    snapshots.keep([3, 4], None, state(2))
    snapshots.flush()
    first, second = files(tmp_path)
    first.write_bytes(b"something else altogether, and long enough for a first look")
    damaged = bytearray(second.read_bytes())
    damaged[-80] ^= 1  # in the data, which only loading looks at
    second.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        again = make()
        assert [again.find([token, token + 1, 9], None) for token in (1, 3)] == [None, None]
    assert caplog.text.count("snapshot refused") == 2
    assert again.figures().disk.refused == 2
    assert sorted(again.figures().misses.values()) in ([2], [1, 1])
    assert len(files(tmp_path)) == 2
    again.keep([3, 4], None, state(2))
    again.keep([1, 2], None, state(2))
    again.flush()
    last = make()
    assert all(last.find([token, token + 1, 9], None) is not None for token in (1, 3))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from sash.engine.snapshot_files import Label, read, read_label, write
from sash.engine.snapshot_folder import SnapshotFolder
from tests.engine.made_up_rows import block, state

folder, chance, whole, torn = Path(sys.argv[1]), random.Random(0), 0, 0
for kill in range(int(sys.argv[2])):
    ready, begun = os.pipe()
    child = os.fork()
    stuck = kill % 3 == 0  # every third is killed before its first file is whole, however fast the disk is
    if child == 0:
        def hang(handle):
            os.write(begun, b"1")
            signal.pause()

        os.fsync = hang if stuck else os.fsync
        for count in range(10_000):
            ids = (1000 * kill + count).to_bytes(4, "little") * (1 << 15)
            label = Label(fingerprint="f", lane="", salt="", parent="", start=0, pins=(), ids=ids)
            kept = state(1 << 15, block(1 << 18, float(1000 * kill + count)))
            os.write(begun, b"1")
            write(folder, label, kept, [list(kept.tensors())])
        os._exit(0)
    for _ in range(2 if stuck else kill % 3 + 1):  # the first files of others are whole, however slow the machine is
        os.read(ready, 1)
    time.sleep(chance.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += len(list(folder.glob(".*.tmp")))
    found = SnapshotFolder(folder, 1 << 40, "f")
    found.close()
    assert not list(folder.glob(".*.tmp")), "what was half written was left"
    assert found.figures.refused == 0
    for front in found.found:
        (values,) = read(folder / (front.label.name + ".sash-snapshot"), front.label)[0].tensors()
        assert bool((values == int.from_bytes(front.label.ids[:4], "little")).all())
        whole += 1
    for path in folder.iterdir():
        path.unlink()
print(whole, torn)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_while_writing_leave_no_torn_snapshot(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1500,
    )
    assert result.returncode == 0, result.stderr
    whole, torn = map(int, result.stdout.split())
    assert whole > 0
    assert torn > KILLS // 10  # it was killed in the midst of writing, not between two files
