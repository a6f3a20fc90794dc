"""Rows that are made up, and snapshots of them in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sash.engine.snapshot_files import SUFFIX
from sash.engine.snapshots import Snapshots
from sash.network.blocks import Block
from sash.network.slots import Vectors
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState


def block(n_bytes: int = 64, value: float = 1.0) -> Block:
    """Slots of one layer, one head and one component of float32."""
    return Block(Vectors(torch.full((2, 1, 1, n_bytes // 8, 1), float(value))), None, n_bytes // 8)


def state(length: int, *blocks: Block) -> RowState:
    return RowState(length, ("kind",), (StoreState(blocks or (block(),), (0,)),))


def held(snapshots: Snapshots) -> int:
    """What is in memory, counted anew."""
    kept = list(snapshots._order.values())
    pieces = {piece: size for one in kept if one.state is not None for piece, size in one.state.storages().items()}
    return sum(pieces.values()) + sum(4 * one.length for one in kept)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Snapshots]]:
    """Makes snapshots over the same folder, time and again."""
    made: list[Snapshots] = []

    def build(memory: int = 1 << 20, *, disk: int = 1 << 20, fingerprint: str = "one", **more: int) -> Snapshots:
        made.append(Snapshots(memory, folder=tmp_path / "kept", disk=disk, fingerprint=fingerprint, **more))
        return made[-1]

    yield build
    for snapshots in made:
        snapshots.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").glob("*" + SUFFIX))
