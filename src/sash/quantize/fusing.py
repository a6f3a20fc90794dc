"""Weights that meet the same activations, joined into one: tiles side by side, or one from each in turn.

A part of a joined weight begins at a whole tile, so where its outputs are no multiple of 16 there are outputs of zero
behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.kernels.layout import TILE, padded
from sash.kernels.packed import PackedWeight


def padded_rows(n: int) -> int:
    """Outputs that a part of n outputs takes in a joined weight.

    >>> padded_rows(16), padded_rows(40)
    (16, 48)
    """
    return padded(n, 1)[0]


def fuse_rows(weights: Sequence[PackedWeight]) -> PackedWeight:
    """Join weights by their outputs, one after the other.

    Args:
        weights: of the same inputs, packed in the same way.

    Returns:
        A weight of as many outputs as they have together, each padded to whole tiles.

    Raises:
        UsageError: weights that differ in anything but their outputs.
    """
    _check_alike(weights)
    return _joined(weights, sum(padded_rows(weight.n) for weight in weights), torch.cat)


def interleave_tiles(first: PackedWeight, second: PackedWeight) -> PackedWeight:
    """Join two weights tile by tile: a tile of the first, one of the second, the next of the first, ...

    Raises:
        UsageError: weights that differ in more than their values.
    """
    _check_alike((first, second))
    if first.n != second.n:
        raise UsageError(f"tiles in turn are for weights of as many outputs; got {first.n} and {second.n}")

    def in_turn(parts: list[Tensor]) -> Tensor:
        # The scales of int8 weights are a flat list of outputs: tiles of 16 of them.
        tiled = [part.view(-1, TILE) if part.dim() == 1 else part for part in parts]
        return torch.stack(tiled, dim=1).flatten(0, 1).view(-1, *parts[0].shape[1:])

    return _joined((first, second), 2 * padded_rows(first.n), in_turn)


def take_tiles(weight: PackedWeight, first: int, n: int) -> PackedWeight:
    """The part of `n` outputs of a joined weight that begins with the output `first`, in place.

    Args:
        weight: as `fuse_rows` joins them.
        first: the part's first output, a multiple of 16.
        n: its outputs.

    Raises:
        UsageError: a part that does not begin at a tile, or ends behind the last output.
    """
    if first % TILE or not 0 <= first < first + n <= padded_rows(weight.n):
        raise UsageError(f"outputs {first} to {first + n} are no part of a weight of {weight.n}: parts are whole tiles")
    tiles = slice(first // TILE, (first + padded_rows(n)) // TILE)
    rows = slice(first, first + padded_rows(n))
    parts = {name: part[rows if part.dim() == 1 else tiles] for name, part in weight.tensors().items()}
    return PackedWeight.of(replace(weight.form, n=n), parts)


def _joined(weights: Sequence[PackedWeight], n: int, join: Callable[[list[Tensor]], Tensor]) -> PackedWeight:
    tensors = [weight.tensors() for weight in weights]
    joined = {name: join([each[name] for each in tensors]) for name in tensors[0]}
    return PackedWeight.of(replace(weights[0].form, n=n), joined)


def _check_alike(weights: Sequence[PackedWeight]) -> None:
    if len({replace(weight.form, n=1) for weight in weights}) != 1:
        raise UsageError("weights are joined only where they have the same inputs and are packed in the same way")
