"""What a row has out of sight, as its tokens see it that rank for themselves.

Shape suffixes: L layers, G key/value heads, M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sash.network.slots import Vectors


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole blocks side by side in the log: `count` of them from slot `start` of `slots` on."""

    slots: Vectors
    start: int
    count: int

    def of_layer(self, layer: int) -> Stretch:
        """The same of one layer."""
        return replace(self, slots=self.slots[:, layer : layer + 1])


@dataclass(frozen=True, slots=True)
class Lookup:
    """What was out of sight when a row ranked all of it last.

    Attributes:
        first: the number of the first block; others are counted from it.
        stretches: all of them as they lie.
        table: the same as kernels read it; see `table_of`.
        left_out: blocks that are never chosen: what they hold is pinned.
        count: blocks that every head chooses.
        candidates_LGM: the blocks of each head that did best, ascending; -1 where nothing has ranked yet.
        shared_S: the blocks that most heads of all layers chose then, candidates of every head: what was found in some
            is looked for in others a token later. -1 for none.
        length: tokens before the one that looks up now.
        ranks_all: whether that one ranks all blocks; else the candidates, if there are any yet.
    """

    first: int
    stretches: tuple[Stretch, ...]
    table: Tensor
    left_out: tuple[int, ...]
    count: int
    candidates_LGM: Tensor
    shared_S: Tensor
    length: int
    ranks_all: bool = True

    @property
    def n_blocks(self) -> int:
        """Blocks out of sight."""
        return sum(stretch.count for stretch in self.stretches)

    def copy(self) -> Lookup:
        """Another one, whose candidates change by themselves."""
        return replace(self, candidates_LGM=self.candidates_LGM.clone(), shared_S=self.shared_S.clone())

    def share(self, chosen_LGC: Tensor) -> None:
        """Note what most heads have chosen, once all layers have; the first ones of equals."""
        counts_B = torch.bincount(chosen_LGC.flatten(), minlength=self.n_blocks)
        n = min(len(self.shared_S), len(counts_B))
        self.shared_S[:n] = counts_B.sort(descending=True, stable=True).indices[:n]

    def choose(self, layer: int, worth_GMB: Tensor) -> Tensor:
        """The blocks that get most of the attention to what is out of sight, [G, C] ascending: twin of lookup.cpp.

        Args:
            layer: of the store.
            worth_GMB: of each block the highest product of any of its keys with each query, scaled.
        """
        candidates_GM = self.candidates_LGM[layer]
        if self.ranks_all or bool((candidates_GM < 0).any()):
            best_GB = best_share(worth_GMB, self.left_out)
            candidates_GM.copy_(best_GB.topk(candidates_GM.shape[-1], -1, sorted=False).indices.sort(-1).values)
        else:
            others_GB = torch.ones_like(worth_GMB[:, 0], dtype=torch.bool).scatter_(-1, candidates_GM, value=False)
            others_GB[:, self.shared_S[self.shared_S >= 0]] = False
            best_GB = best_share(worth_GMB.masked_fill(others_GB.unsqueeze(1), -torch.inf))
        return best_GB.topk(self.count, -1, sorted=False).indices.sort(-1).values


def best_share(worth_MB: Tensor, left_out: Sequence[int] = ()) -> Tensor:
    """The logarithm of the largest share that any of the queries M gives each block, [..., M, B] -> [..., B].

    As logarithms: shares of far keys would all be 0, and one as good as another.
    """
    worth_MB[..., list(left_out)] = -torch.inf
    return worth_MB.log_softmax(-1).amax(-2)


def table_of(stretches: Sequence[Stretch], head_dim: int) -> Tensor:
    """Stretches as the kernels read them, int64 [n, 9]; see `stretches_of` in rank.h.

    Of each the addresses of keys and scales, how many blocks, strides of layers and heads in bytes (of scales: in
    numbers), and how far values lie from keys.
    """
    rows = []
    for stretch in stretches:
        numbers, scales = stretch.slots.numbers, stretch.slots.scales
        size = numbers.element_size()
        row = [numbers.data_ptr() + stretch.start * head_dim * size, 0, stretch.count]
        row += [numbers.stride(1) * size, numbers.stride(2) * size, 0, 0, numbers.stride(0) * size, 0]
        if scales is not None:
            row[1] = scales.data_ptr() + stretch.start * 4
            row[5:7], row[8] = scales.stride()[1:3], scales.stride(0)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.int64)
