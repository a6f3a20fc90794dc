"""What became of snapshots, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class FolderFigures:
    """What became of snapshots on disk.

    Attributes:
        files: how many there are, those of other models too.
        bytes: their sizes.
        written, loaded: since the start.
        refused: files that were torn, damaged or not understood.
        failed: writes that the disk refused.
        skipped: snapshots that were not written since too many waited, or since they are larger than the budget.
        removed: files that were removed to make room.
    """

    files: int = 0
    bytes: int = 0
    written: int = 0
    loaded: int = 0
    refused: int = 0
    failed: int = 0
    skipped: int = 0
    removed: int = 0


@dataclass(slots=True, kw_only=True)
class SnapshotFigures:
    """Counts since the start, and what there is now.

    Attributes:
        hits: requests that went on from a snapshot.
        tokens: that they did not have to read.
        misses: requests that did not, by reason: "empty" (nothing is kept for this lane and salt), "differs" (what is
            kept has read other tokens), "too short" (all that is kept is longer than the request), "refused" (what was
            found could not be loaded), "off" (not asked).
        in_memory, bytes, memory: snapshots in memory, their bytes, and the budget.
        kept: snapshots that were taken; too_large: those that the budget could not have held.
        evictions: parts of snapshots that went from memory to make room.
        disk: what became of them on disk; None without a folder.
    """

    memory: int
    hits: int = 0
    tokens: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    in_memory: int = 0
    bytes: int = 0
    kept: int = 0
    too_large: int = 0
    evictions: int = 0
    disk: FolderFigures | None = None
