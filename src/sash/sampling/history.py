"""What a sequence holds already, kept so that no token needs a rebuilding of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class SeenTokens:
    """The different ids of a growing sequence, as a tensor that needs no rebuilding for every token."""

    def __init__(self, ids: Iterable[int] = ()) -> None:
        """Starts with some ids, such as a prompt's."""
        self._known: set[int] = set()
        self._order: list[int] = []
        self._tensor: Tensor | None = None
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Adds ids; those already known change nothing."""
        for token_id in ids:
            if token_id not in self._known:
                self._known.add(token_id)
                self._order.append(token_id)
                self._tensor = None

    @property
    def ids(self) -> Tensor:
        """The ids, int64 [n], each once."""
        import torch

        if self._tensor is None:
            self._tensor = torch.tensor(self._order, dtype=torch.int64)
        return self._tensor


class OutputCounts:
    """How often each token was written.

    >>> counts = OutputCounts([5, 3, 5])
    >>> counts.total, [array.tolist() for array in counts.arrays()]
    (3, [[5, 3], [2.0, 1.0]])
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        """Starts with some ids; usually none."""
        self._counts: dict[int, int] = {}
        self.total = 0
        self.extend(ids)

    def extend(self, ids: Iterable[int]) -> None:
        """Adds ids that were written."""
        for token_id in ids:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
            self.total += 1

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The different ids, int64 [n], and how often each occurred, float32 [n]."""
        import numpy as np

        ids = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
        return ids, np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
