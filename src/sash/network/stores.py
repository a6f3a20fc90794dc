"""The two kinds of stores: rings for windows, growing blocks for layers without a bound.

A step asks both the same: `place` its tokens, `write` a layer's keys and values, `mark` what is held, tell what is
`held` (for kernels) or the `runs` and the `whole` of it (for torch), `view` a run. A row is wiped, copied to another
store, captured as a state (`sash.network.store_state`) and restored from one.
"""

from __future__ import annotations

from sash.network.growing_store import GrowingStore
from sash.network.ring_store import RingStore

Store = RingStore | GrowingStore

__all__ = ["GrowingStore", "RingStore", "Store"]
