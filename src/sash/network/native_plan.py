"""A step as the native kernels are told of it: spans, the runs of slots that they see, and where their tokens go.

Addresses are those of layer 0 and head 0 of a store; the kernels add the strides, which are in bytes (of scales: in
numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern
from sash.errors import UnsupportedError, UsageError
from sash.kernels import native
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import RopeConfig
from sash.network.ring_store import RingStore, pins_among
from sash.network.slots import HeldRun, Placement, Vectors
from sash.network.stores import Store

Angles = Callable[[RopeConfig, Tensor], tuple[Tensor, Tensor]]


class NativePlan:
    """A batch on its way through native layers; see `sash.network.step.Step`.

    Attributes:
        native: the extension's own object.
    """

    def __init__(
        self,
        kinds: tuple[tuple[AttentionPattern, RopeConfig], ...],
        batch: Batch,
        cache: KVCache | None,
        angles: Angles,
    ) -> None:
        self._batch, self._cache = batch, cache
        # Where tokens of a step are global all are: see `sash.network.global_steps`.
        self._sees_log = batch.global_T is not None and bool(batch.global_T.any())
        for span in batch.spans if cache is not None else ():
            done = cache.lengths[span.row] if cache is not None else 0
            if done != span.position:
                raise UsageError(f"row {span.row} has read {done} tokens: {span.position} is not its next position")
        if cache is not None and cache.numbers not in (torch.bfloat16, torch.int8):
            raise UnsupportedError(f"native kernels keep keys and values as bfloat16 or int8, not {cache.numbers}")
        int8 = cache is not None and cache.numbers == torch.int8
        self.native: Any = native.module().Plan(batch.spans[-1].stop, int8, 1 if cache is None else cache.mixing)
        if cache is not None and cache.recall is not None:
            cache.recall.before(batch.spans)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._placements: dict[AttentionPattern, list[Placement]] = {}
        self._guesses = (
            {} if cache is None else {span: cache.drafts.place(span) for span in batch.spans if span.drafted}
        )
        for pattern, rope_config in kinds:
            self._add_kind(pattern, rope_config, angles)

    def finish(self) -> None:
        """Note in the cache what was committed; after the last layer."""
        if self._cache is None:
            return
        for span in self._batch.spans:
            if span.drafted:
                self._cache.drafts.mark(span)
            else:
                self._cache.lengths[span.row] += len(span)
        self._mark(self._cache)
        if self._cache.recall is not None:
            self._cache.recall.after(self._batch.spans, self._cache.lengths)

    def _mark(self, cache: KVCache) -> None:
        for pattern, placements in self._placements.items():
            for span, placement in zip(self._batch.spans, placements, strict=True):
                if not span.drafted:
                    cache.stores[pattern].mark(span.row, placement)

    def _add_kind(self, pattern: AttentionPattern, rope_config: RopeConfig, angles: Angles) -> None:
        own = angles(rope_config, self._batch.positions_T)
        self._kept.append(own)
        clamped = (0, 0)
        cache = self._cache
        store = None if cache is None else cache.stores[pattern]
        positions_T = clamped_positions(pattern, self._batch, store) if pattern.pins else None
        if positions_T is not None:
            turned = angles(rope_config, positions_T)
            self._kept.append(turned)
            clamped = (turned[0].data_ptr(), turned[1].data_ptr())
        sees_log = pattern.holds_global and self._sees_log
        back = pattern.global_reach and pattern.global_reach - 1 if sees_log else pattern.reach_back
        self.native.add_kind(0 if back is None else back + 1, own[0].data_ptr(), own[1].data_ptr(), *clamped)
        if isinstance(store, RingStore) and store.tap is not None:
            queries = store.tap.open(self._batch.spans, torch.bfloat16)
            self.native.export_queries(queries.data_ptr(), store.tap.n_tokens)
        if store is not None and pattern not in self._placements:
            self._placements[pattern] = [
                self._guesses[span] if span.drafted else store.place(self._batch, span) for span in self._batch.spans
            ]
        for index, span in enumerate(self._batch.spans):
            self.native.add_span(span.start, len(span), span.position)
            for first, count in pins_among(pattern, self._batch, span):
                self.native.add_own_pins(first, count)
            if store is None or cache is None:
                continue
            oldest = 0 if back is None else max(0, span.position - back)
            if sees_log and isinstance(store, RingStore):
                held = store.held(span.row, span.position, max(oldest, span.position - store.reach))
                held += store.behind(span.row, span.position, oldest)
            else:
                held = store.held(span.row, span.position, oldest)
            for run in sorted(held, key=lambda run: (run.source != "pins", run.first_position)):
                pinned = run.source == "pins"
                self.native.add_held(run.first_position, run.size, pinned, *_slots(store.slots_of(span.row, run), run))
            self._add_annex(store, span.row)
            if cache.recall is not None:
                cache.recall.add_to(self.native, store, span)
            for token, run in self._placements[pattern][index]:
                slots = cache.drafts.slots(pattern, span.row) if span.drafted else store.slots_of(span.row, run)
                self.native.add_write(token, run.size, *_slots(slots, run))

    def _add_annex(self, store: Store, row: int) -> None:
        if not isinstance(store, RingStore) or store.annex is None or not store.annex.count(row):
            return
        run, logs_S = store.annex.held(row), store.annex.log_weights(row)
        self.native.add_annex(
            run.size, 0 if logs_S is None else logs_S.data_ptr(), *_slots(store.slots_of(row, run), run)
        )


def clamped_positions(pattern: AttentionPattern, batch: Batch, store: Store | None) -> Tensor | None:
    """Positions at which a step's queries meet pins, [T], by `AttentionPattern.clamp`; None if all are their own."""
    all_T: Tensor | None = None
    for span in batch.spans:
        last_pin = -1 if store is None else store.last_pin(span.row)
        own, last = pins_among(pattern, batch, span), span.position + len(span) - 1
        if not own and (last_pin < 0 or pattern.clamp(last, last_pin) == last):
            continue
        positions_T = batch.positions_T[span.start : span.stop]
        pins_T = torch.full_like(positions_T, last_pin)
        for first, count in own:
            pins_T[first : first + count] = positions_T[first : first + count]
        clamped_T = pattern.clamp(positions_T, pins_T.cummax(0).values)
        if not torch.equal(clamped_T, positions_T):
            all_T = batch.positions_T.clone() if all_T is None else all_T
            all_T[span.start : span.stop] = clamped_T
    return all_T


def _slots(slots: Vectors, run: HeldRun) -> tuple[int, ...]:
    """Addresses and strides of a run of slots, [2 (keys, values), layers, G, S] vectors; see `Slots` in step.h.

    By arithmetic: halves of a tensor are tensors, and making these takes longer than all else that a step is told.
    """
    numbers, scales, size = slots.numbers, slots.scales, slots.numbers.element_size()
    between, *axes, _ = numbers.stride()
    keys = numbers.data_ptr() + run.start * axes[2] * size
    found = (keys, keys + between * size, axes[0] * size, axes[1] * size, axes[2] * size)
    if scales is None:
        return (*found, 0, 0, 0, 0)
    between, layer, head, slot = scales.stride()
    key_scales = scales.data_ptr() + run.start * slot * 4
    return (*found, key_scales, key_scales + between * 4, layer, head)
