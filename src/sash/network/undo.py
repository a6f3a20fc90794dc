"""Taking back what a step that failed half way left in a row of a cache."""

from __future__ import annotations

from sash.network.cache import KVCache


def undo(cache: KVCache, row: int, position: int, n_tokens: int) -> bool:
    """Make a row ready to repeat a step that failed somewhere between its first layer and its last.

    See `sash.network.ring_store.RingStore.undo` for when that can be done.

    Args:
        cache: what the step ran over.
        row: its row.
        position: tokens that the row had read before the step.
        n_tokens: tokens of the row in the step.

    Returns:
        Whether the row holds all that it held; False where it has to be wiped and read again.
    """
    cache.lengths[row] = position
    if cache.summaries is not None and n_tokens > 1 and cache.summaries.beyond(row, position):
        return False
    intact = [store.undo(row, position, n_tokens) for store in cache.stores.values()]
    return all(intact)
