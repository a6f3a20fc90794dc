"""What a row need not read because it was read before: snapshots found at the start, and kept on the way.

Nothing that fails here ends a request: what cannot be restored is read, and what cannot be kept is not kept.
"""

from __future__ import annotations

import logging

from sash.engine.lanes import Lanes
from sash.engine.request import Sequence
from sash.engine.snapshots import Point, Snapshots

logger = logging.getLogger(__name__)


class Recall:
    """The snapshots of an engine, or none.

    Where a lane's numbers depend on chunks, only what ends where chunks end is kept and used: so whoever goes on from
    it computes the same as one who reads it all.
    """

    def __init__(self, lanes: Lanes, snapshots: Snapshots | None, chunk: int) -> None:
        self._lanes, self._snapshots, self._chunk = lanes, snapshots, chunk

    def find(self, sequence: Sequence) -> int:
        """Restore the row of a sequence from the longest snapshot that fits; how many tokens that saves."""
        request, snapshots = sequence.request, self._snapshots
        if snapshots is None or sequence.row is None or request.row is not None:
            return 0
        if not request.reuse or request.seers or request.prompt_logprobs is not None:
            snapshots.skip()
            return 0
        sequence.reuse = "miss"
        cache = self._lanes.of(sequence.lane).cache
        found = None
        try:
            found = snapshots.find(request.prompt_ids, sequence.lane, request.salt, request.pins)
            if found is None or not self._ends_well(sequence, found.length):
                return 0
            cache.restore(sequence.row, found.state, found.length)
        except Exception:
            logger.exception("a snapshot could not be restored: the prompt is read")
            if found is not None:
                snapshots.drop(found.name)
            cache.wipe(sequence.row)
            return 0
        sequence.reuse = "part" if self._inside(found.length) else "whole"
        return found.length

    def keep(self, sequence: Sequence) -> None:
        """Keep what a row has read, if that is worth it where it stands: call it after every step of a sequence."""
        request, snapshots, n_prompt = sequence.request, self._snapshots, len(sequence.request.prompt_ids)
        if snapshots is None or sequence.row is None or request.row is not None or not request.reuse or request.seers:
            return
        if sequence.finish_reason == "error" or sequence.n_read == sequence.n_reused:
            return
        answered = sequence.n_read > n_prompt
        if answered and sequence.finish_reason is None:
            return
        n_read = sequence.n_read
        if not snapshots.wanted(n_read, n_read if answered else n_prompt) or not self._ends_well(sequence, n_read):
            return
        try:
            state = self._lanes.of(sequence.lane).cache.capture(sequence.row)
            point: Point = "inside" if n_read < n_prompt and self._inside(n_read) else "turn"
            pins = request.pins
            snapshots.keep(sequence.read_ids(), sequence.lane, state, request.salt, point, pins)
        except Exception:
            logger.exception("a snapshot could not be kept")

    def _ends_well(self, sequence: Sequence, length: int) -> bool:
        """Whether a chunk of a sequence may end after `length` tokens."""
        return self._lanes.of(sequence.lane).network.independent or length % self._chunk == 0

    def _inside(self, position: int) -> bool:
        """Whether a position is one of those at which long prompts are kept."""
        return self._snapshots is not None and self._snapshots.next_point(position - 1) == position
