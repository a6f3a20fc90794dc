"""One step through the layers: angles and plans once, then attend and commit a layer.

Attend, then commit: a step's keys and values are their own segment, and are written to the ring afterwards; so the
ring stays at W slots for every size of chunk. A single token is written first and then attends to slots alone: what
it overwrites has just left its window.

Shape suffixes: T packed tokens, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import QUERY_BLOCK, KeyRun, QueryBlock, masked_run, own_runs, own_segment
from sash.attention.segment import Backend, Segment, attend
from sash.errors import UsageError
from sash.kernels.activations import rotate as mix
from sash.network import rope
from sash.network.batch import Batch, Span
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig, RopeConfig
from sash.network.global_steps import stretches_of
from sash.network.ring_store import RingStore
from sash.network.slots import Placement, Vectors
from sash.network.stores import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """What attends to what in every layer of one pattern.

    Attributes:
        blocks: blocks of queries and the keys they meet.
        clamped_T: positions at which queries are rotated against pins; None where all are the queries' own.
    """

    blocks: tuple[QueryBlock, ...]
    clamped_T: Tensor | None


class Step:
    """A batch on its way through the network.

    Attributes:
        placements: for each pattern's store, where the tokens of each span go. Those of a span of one token are marked
            as held from the start, and each layer writes them before it attends.
    """

    def __init__(
        self, config: ModelConfig, batch: Batch, cache: KVCache | None, backend: Backend, dtype: torch.dtype
    ) -> None:
        self._config, self._batch, self._cache, self._backend, self._dtype = config, batch, cache, backend, dtype
        self._angles: dict[tuple[RopeConfig, AttentionPattern | None], tuple[Tensor, Tensor]] = {}
        self._plans: dict[AttentionPattern, Plan] = {}
        self.placements: dict[AttentionPattern, tuple[Placement, ...]] = {}
        if cache is None:
            return
        for span in batch.spans:
            done = cache.lengths[span.row]
            if done != span.position:
                raise UsageError(f"row {span.row} has read {done} tokens: {span.position} is not its next position")
        if cache.recall is not None:
            cache.recall.before(batch.spans)
        guesses = {span: cache.drafts.place(span) for span in batch.spans if span.drafted}
        for pattern, store in cache.stores.items():
            self.placements[pattern] = tuple(
                guesses[span] if span.drafted else store.place(batch, span) for span in batch.spans
            )
        for pattern, store in cache.stores.items():
            for span, placement in zip(batch.spans, self.placements[pattern], strict=True):
                if span.written_first:
                    store.mark(span.row, placement)

    def attend(
        self, index: int, layer: LayerConfig, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float
    ) -> Tensor:
        """Attention of one layer: [T, H, K] from queries and keys before rotation, and values."""
        plan = self._plan(layer.pattern)
        own_angles = self._angle(layer.rope, None)
        clamped_q_THK = None
        if plan.clamped_T is not None:
            clamped_q_THK = rope.rotate(q_THK, *self._angle(layer.rope, layer.pattern), layer.rope.layout)
        q_THK = rope.rotate(q_THK, *own_angles, layer.rope.layout)
        k_GTK = rope.rotate(k_TGK, *own_angles, layer.rope.layout).transpose(0, 1)
        v_GTK = v_TGK.transpose(0, 1)

        store, slot = None, 0
        if self._cache is not None:
            if self._cache.mixing > 1:
                q_THK = mix(q_THK, self._cache.mixing).to(self._dtype)
                clamped_q_THK = (
                    None if clamped_q_THK is None else mix(clamped_q_THK, self._cache.mixing).to(self._dtype)
                )
                k_GTK = mix(k_GTK, self._cache.mixing)
            store, slot = self._cache.stores[layer.pattern], self._cache.layer_in_store(index)
            kept = store.layout.kept(k_GTK), store.layout.kept(v_GTK)
            if isinstance(store, RingStore) and store.tap is not None:
                store.tap.open(self._batch.spans, self._dtype)
                store.tap.take(slot, q_THK)
                if self._cache.recall is not None:
                    self._cache.recall.look(store, slot, self._batch.spans)
            self._write(layer.pattern, store, slot, kept, single=True)
            if self._cache.rounds:  # a token's key is the same number in its own step as in its slot
                k_GTK, v_GTK = (vectors.to(self._dtype) for vectors in kept)
        outs = []
        for block in plan.blocks:
            inside = slice(block.start, block.stop)
            segments = [_segment(run, block.row, k_GTK, v_GTK, store, slot) for run in block.runs]
            clamped = None if clamped_q_THK is None else clamped_q_THK[inside]
            outs.append(attend(q_THK[inside], clamped, segments, scale, self._backend))
        if store is not None:
            self._write(layer.pattern, store, slot, kept, single=False)
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def finish(self) -> None:
        """Note in the cache what was committed; after the last layer."""
        if self._cache is None:
            return
        for span in self._batch.spans:
            if span.drafted:
                self._cache.drafts.mark(span)
            else:
                self._cache.lengths[span.row] += len(span)
        for pattern, placements in self.placements.items():
            for span, placement in zip(self._batch.spans, placements, strict=True):
                if not span.written_first and not span.drafted:
                    self._cache.stores[pattern].mark(span.row, placement)
        if self._cache.recall is not None:
            self._cache.recall.after(self._batch.spans, self._cache.lengths)

    def _write(
        self, pattern: AttentionPattern, store: Store, slot: int, kept: tuple[Vectors, Vectors], *, single: bool
    ) -> None:
        """Commit the spans of one token, or the others; guesses wait elsewhere."""
        for span, placement in zip(self._batch.spans, self.placements[pattern], strict=True):
            if span.written_first is not single:
                continue
            if span.drafted and self._cache is not None:
                self._cache.drafts.write(pattern, slot, span.row, placement, *kept)
            else:
                store.write(slot, span.row, placement, *kept)

    def _angle(self, config: RopeConfig, clamped_for: AttentionPattern | None) -> tuple[Tensor, Tensor]:
        key = (config, clamped_for)
        if key not in self._angles:
            clamped_T = None if clamped_for is None else self._plan(clamped_for).clamped_T
            positions_T = self._batch.positions_T if clamped_T is None else clamped_T
            frequencies_F, factor = rope.frequencies(config, self._config.head_dim)
            self._angles[key] = rope.angles(frequencies_F, factor, positions_T, self._dtype)
        return self._angles[key]

    def _plan(self, pattern: AttentionPattern) -> Plan:
        """The plan of a pattern, made when its first layer asks."""
        if pattern not in self._plans:
            store = None if self._cache is None else self._cache.stores[pattern]
            blocks: list[QueryBlock] = []
            for span in self._batch.spans:
                if store is not None and span.written_first:
                    blocks.append(self._written_first(pattern, span, store))
                else:
                    blocks += self._blocks(pattern, span, self._batch.meta(span), store)
            self._plans[pattern] = Plan(tuple(blocks), self._clamped(pattern, store) if pattern.pins else None)
        return self._plans[pattern]

    def _written_first(self, pattern: AttentionPattern, span: Span, store: Store) -> QueryBlock:
        """A single token that is already in its slot attends to slots alone, and sees all that its window spans."""
        oldest = span.position - (pattern.reach_back if pattern.reach_back is not None else span.position)
        is_global = self._batch.global_T is not None and bool(self._batch.global_T[span.start])
        if pattern.dilation == 1 and (not pattern.global_tokens or (pattern.holds_global and not is_global)):
            runs = store.whole(span.row, span.position + 1, oldest) + _annexed(store, span.row)
            return QueryBlock(span.start, span.stop, runs, span.row)
        meta = self._batch.meta(span)
        found = self._held(pattern, span.row, span.position + 1, oldest, store, is_global=is_global)
        masked = (masked_run(pattern, meta, keys, run, self._dtype) for run, keys in found)
        seen = tuple(run for run in masked if run is not None)
        return QueryBlock(span.start, span.stop, seen + _annexed(store, span.row), span.row)

    def _blocks(self, pattern: AttentionPattern, span: Span, meta: TokenMeta, store: Store | None) -> list[QueryBlock]:
        """A run of tokens in blocks of queries, each with what the cache holds for it and its own tokens."""
        blocks = []
        for a, b, is_global in _cut(pattern, len(span), meta, store):
            queries = meta.take(slice(a, b))
            runs: list[KeyRun | None] = []
            if store is not None and pattern.window is None:
                runs += store.whole(span.row, span.position, 0)  # all of these came before: no mask to build
            elif store is not None:
                oldest = span.position + a - (pattern.reach_back or 0)
                found = self._held(pattern, span.row, span.position, oldest, store, is_global=is_global)
                runs += [masked_run(pattern, queries, keys, run, self._dtype) for run, keys in found]
                runs += _annexed(store, span.row)
            runs += own_runs(pattern, meta, a, b, span.start, self._dtype)
            kept = tuple(run for run in runs if run is not None)
            blocks.append(QueryBlock(span.start + a, span.start + b, kept, span.row))
        return blocks

    def _held(
        self, pattern: AttentionPattern, row: int, length: int, oldest: int, store: Store, *, is_global: bool
    ) -> Iterator[tuple[KeyRun, TokenMeta]]:
        """What a row holds from `oldest` on; for global queries, what they see of its log besides."""
        if not is_global or not isinstance(store, RingStore) or not pattern.holds_global:
            yield from store.runs(row, length, oldest)
            return
        if pattern.global_reach is not None:
            oldest -= pattern.global_reach - 1 - (pattern.reach_back or 0)
        oldest = 0 if pattern.global_reach is None else max(0, oldest)
        yield from store.runs(row, length, max(oldest, length - store.reach))
        for run in store.behind(row, length, oldest):
            positions = torch.arange(run.first_position, run.first_position + run.size, device=store.layout.device)
            key_run = KeyRun("block", run.start, run.start + run.size, block=run.block)
            yield key_run, TokenMeta(position=positions)

    def _clamped(self, pattern: AttentionPattern, store: Store | None) -> Tensor | None:
        """Positions at which queries meet pins, [T], by `AttentionPattern.clamp`; None if all are their own."""
        changed: list[tuple[Span, int | Tensor]] = []
        for span in self._batch.spans:
            last_pin = -1 if store is None else store.last_pin(span.row)
            if store is not None and span.written_first:
                clamped = pattern.clamp(span.position, last_pin)
                if last_pin >= 0 and clamped != span.position:
                    changed.append((span, clamped))
            elif last_pin < 0 or pattern.clamp(span.position + len(span) - 1, last_pin) < span.position + len(span) - 1:
                meta = self._batch.meta(span)
                pins_T = torch.where(pattern.is_pin(meta), meta.position, -1).clamp_min(last_pin).cummax(0).values
                clamped_T = pattern.clamp(meta.position, pins_T)
                if not torch.equal(clamped_T, meta.position):
                    changed.append((span, clamped_T))
        if not changed:
            return None
        all_T = self._batch.positions_T.clone()
        for span, clamped in changed:
            all_T[span.start : span.stop] = clamped
        return all_T


def _cut(
    pattern: AttentionPattern, n_tokens: int, meta: TokenMeta, store: Store | None
) -> Iterator[tuple[int, int, bool]]:
    """Blocks [a, b) of queries; those that see the log are by themselves."""
    stretches = [(0, n_tokens)]
    if store is not None and pattern.holds_global and bool(meta.is_global.any()):
        stretches = stretches_of(meta.is_global.tolist())
    for first, end in stretches:
        for a in range(first, end, QUERY_BLOCK):
            yield a, min(a + QUERY_BLOCK, end), bool(meta.is_global[first])


def _annexed(store: Store, row: int) -> tuple[KeyRun, ...]:
    """What every query of a row sees of its annex."""
    return store.annex.run(row) if isinstance(store, RingStore) and store.annex is not None else ()


def _segment(run: KeyRun, row: int, k_GTK: Tensor, v_GTK: Tensor, store: Store | None, slot: int) -> Segment:
    if run.source == "own" or store is None:
        return own_segment(run, k_GTK, v_GTK)
    keys_GSK, values_GSK = store.view(slot, row, run)
    weights_S = None
    if run.source == "annex" and isinstance(store, RingStore) and store.annex is not None:
        weights_S = store.annex.log_weights(row)
    return Segment(
        keys_GSK, values_GSK, run.mask, run.clamped, None if weights_S is None else weights_S[run.start : run.stop]
    )
