"""One step through the layers: angles and plans once, then attend and commit a layer.

Attend, then commit: a step's keys and values are their own segment, and are written to the ring afterwards; so the
ring stays at W slots for every size of chunk. A single token is written first and then attends to slots alone: what
it overwrites has just left its window.

Shape suffixes: T packed tokens, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import QUERY_BLOCK, KeyRun, QueryBlock, masked_run, own_runs, own_segment
from sash.attention.segment import Backend, Segment, attend
from sash.errors import UsageError
from sash.network import rope
from sash.network.batch import Batch, Span
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig, RopeConfig
from sash.network.stores import Placement, Store


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step does in every layer of one pattern.

    Attributes:
        blocks: blocks of queries and the keys they meet.
        before, after: what is written to which row before attending, and after it.
        clamped_T: positions at which queries are rotated against pins; None where all are the queries' own.
    """

    blocks: tuple[QueryBlock, ...]
    before: tuple[tuple[int, Placement], ...]
    after: tuple[tuple[int, Placement], ...]
    clamped_T: Tensor | None


class Step:
    """A batch on its way through the network."""

    def __init__(
        self, config: ModelConfig, batch: Batch, cache: KVCache | None, backend: Backend, dtype: torch.dtype
    ) -> None:
        self._config, self._batch, self._cache, self._backend, self._dtype = config, batch, cache, backend, dtype
        self._angles: dict[tuple[RopeConfig, AttentionPattern | None], tuple[Tensor, Tensor]] = {}
        for span in batch.spans if cache is not None else ():
            done = cache.lengths[span.row] if cache is not None else 0
            if done != span.position:
                raise UsageError(f"row {span.row} has read {done} tokens: {span.position} is not its next position")
        self._plans = {pattern: self._plan(pattern) for pattern in dict.fromkeys(config.patterns)}

    def attend(
        self, index: int, layer: LayerConfig, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        """Attention of one layer: [T, H, K] from queries and keys before rotation, and values."""
        plan = self._plans[layer.pattern]
        own_angles = self._angle(layer.rope, None)
        clamped_q_THK = None
        if plan.clamped_T is not None:
            clamped_q_THK = rope.rotate(q_THK, *self._angle(layer.rope, layer.pattern), layer.rope.layout)
        q_THK = rope.rotate(q_THK, *own_angles, layer.rope.layout)
        k_GTK = rope.rotate(k_TGK, *own_angles, layer.rope.layout).transpose(0, 1)
        v_GTK = v_TGK.transpose(0, 1)

        store, slot = None, 0
        if self._cache is not None:
            store, slot = self._cache.stores[layer.pattern], self._cache.layer_in_store(index)
            for row, placement in plan.before:
                store.write(slot, row, placement, k_GTK, v_GTK)
        outs = []
        for block in plan.blocks:
            inside = slice(block.start, block.stop)
            segments = [_segment(run, block.row, k_GTK, v_GTK, store, slot) for run in block.runs]
            clamped = None if clamped_q_THK is None else clamped_q_THK[inside]
            outs.append(attend(q_THK[inside], clamped, segments, scale, self._backend))
        if store is not None:
            for row, placement in plan.after:
                store.write(slot, row, placement, k_GTK, v_GTK)
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def finish(self) -> None:
        """Note in the cache what was committed; after the last layer."""
        if self._cache is None:
            return
        for pattern, plan in self._plans.items():
            for row, placement in plan.after:
                self._cache.stores[pattern].mark(row, placement, self._batch.positions_T)
        for span in self._batch.spans:
            self._cache.lengths[span.row] += len(span)

    def _angle(self, config: RopeConfig, clamped_for: AttentionPattern | None) -> tuple[Tensor, Tensor]:
        key = (config, clamped_for)
        if key not in self._angles:
            clamped_T = None if clamped_for is None else self._plans[clamped_for].clamped_T
            positions_T = self._batch.positions_T if clamped_T is None else clamped_T
            frequencies_F, factor = rope.frequencies(config, self._config.head_dim)
            self._angles[key] = rope.angles(frequencies_F, factor, positions_T, self._dtype)
        return self._angles[key]

    def _plan(self, pattern: AttentionPattern) -> Plan:
        store = None if self._cache is None else self._cache.stores[pattern]
        blocks: list[QueryBlock] = []
        before, after = [], []
        clamped_T = self._batch.positions_T.clone() if pattern.pins else None
        for span in self._batch.spans:
            meta = self._batch.meta(span)
            if clamped_T is not None:
                last_pin = -1 if store is None else store.last_pin(span.row)
                clamped_T[span.start : span.stop] = _clamped(pattern, meta, last_pin)
            if store is None:
                blocks += self._blocks(pattern, span, meta, None)
                continue
            placement = store.place(span.row, meta, span.start)
            if len(span) == 1 and placement[0].numel() == 1:
                store.mark(span.row, placement, self._batch.positions_T)
                before.append((span.row, placement))
                blocks.append(self._written_first(pattern, span, meta, store))
            else:
                after.append((span.row, placement))
                blocks += self._blocks(pattern, span, meta, store)
        if clamped_T is not None and bool((clamped_T == self._batch.positions_T).all()):
            clamped_T = None
        return Plan(tuple(blocks), tuple(before), tuple(after), clamped_T)

    def _written_first(self, pattern: AttentionPattern, span: Span, meta: TokenMeta, store: Store) -> QueryBlock:
        """A single token that is already in its slot attends to slots alone."""
        oldest = span.position - (pattern.reach_back if pattern.reach_back is not None else span.position)
        found = store.runs(span.row, span.position + 1, oldest)
        runs = (masked_run(pattern, meta, keys, run, self._dtype) for run, keys in found)
        return QueryBlock(span.start, span.stop, tuple(run for run in runs if run is not None), span.row)

    def _blocks(self, pattern: AttentionPattern, span: Span, meta: TokenMeta, store: Store | None) -> list[QueryBlock]:
        """A run of tokens in blocks of queries, each with what the cache holds for it and its own tokens."""
        blocks = []
        for a in range(0, len(span), QUERY_BLOCK):
            b = min(a + QUERY_BLOCK, len(span))
            queries = meta.take(slice(a, b))
            runs: list[KeyRun | None] = []
            if store is not None:
                back = pattern.reach_back
                oldest = 0 if back is None else span.position + a - back
                found = store.runs(span.row, span.position, oldest)
                runs += [masked_run(pattern, queries, keys, run, self._dtype) for run, keys in found]
            runs += own_runs(pattern, meta, a, b, span.start, self._dtype)
            kept = tuple(run for run in runs if run is not None)
            blocks.append(QueryBlock(span.start + a, span.start + b, kept, span.row))
        return blocks


def _segment(run: KeyRun, row: int, k_GTK: Tensor, v_GTK: Tensor, store: Store | None, slot: int) -> Segment:
    if run.source == "own" or store is None:
        return own_segment(run, k_GTK, v_GTK)
    keys_GSK, values_GSK = store.view(slot, row, run)
    return Segment(keys_GSK, values_GSK, run.mask, run.clamped)


def _clamped(pattern: AttentionPattern, meta: TokenMeta, last_pin: int) -> Tensor:
    """Positions at which a span's queries meet pins, [T]: see `AttentionPattern.clamp`."""
    positions_T: Tensor = meta.position
    pins_T = torch.where(pattern.is_pin(meta), positions_T, -1).clamp_min(last_pin)
    clamped_T: Tensor = pattern.clamp(positions_T, pins_T.cummax(0).values)
    return clamped_T
