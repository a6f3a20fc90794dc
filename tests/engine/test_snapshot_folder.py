"""Snapshots on disk: they survive a restart, keep to a budget, and break nothing when the disk does."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

import pytest

from sash.engine import snapshot_folder
from sash.engine.snapshot_files import write
from sash.engine.snapshots import Found
from sash.errors import InputNotFoundError
from tests.engine.made_up_rows import block, files, held, make, state

__all__ = ["make"]

NOBODY = 999_999_999
"""More than the number of any process."""


def test_snapshots_survive_a_restart_and_only_those_of_the_same_network_come_back(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    first = make()
    first.keep([1, 2, 3], "lane", state(3, block(64, 5.0)), b"key", pins=[range(2)])
    first.flush()
    (path,) = files(tmp_path)
    assert path.stat().st_size == first.figures().disk.bytes == first.figures().disk.written * path.stat().st_size
    assert path.stat().st_mode & 0o77 == 0
    assert b"key" not in path.read_bytes()
    again = make()
    assert again.find([1, 2, 3, 4], "lane", b"key") is None
    found = again.find([1, 2, 3, 4], "lane", b"key", pins=[range(2)])
    assert isinstance(found, Found)
    (values,) = found.state.tensors() if len(list(found.state.tensors())) == 1 else (None,)
    assert values is not None
    assert bool((values == 5.0).all())
    assert again.nbytes == held(again)
    other = make(fingerprint="two")
    assert other.find([1, 2, 3, 4], "lane", b"key", pins=[range(2)]) is None
    assert files(tmp_path) == [path]


def test_what_left_memory_comes_back_from_disk(make) -> None:  # type: ignore[no-untyped-def]
    snapshots = make(64 + 4 * 8)
    for token in (1, 2, 3):
        snapshots.keep([token] * 8, None, state(8, block(64, token)))
        snapshots.flush()
    for token in (1, 3, 2, 1):
        found = snapshots.find([token] * 9, None)
        assert bool((next(found.state.tensors()) == token).all())
        assert snapshots.nbytes == held(snapshots) == 96
    assert snapshots.figures().disk.loaded == 4


def test_the_budget_of_the_disk_holds_at_every_moment(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Least recently used out first, before a new one is written; files of other models go like all others."""
    other = make(fingerprint="two")
    other.keep([7], None, state(1))
    other.flush()
    size = files(tmp_path)[0].stat().st_size
    largest = 0

    def watched(*arguments):  # type: ignore[no-untyped-def]
        nonlocal largest
        written = write(*arguments)
        largest = max(largest, sum(path.stat().st_size for path in files(tmp_path)))
        return written

    monkeypatch.setattr(snapshot_folder, "write", watched)
    snapshots = make(disk=3 * size + 10)
    for token in (1, 2):
        snapshots.keep([token], None, state(1))
        snapshots.flush()
    snapshots.drop("of nothing")
    snapshots.keep([3], None, state(1))
    snapshots.flush()
    assert snapshots.figures().disk.removed == 1
    snapshots.keep([4], None, state(1))
    snapshots.flush()
    assert largest <= 3 * size + 10
    assert len(files(tmp_path)) == 3
    again = make(disk=2 * size)
    assert len(files(tmp_path)) == 2
    assert [again.find([token, 9], None) is not None for token in (1, 2, 3, 4)] == [False, False, True, True]
    snapshots = make(disk=size - 1)
    snapshots.keep([8], None, state(1))
    snapshots.flush()
    assert snapshots.figures().disk.skipped == 1
    assert snapshots.find([8, 9], None) is not None


def test_a_full_disk_costs_the_file_and_nothing_else(make, tmp_path: Path, monkeypatch, caplog) -> None:  # type: ignore[no-untyped-def]
    snapshots, sync = make(), os.fsync

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        snapshots.keep([1, 2], None, state(2))
        snapshots.flush()
    assert "No space left" in caplog.text
    assert list((tmp_path / "kept").iterdir()) == []
    assert snapshots.find([1, 2, 3], None).length == 2
    monkeypatch.setattr(os, "fsync", sync)
    snapshots.keep([1, 2, 3], None, state(3))
    snapshots.flush()
    assert len(files(tmp_path)) == 1
    assert snapshots.figures().disk.failed == 1


def test_a_folder_that_vanishes_or_cannot_be_is_no_catastrophe(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    snapshots = make()
    snapshots.keep([1, 2], None, state(2))
    snapshots.flush()
    again = make()
    for path in files(tmp_path):
        path.unlink()
    (tmp_path / "kept").rmdir()
    assert again.find([1, 2, 3], None) is None
    assert again.figures().misses == {"refused": 1}
    again.keep([1, 2], None, state(2))
    again.flush()
    assert again.figures().disk.failed == 1
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(InputNotFoundError, match="snapshots cannot be kept in"):
        make()


def test_more_than_the_disk_can_take_stays_in_memory(make, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """While one is being written, the queue is bounded; what is evicted is not written, what is written not evicted."""
    gate, entered = threading.Event(), threading.Event()

    def slow(*arguments):  # type: ignore[no-untyped-def]
        entered.set()
        assert gate.wait(240)
        return write(*arguments)

    monkeypatch.setattr(snapshot_folder, "write", slow)
    monkeypatch.setattr(snapshot_folder, "MAX_QUEUED", 16)
    snapshots = make(40 * 12)
    snapshots.keep([0], None, state(1))
    assert entered.wait(240)
    for token in range(1, 40):
        snapshots.keep([token], None, state(1))
    assert snapshots.figures().in_memory == 40
    assert snapshots.figures().disk.skipped == 39 - snapshot_folder.MAX_QUEUED
    for token in range(40, 79):
        snapshots.keep([token], None, state(1))
        assert snapshots.nbytes == held(snapshots) <= 40 * 12
    assert snapshots.find([0, 9], None) is not None  # under way, so it could not go
    assert snapshots.find([1, 9], None) is None
    gate.set()
    snapshots.flush()
    assert snapshots.figures().disk.written == 1 + snapshot_folder.MAX_QUEUED


def test_half_written_files_are_removed_unless_somebody_writes_them(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "kept"
    folder.mkdir()
    dead, living = folder / f".{'a' * 40}.{NOBODY}.tmp", folder / f".{'b' * 40}.{os.getppid()}.tmp"
    other = folder / "notes.txt"
    for path in (dead, living, other):
        path.write_bytes(b"half")
    make()
    assert not dead.exists()
    assert living.exists()
    assert other.exists()


def test_whoever_waits_for_the_disk_is_told_when_it_has_all_and_waits_no_longer_than_told(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    go = threading.Event()

    def slow(*args: object) -> None:
        assert go.wait(240)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot_folder, "write", slow)
    snapshots = make()
    assert snapshots.settle(0)
    snapshots.keep([1, 2, 3], None, state(3, block(64, 1.0)))
    assert not snapshots.settle(0.01)
    threading.Timer(0.05, go.set).start()
    assert snapshots.settle(240)
    assert snapshots.figures().disk.written == 1
