"""Taking back what a step that failed half way left in a row of a cache."""

from __future__ import annotations

from sash.network.cache import KVCache
from sash.network.stores import RingStore


def undo(cache: KVCache, row: int, position: int, n_tokens: int) -> bool:
    """Make a row ready to repeat a step that failed somewhere between its first layer and its last.

    A single token writes to the slot whose position no query can see any more, so writing it again changes nothing. A
    longer chunk may have written over positions that its own first tokens still see, unless the ring had not wrapped.

    Args:
        cache: what the step ran over.
        row: its row.
        position: tokens that the row had read before the step.
        n_tokens: tokens of the row in the step.

    Returns:
        Whether the row holds all that it held; False where it has to be wiped and read again.
    """
    cache.lengths[row] = position
    intact = True
    for store in cache.stores.values():
        if isinstance(store, RingStore):
            _unpin(store, row, position)
            intact &= n_tokens == 1 or position + n_tokens <= store.n_slots
    return intact


def _unpin(store: RingStore, row: int, position: int) -> None:
    """Forget pins at `position` and after it."""
    kept = [run for run in store._pinned[row] if run.first_position < position]
    if kept:
        last = kept[-1]
        kept[-1] = last._replace(size=min(last.size, position - last.first_position))
    store._pinned[row] = kept
    store._n_pinned[row] = sum(run.size for run in kept)
