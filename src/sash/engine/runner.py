"""Runs a step's work through the network and samples: torch lives here, the state of requests does not.

Every prompt chunk is a forward of its own, and sequences that write are taken together, at most 16 at a time: up to
there the matrix products of bfloat16 on x86 give a row the same bits whoever shares the batch, and a chunk is long
enough to gain nothing from company. So what a request reads does not depend on the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sash.engine.request import Sequence, Token, Work
from sash.errors import SashError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.packed import Network
from sash.sampling import new_generator, sample

MAX_WRITERS = 16


class Runner:
    """A decoder and its cache."""

    def __init__(self, decoder: Network, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self._generators: dict[int, torch.Generator] = {}

    @torch.inference_mode()
    def run(self, works: list[Work]) -> list[tuple[Work, Token | SashError | None]]:
        """Compute a step; an error in one sequence's part is its result, and nobody else's."""
        results: list[tuple[Work, Token | SashError | None]] = []
        writing = [work for work in works if not work.sequence.reading]
        for start in range(0, len(writing), MAX_WRITERS):
            results += self._forward(writing[start : start + MAX_WRITERS])
        for work in works:
            if work.sequence.reading:
                results += self._forward([work])
        return results

    def _forward(self, works: list[Work]) -> list[tuple[Work, Token | SashError | None]]:
        batch = Batch.pack(
            [work.sequence.next_tokens(work.n_tokens) for work in works],
            [work.sequence.position for work in works],
            [_row(work.sequence) for work in works],
            device=self.cache.device,
        )
        hidden_TD = self.decoder(batch, self.cache)
        last = [span.stop - 1 for span, work in zip(batch.spans, works, strict=True) if work.writes]
        logits_NV = self.decoder.logits(hidden_TD[last]) if last else None
        results: list[tuple[Work, Token | SashError | None]] = []
        done = 0
        for work in works:
            if logits_NV is None or not work.writes:
                results.append((work, None))
                continue
            results.append((work, self._sample(work.sequence, logits_NV[done])))
            done += 1
        return results

    def _sample(self, sequence: Sequence, logits_V: Tensor) -> Token | SashError:
        params = sequence.request.params
        try:
            sampled = sample(logits_V, params, sequence.seen.ids, self._generator(sequence))
        except SashError as error:
            return error
        return Token(sampled.token_id, sampled.logprob, tuple(sampled.top))

    def _generator(self, sequence: Sequence) -> torch.Generator:
        key = id(sequence)
        if key not in self._generators:
            self._generators[key] = new_generator(sequence.request.params)
        return self._generators[key]

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that has ended."""
        self._generators.pop(id(sequence), None)


def _row(sequence: Sequence) -> int:
    if sequence.row is None:
        raise SashError("a sequence was scheduled before it had a cache row")
    return sequence.row
