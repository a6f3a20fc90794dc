"""Rows that are made up, and snapshots of them in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from sash.engine.snapshot_files import SUFFIX, Label, root_name
from sash.engine.snapshot_index import Asked
from sash.engine.snapshots import Snapshots
from sash.network import sizing
from sash.network.blocks import Block
from sash.network.slots import HeldRun, Vectors
from sash.network.snapshot import RowState
from sash.network.store_state import StoreState


def block(n_bytes: int = 64, value: float = 1.0) -> Block:
    """Slots of one layer, one head and one component of float32."""
    return Block(Vectors(torch.full((2, 1, 1, n_bytes // 8, 1), float(value))), None, n_bytes // 8)


def state(length: int, *blocks: Block) -> RowState:
    """A row without a window, in one block."""
    return RowState(length, ("kind",), (StoreState(blocks or (block(8 * length),), (0,)),))


def row_of(ids: Sequence[int], reach: int | None = None, first: int = 0, pins: Sequence[range] = ()) -> RowState:
    """A row of blocks as a log's, from the one of `first` on, whose keys and values are its tokens."""
    size = sizing.LOG_BLOCK
    starts = tuple(range(first // size * size, len(ids), size)) if reach is not None else (0,)
    blocks = []
    for start, stop in zip(starts, (*starts[1:], len(ids)), strict=True):
        values = torch.tensor(ids[start:stop], dtype=torch.float32)
        blocks.append(Block(Vectors(values.view(1, 1, 1, -1, 1).repeat(2, 1, 1, 1, 1)), None, stop - start))
    runs, taken = [], 0
    for run in pins:
        if run.start < len(ids):
            runs.append(HeldRun(run.start, min(run.stop, len(ids)) - run.start, "pins", taken))
            taken += runs[-1].size
    return RowState(len(ids), ("kind",), (StoreState(tuple(blocks), starts, 0, reach, None, tuple(runs)),))


def beside(*rows: RowState) -> RowState:
    """A row with all the stores of some, of the same tokens."""
    states = tuple(state for row in rows for state in row.states)
    return RowState(rows[0].length, ("kind",) * len(states), states)


def tokens_of(found: RowState, length: int, index: int = -1) -> list[int]:
    """The tokens that a store's keys are, of all positions that it holds below `length`, -1 for those before."""
    store = found.states[index]
    values = [-1] * length
    for start, part in zip(store.starts, store.blocks, strict=True):
        for slot, value in enumerate(part.slots.numbers[0, 0, 0, :, 0].tolist()):
            if start + slot < length:
                values[start + slot] = int(value)
    return values


def label_of(ids: Sequence[int], fingerprint: str = "f") -> Label:
    """The label of a first piece."""
    label = Asked(fingerprint, ids, None, b"", ()).labels()[0]
    return Label(
        fingerprint=fingerprint, lane="None", salt="", parent=root_name(fingerprint, "None", ""),
        start=0, pins=(), ids=label.ids,
    )  # fmt: skip


def held(snapshots: Snapshots) -> int:
    """What is in memory, counted anew."""
    kept = snapshots._held.pieces
    pieces = {piece: size for one in kept for part in one.parts.values() for piece, size in part.storages().items()}
    return sum(pieces.values()) + sum(len(one.label.ids) for one in kept)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Snapshots]]:
    """Makes snapshots over the same folder, time and again."""
    made: list[Snapshots] = []

    def build(memory: int = 1 << 20, *, disk: int = 1 << 20, fingerprint: str = "one") -> Snapshots:
        made.append(Snapshots(memory, folder=tmp_path / "kept", disk=disk, fingerprint=fingerprint))
        return made[-1]

    yield build
    for snapshots in made:
        snapshots.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").glob("*" + SUFFIX))
