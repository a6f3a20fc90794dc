"""Recall in the layers of one store: keys ranked by what was asked last, the best blocks copied.

Keys stand for themselves. Bounds of blocks (Quest, arXiv 2406.10774) and means of blocks read fewer numbers, but of
small blocks of real models they lost most of what was to be found; see `docs/log.md`.

Shape suffixes: L layers, N query tokens, H query heads, G key/value heads, R query heads of a group, M rows of queries
(N times R), S slots, B blocks, C blocks chosen, I copies, K head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern
from sash.kernels import native
from sash.network.clamped_keys import BLOCK, ClampedKeys
from sash.network.config import ModelConfig
from sash.network.lookup import Lookup, Stretch, best_share, table_of
from sash.network.query_tap import QueryTap
from sash.network.recall_points import RecallSettings
from sash.network.ring_store import RingStore


class RecallPart:
    """The recall of the layers of one store.

    Attributes:
        store: theirs.
        tap: keeps what their last tokens asked.
    """

    def __init__(self, store: RingStore, settings: RecallSettings, config: ModelConfig, mixing: int) -> None:
        layout = store.layout
        self.store = store
        self._settings = settings
        self._scale = config.attention_scale if config.attention_scale is not None else config.head_dim**-0.5
        self._clamped = ClampedKeys(config, store, mixing, settings.block)
        self._room = 0 if store.annex is None else store.annex.n_slots // settings.block
        self._lookups: dict[int, Lookup] = {}
        store.tap = self.tap = QueryTap(layout.n_layers, config.n_heads, layout.head_dim, settings.queries)
        self._natively = (
            native.available()
            and layout.device.type == "cpu"
            and layout.head_dim % 16 == 0
            and layout.dtype == torch.bfloat16
            and layout.numbers in (torch.bfloat16, torch.int8)
        )

    def refresh(self, row: int, length: int) -> None:
        """Rank what a row of `length` tokens has out of sight by its last ones' queries; bring back the best."""
        self.forget(row)  # its annex is another one from here on
        queries_LNHK, found = self.tap.of(row), self._lookup(row, length)
        if queries_LNHK is None or found is None:
            return
        chosen_LGC = self._choose(queries_LNHK, found)
        self._bring(row, length, chosen_LGC, found)

    def open(self, row: int, length: int, *, ranks_all: bool) -> None:
        """Have a row's next token rank for itself, in each layer before it attends: after `length` others."""
        if ranks_all or row not in self._lookups:
            self._lookups.pop(row, None)
            found = self._lookup(row, length)
            if found is not None:
                self._lookups[row] = found
            return
        found, tags_LGC = replace(self._lookups[row], length=length, ranks_all=False), self._tags(row)
        self._lookups[row] = found
        if tags_LGC is not None and len(found.shared_S) and int(found.shared_S[0]) < 0 <= int(tags_LGC.min()):
            found.share((tags_LGC & BLOCK) - found.first)

    def look(self, row: int, layer: int) -> None:
        """Bring back what the last token of a row wants in one layer of the store; it was opened."""
        found, queries_LNHK = self._lookups.get(row), self.tap.of(row)
        if found is None or queries_LNHK is None:
            return
        worth_LGMB = self._worth(queries_LNHK[layer : layer + 1, -1:], [at.of_layer(layer) for at in found.stretches])
        chosen_GC = found.choose(layer, worth_LGMB[0] * self._scale)
        self._bring(row, found.length, chosen_GC.unsqueeze(0), found, layer)

    def add_to(self, plan: Any, row: int) -> None:
        """Tell a native plan's last span that it looks up; it was opened."""
        found, tags_LGC = self._lookups.get(row), self._tags(row)
        if found is None or tags_LGC is None:
            return
        candidates = found.candidates_LGM.shape[-1]
        plan.add_lookup(
            [found.first, found.n_blocks, self._settings.block, found.count, candidates, len(found.shared_S)],
            found.ranks_all,
            found.left_out,
            len(found.stretches),
            found.table.data_ptr(),
            tags_LGC.data_ptr(),
            found.candidates_LGM.data_ptr(),
            found.shared_S.data_ptr(),
            found.length,
            *self._clamped.addresses(found.length, found.first),
        )

    def wipe(self, row: int) -> None:
        """Leave nothing of a row but what its annex shows."""
        self._lookups.pop(row, None)
        self.tap.wipe(row)

    def copy_row(self, row: int, other: RecallPart, other_row: int) -> None:
        """Take over a row of another cache's, after its annex."""
        self.tap.copy_row(row, other.tap, other_row)
        if other_row in other._lookups:
            self._lookups[row] = other._lookups[other_row].copy()

    def forget(self, row: int) -> None:
        """Have the next token of a row that ranks for itself rank all."""
        self._lookups.pop(row, None)

    def has_lost(self, length: int) -> bool:
        """Whether something can be out of sight of the token after so many."""
        return length >= self.store.reach + self._settings.block

    @property
    def pattern(self) -> AttentionPattern:
        """The layers' own."""
        return self.store.pattern

    def tags(self, row: int) -> Tensor | None:
        """What lies in the annex of a row, as of now; None for nothing."""
        tags_LGC = self._tags(row)
        return None if tags_LGC is None else tags_LGC.clone()

    def _tags(self, row: int) -> Tensor | None:
        annex = self.store.annex
        return None if annex is None or not annex.count(row) else annex.tags[row]

    def runs(self, tags_LGC: Tensor | None) -> list[list[range]]:
        """Of each layer, the tokens that tags tell of."""
        size = self._settings.block
        if tags_LGC is None:
            return [[] for _ in range(self.store.layout.n_layers)]
        blocks_LB = [sorted(set((tags_GC & BLOCK).flatten().tolist())) for tags_GC in tags_LGC]
        return [[range(at * size, (at + 1) * size) for at in blocks] for blocks in blocks_LB]

    def _lookup(self, row: int, length: int) -> Lookup | None:
        """What a row of `length` tokens has out of sight; its annex is made ready for the best of that.

        None, and an annex that shows nothing, where there is none of it.
        """
        annex, size = self.store.annex, self._settings.block
        if annex is None:
            return None
        first, stretches = self._out_of_sight(row, length)
        n_blocks = sum(stretch.count for stretch in stretches)
        pinned = sorted(block - first for block in self._pinned(row, length) if 0 <= block - first < n_blocks)
        count = min(self._room, n_blocks - len(pinned))
        if count <= 0:
            annex.clear(row)
            return None
        shape = self.store.layout.n_layers, self.store.layout.n_heads
        held_LGC = annex.tags[row]
        if held_LGC is None or held_LGC.shape[-1] != count:
            annex.tags[row] = new_LGC = torch.full((*shape, count), -1, dtype=torch.int64)
            if held_LGC is not None:
                kept = min(count, held_LGC.shape[-1])
                new_LGC[..., :kept] = held_LGC[..., :kept]
        annex.slots(row)
        annex.show(row, count * size)
        n_candidates = min(max(self._settings.candidates, 2 * count), n_blocks - len(pinned))
        candidates_LGM = torch.full((*shape, n_candidates), -1, dtype=torch.int64)
        table = table_of(stretches, self.store.layout.head_dim)
        n_shared = self._settings.shared and max(self._settings.shared, count)
        shared_S = torch.full((n_shared,), -1, dtype=torch.int64)
        return Lookup(first, tuple(stretches), table, tuple(pinned), count, candidates_LGM, shared_S, length)

    def _out_of_sight(self, row: int, length: int) -> tuple[int, list[Stretch]]:
        """The first block that the next token does not see, and all of them as they lie."""
        store, size = self.store, self._settings.block
        log = store.log
        if log is None:
            return 0, []
        first = -(-log.first(row) // size)
        end = (length - store.reach) // size
        if end <= first:
            return first, []
        runs = log.held(row, first * size, end * size)
        return first, [Stretch(log.slots(row, run), run.start, run.size // size) for run in runs]

    def _pinned(self, row: int, length: int) -> set[int]:
        """Blocks that hold a pin: it is seen already."""
        size = self._settings.block
        runs = [run for run in self.store.held(row, length, length) if run.source == "pins"]
        return {at // size for run in runs for at in range(run.first_position, run.first_position + run.size)}

    def _choose(self, queries_LNHK: Tensor, found: Lookup) -> Tensor:
        """The blocks that get most of the attention to what is out of sight, [L, G, C] int64, ascending.

        Of each block its best key counts, for the query that wants it most.
        """
        layout, size = self.store.layout, self._settings.block
        n_layers, n_tokens, n_heads, head_dim = queries_LNHK.shape
        if self._natively:
            chosen_LGC = torch.empty(n_layers, layout.n_heads, found.count, dtype=torch.int64)
            sizes = [n_layers, n_tokens, queries_LNHK.stride(0), queries_LNHK.stride(1), n_heads, layout.n_heads]
            native.module().rank(
                queries_LNHK.data_ptr(),
                [*sizes, head_dim, size, head_dim * layout.numbers.itemsize, found.count],
                self._scale,
                found.left_out,
                len(found.stretches),
                found.table.data_ptr(),
                chosen_LGC.data_ptr(),
            )
            return chosen_LGC
        share_LGB = best_share(self._worth(queries_LNHK, found.stretches) * self._scale, found.left_out)
        return share_LGB.topk(found.count, -1, sorted=False).indices.sort(-1).values

    def _worth(self, queries_LNHK: Tensor, stretches: Sequence[Stretch]) -> Tensor:
        """Of each block the highest product of any of its keys with each query, [L, G, N R, B] float32."""
        layout, size = self.store.layout, self._settings.block
        n_layers, n_tokens, n_heads, head_dim = queries_LNHK.shape
        q_LGMK = queries_LNHK.view(n_layers, n_tokens, layout.n_heads, n_heads // layout.n_heads, head_dim)
        q_LGMK = q_LGMK.transpose(1, 2).flatten(2, 3)
        parts = []
        for stretch in stretches:
            keys_LGSK = stretch.slots[0, :, :, stretch.start : stretch.start + stretch.count * size].to(torch.float32)
            products = q_LGMK.to(keys_LGSK) @ keys_LGSK.transpose(2, 3)
            parts.append(products.view(*products.shape[:-1], stretch.count, size).amax(-1))
        return torch.cat(parts, -1)

    def _bring(self, row: int, length: int, chosen_LGC: Tensor, found: Lookup, layer: int | None = None) -> None:
        """Copy chosen blocks that are not there yet over those that are not wanted any more; in one layer, or all."""
        annex = self.store.annex
        all_LGC = None if annex is None else annex.tags[row]
        if all_LGC is None:
            return
        layers = slice(None) if layer is None else slice(layer, layer + 1)
        held_LGC, tags_LGC, shifts_LGC = all_LGC[layers], chosen_LGC + found.first, None
        if self._clamped.touches(length, found.first):
            shifts_LGC, tags_LGC = self._clamped.shifts(tags_LGC, length, layers)
        same = held_LGC.unsqueeze(-1) == tags_LGC.unsqueeze(-2)
        free_LGC, missing_LGC = ~same.any(-1), ~same.any(-2)
        blocks_I = chosen_LGC[missing_LGC]
        if not len(blocks_I):
            return
        held_LGC[free_LGC] = tags_LGC[missing_LGC]  # as many are free as are missing, in every head
        places_I3 = free_LGC.nonzero()
        places_I3[:, 0] += layer or 0
        if self._natively:
            self._copy_natively(row, places_I3, blocks_I, found.stretches)
        else:
            self._copy(row, places_I3.tolist(), blocks_I.tolist(), found.stretches)
        if shifts_LGC is not None:
            self._clamped.turn(row, places_I3, shifts_LGC[missing_LGC])

    def _copy(self, row: int, places: list[list[int]], blocks: list[int], stretches: Sequence[Stretch]) -> None:
        size, slots = self._settings.block, self.store.slots(row, "annex")
        lying = [(stretch, at) for stretch in stretches for at in range(stretch.count)]
        for (layer, head, place), block in zip(places, blocks, strict=True):
            stretch, at = lying[block]
            start = stretch.start + at * size
            slots[:, layer, head, place * size : (place + 1) * size].copy_(
                stretch.slots[:, layer, head, start : start + size]
            )

    def _copy_natively(self, row: int, places_I3: Tensor, blocks_I: Tensor, stretches: Sequence[Stretch]) -> None:
        slots, size, dim = self.store.slots(row, "annex"), self._settings.block, self.store.layout.head_dim
        counts = torch.tensor([stretch.count for stretch in stretches])
        ends = counts.cumsum(0)
        which_I = torch.searchsorted(ends, blocks_I, right=True)
        within_I = blocks_I - (ends - counts)[which_I]
        layer_I, head_I, place_I = places_I3.unbind(1)
        for part, to in enumerate(slots.tensors()):  # numbers, and scales if there are any
            sources = [stretch.slots.tensors()[part] for stretch in stretches]
            width = to.element_size() * (dim if part == 0 else 1)
            bases = [
                source.data_ptr() + stretch.start * width for source, stretch in zip(sources, stretches, strict=True)
            ]
            strides_I3 = torch.tensor([source.stride()[:3] for source in sources])[which_I] * to.element_size()
            from_I = torch.tensor(bases)[which_I] + layer_I * strides_I3[:, 1] + head_I * strides_I3[:, 2]
            from_I += within_I * (size * width)
            to_I = to.data_ptr() + (layer_I * to.stride(1) + head_I * to.stride(2)) * to.element_size()
            to_I += place_I * (size * width)
            from_J = torch.cat((from_I, from_I + strides_I3[:, 0]))  # keys, and values
            to_J = torch.cat((to_I, to_I + to.stride(0) * to.element_size()))
            native.module().copy_runs(from_J.data_ptr(), to_J.data_ptr(), len(from_J), size * width)
