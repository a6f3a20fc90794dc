"""What network a checkpoint holds: its tables, read by the family it belongs to. Needs no torch for most files."""

from __future__ import annotations

from collections.abc import Sequence

from sash.checkpoint.header import Header
from sash.checkpoint.source import Checkpoint
from sash.families import Description, describe


def read_description(checkpoint: Checkpoint) -> Description:
    """What network a checkpoint holds, and which tensor is which; of a quantised folder only the network.

    Raises:
        CheckpointError, ConfigError: its files are broken or not understood.
    """
    if checkpoint.kind == "sash":
        return Description(Header.from_json(checkpoint.config).config, {})

    def read_vector(name: str) -> Sequence[float]:
        values: list[float] = checkpoint.read(name).float().tolist()
        return values

    return describe(checkpoint.kind, checkpoint.config, checkpoint.names(), read_vector)
