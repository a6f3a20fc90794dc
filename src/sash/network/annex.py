"""Slots beside a ring that are filled with keys from outside of its window: between steps, or before a layer attends.

What is in them is the business of who fills them: tokens that left the window and are recalled, say, or keys that each
stand for several tokens. Attention sees the filled slots as one more run of keys without a mask, at the queries' own
positions: whoever wants a key to be met at another distance than the true one rotates it before it goes in.

Every layer and head has content of its own; how many slots are filled, and their weights, is one thing for a row.

Shape suffixes: L layers, G key/value heads, S slots, K head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sash.attention.plan import KeyRun
from sash.errors import DoesNotFitError, UsageError
from sash.network.slots import HeldRun, Layout, Vectors


class Annex:
    """The annex of every row of a ring store.

    Attributes:
        n_slots: of each row.
        tags: what whoever fills the annex of a row notes of what is in it; gone with what it shows.
    """

    def __init__(self, layout: Layout, n_slots: int) -> None:
        self.n_slots, self._layout = n_slots, layout
        self._slots: list[Vectors | None] = [None] * layout.n_rows
        self._counts = [0] * layout.n_rows
        self._log_weights: list[Tensor | None] = [None] * layout.n_rows
        self.tags: list[Tensor | None] = [None] * layout.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(slots.nbytes for slots in self._slots if slots is not None)

    def slots(self, row: int) -> Vectors:
        """The slots of a row, [2 (keys, values), L, G, S] vectors, made when they are first asked for.

        Raises:
            DoesNotFitError: there is no memory for them.
        """
        made = self._slots[row]
        if made is None:
            try:
                made = self._layout.zeros(2, self._layout.n_layers, self._layout.n_heads, self.n_slots)
            except RuntimeError as error:
                raise DoesNotFitError(
                    "no memory for what is to stand beside the window: give it fewer slots, or use fewer"
                    " sequences at once"
                ) from error
            self._slots[row] = made
        return made

    def count(self, row: int) -> int:
        """Slots that are filled: the first ones."""
        return self._counts[row]

    def log_weights(self, row: int) -> Tensor | None:
        """What is added to the scores of each slot's key, float32 [S] of all slots; None for nothing."""
        return self._log_weights[row]

    def fill(self, row: int, start: int, keys: Vectors, values: Vectors, *, layer: int | None = None) -> None:
        """Put keys and values, as slots keep them, into slots from `start` on; what was shown so far is still shown.

        Args:
            row: whose.
            start: the first slot.
            keys, values: [G, S] vectors for one layer of the store, or [L, G, S] for all.
            layer: which layer; None for all.
        """
        stop = start + keys.numbers.shape[-2]
        if start < 0 or stop > self.n_slots:
            raise UsageError(f"slots {start} to {stop - 1} are not in an annex of {self.n_slots}")
        slots = self.slots(row)
        for kind, new in enumerate((keys, values)):
            place = slots[kind, :, :, start:stop] if layer is None else slots[kind, layer, :, start:stop]
            place.copy_(new)

    def show(self, row: int, count: int, weights_S: Tensor | None = None) -> None:
        """Let later steps see the first `count` slots, and no others.

        Args:
            row: whose.
            count: how many slots are filled, in every layer.
            weights_S: how many tokens each of them stands for; None for one each.
        """
        if not 0 <= count <= self.n_slots:
            raise UsageError(f"an annex of {self.n_slots} slots cannot show {count}")
        self._counts[row] = count
        if weights_S is None:
            self._log_weights[row] = None
            return
        logs_S = torch.zeros(self.n_slots, device=self._layout.device)
        logs_S[:count] = weights_S.to(logs_S.device).float().log()
        self._log_weights[row] = logs_S

    def clear(self, row: int) -> None:
        """Show nothing."""
        self.show(row, 0)
        self.tags[row] = None

    def wipe(self, row: int) -> None:
        """Leave nothing of a row."""
        self._slots[row] = None
        self.clear(row)

    def copy_row(self, row: int, other: Annex, other_row: int) -> None:
        """Take over a row of another annex of the same shape."""
        theirs, weights = other._slots[other_row], other._log_weights[other_row]
        self._slots[row] = None if theirs is None else theirs.clone()
        self._counts[row] = other._counts[other_row]
        self._log_weights[row] = None if weights is None else weights.clone()
        tags = other.tags[other_row]
        self.tags[row] = None if tags is None else tags.clone()

    def run(self, row: int) -> tuple[KeyRun, ...]:
        """The filled slots as the run of keys that every query meets; none if none is filled."""
        count = self._counts[row]
        return (KeyRun("annex", 0, count),) if count else ()

    def held(self, row: int) -> HeldRun:
        """The filled slots as kernels are told of them; their positions say nothing."""
        return HeldRun(0, self._counts[row], "annex", 0)
