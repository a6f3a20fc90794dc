"""What a row need not read because it was read before: found at its start, and kept at its end.

Nothing that fails here ends a request: what cannot be restored is read, and what cannot be kept is not kept.
"""

from __future__ import annotations

import logging

from sash.engine.lanes import Lanes
from sash.engine.request import Request, Sequence
from sash.engine.snapshots import Snapshots

logger = logging.getLogger(__name__)


class Reuse:
    """The snapshots of an engine, or none.

    Where a lane's numbers depend on chunks, only what ends where chunks of prompts end is kept and used: so whoever
    goes on from it computes the same as one who reads it all.
    """

    def __init__(self, lanes: Lanes, snapshots: Snapshots | None, chunk: int) -> None:
        self._lanes, self._snapshots, self._chunk = lanes, snapshots, chunk

    def serves(self, request: Request) -> bool:
        """Whether a request may go on from what was read before."""
        off = not request.reuse or request.seers or request.prompt_logprobs is not None
        return self._snapshots is not None and not off

    def find(self, sequence: Sequence) -> int:
        """Restore the row of a sequence as far as its tokens were read before; how many that saves."""
        request, snapshots = sequence.request, self._snapshots
        if snapshots is None or sequence.row is None or request.row is not None:
            return 0
        if not self.serves(request):
            snapshots.skip()
            return 0
        sequence.reuse = "miss"
        cache = self._lanes.of(sequence.lane).cache
        found = None
        try:
            found = snapshots.find(
                request.prompt_ids, sequence.lane, request.salt, request.pins, self._aligned(sequence)
            )
            if found is None:
                return 0
            cache.restore(sequence.row, found.state, found.length)
        except Exception:
            logger.exception("a snapshot could not be restored: the prompt is read")
            if found is not None:
                snapshots.drop(found.names)
            cache.wipe(sequence.row)
            return 0
        sequence.reuse = "whole" if found.whole else "part"
        return found.length

    def keep(self, sequence: Sequence) -> None:
        """Keep what a row has read, at the end of its prompt and at its own: call it after every step of a sequence."""
        request, snapshots, n_read = sequence.request, self._snapshots, sequence.n_read
        if snapshots is None or sequence.row is None or request.row is not None or not request.reuse or request.seers:
            return
        if sequence.finish_reason == "error" or n_read == sequence.n_reused:
            return
        n_prompt = len(request.prompt_ids)
        if n_read != n_prompt and sequence.finish_reason is None:
            return
        aligned = self._aligned(sequence)
        if aligned > 1:  # what was written, token by token, ends no chunk; nor does it for whoever reads it all
            n_read = min(n_read, n_prompt) // aligned * aligned
        try:
            state = self._lanes.of(sequence.lane).cache.capture(sequence.row)
            n_read = min(n_read, state.length)  # guesses that were right may wait to be committed
            snapshots.keep(sequence.read_ids()[:n_read], sequence.lane, state, request.salt, request.pins)
        except Exception:
            logger.exception("a snapshot could not be kept")

    def _aligned(self, sequence: Sequence) -> int:
        """Of what the lengths that a sequence goes on from have to be multiples."""
        return 1 if self._lanes.of(sequence.lane).network.independent else self._chunk
