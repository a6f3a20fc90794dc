"""Guesses by a smaller network of the same vocabulary, which reads along in a cache of its own.

What it reads on trial waits beside its cache as the large network's guesses do, and is committed once the large network
has written the same. So it works on rings, and keeps in step without reading anything twice.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch

from sash.engine.proposer import MAX_DRAFTS, Width, accepted
from sash.errors import UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.packed import Network

UNREAD = 8
"""Tokens that are read on trial together with the guesses; more are read as a prompt is."""


@dataclass(frozen=True, slots=True)
class DraftNetwork:
    """A network that guesses the likeliest tokens, one after the other, while it is sure enough.

    Attributes:
        network: what guesses.
        make_cache: an empty cache for one sequence of it.
        k: guesses at once at most.
        least: the probability below which a token is not worth guessing.
        chunk: tokens of a prompt that are read at once.

    Raises:
        UsageError: numbers that cannot be.
    """

    network: Network
    make_cache: Callable[[], KVCache]
    k: int = 4
    least: float = 0.4
    chunk: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_DRAFTS:
            raise UsageError(f"from 1 to {MAX_DRAFTS} tokens are guessed at once; got {self.k}")
        if not 0 <= self.least <= 1:
            raise UsageError(f"the least probability lies between 0 and 1; got {self.least}")

    def open(self) -> Follower:
        """What guesses for one new sequence."""
        return Follower(self)


class Follower:
    """One sequence as the small network reads it."""

    def __init__(self, settings: DraftNetwork) -> None:
        self._settings, self._width = settings, Width(settings.k)
        self._cache: KVCache | None = None
        self._row = 0
        self._tokens: list[int] = []
        self._waiting: list[int] = []

    @property
    def tokens(self) -> Many[int]:
        """All that it knows of the sequence."""
        return self._tokens

    def extend(self, ids: Many[int]) -> None:
        """Tokens that follow."""
        self._width.see(ids)
        self._tokens += ids

    @torch.inference_mode()
    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens: they are read again where a ring cannot be cut back."""
        del self._tokens[length:]
        self._width.guess(())
        self._waiting = []
        if self._cache is not None and self._cache.lengths[self._row] >= length:
            self._cache.wipe(self._row)

    @torch.inference_mode()
    def propose(self, limit: int) -> list[int]:
        """The likeliest tokens that follow, as the small network reads them."""
        width = min(limit, self._width.allowed())
        if width <= 0 or not self._tokens:
            return []
        if self._cache is None:
            self._cache = self._settings.make_cache()
            self._row = self._cache.allocate()
        self._catch_up(self._cache)
        drafts: list[int] = []
        while len(drafts) < width and (token_id := self._next(self._cache, drafts)) is not None:
            drafts.append(token_id)
        self._width.guess(drafts)
        return drafts

    def _catch_up(self, cache: KVCache) -> None:
        """Commit what was read on trial and was written, and read what else there is, but for a few tokens."""
        read = cache.lengths[self._row]
        count = min(accepted(self._waiting, self._tokens[read:]), len(self._tokens) - 1 - read)
        if count > 0:
            cache.accept(self._row, count)
        self._waiting = []
        while len(self._tokens) - cache.lengths[self._row] > UNREAD:
            first = cache.lengths[self._row]
            ids = self._tokens[first : min(first + self._settings.chunk, len(self._tokens) - 1)]
            self._settings.network(Batch.pack([ids], [first], [self._row], device=cache.device), cache)

    def _next(self, cache: KVCache, drafts: list[int]) -> int | None:
        """The likeliest token after all that is known and guessed; None where it is not likely enough."""
        network, first = self._settings.network, cache.lengths[self._row]
        self._waiting = [*self._tokens[first:], *drafts]
        batch = Batch.pack([self._waiting], [first], [self._row], drafted=[True], device=cache.device)
        logits_V = network.logits(network(batch, cache)[-1:])[0]
        largest, token_id = logits_V.max(-1)
        likelihood = float((largest - logits_V.logsumexp(-1)).exp())
        return int(token_id) if likelihood >= self._settings.least else None
