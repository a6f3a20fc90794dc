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
            store.unpin(row, position)
            intact &= n_tokens == 1 or position + n_tokens <= store.n_slots
    return intact
