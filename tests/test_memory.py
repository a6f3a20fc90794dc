"""How much memory there is, on the machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from sash import memory


def write(folder: Path, limit: str) -> None:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text("700\n")
    (folder / "memory.stat").write_text("anon 400\ninactive_file 200\nactive_file 100\n")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = memory.available_memory()
    assert machine is not None
    assert machine > 10**8
    write(tmp_path, "1000")
    assert memory.available_memory() == 500
    write(tmp_path, "400")
    assert memory.available_memory() == 0


def test_no_limit_or_an_unreadable_one_leaves_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    write(tmp_path, "max")
    first = memory.available_memory()
    (tmp_path / "memory.max").write_text("not a number")
    second = memory.available_memory()
    assert first is not None
    assert second is not None
    assert min(first, second) > 10**8
