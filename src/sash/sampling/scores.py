"""What a request changes in a row of logits before anything is drawn from it.

In this order, each only where it was asked for:

1. the mask of a grammar: what it forbids is -inf;
2. `min_tokens`: tokens that end the text are -inf before so many are written;
3. `logit_bias`: added; -100 makes it -inf;
4. `repetition_penalty`, over prompt and output;
5. `frequency_penalty` and `presence_penalty`, over the output:
   score - count * frequency_penalty - (count > 0) * presence_penalty (OpenAI's formula).

Temperature, top_k, top_p and min_p follow in `sash.sampling.draw`. Where transformers has the same step (allowed
tokens, bias, repetition penalty, smallest length), the numbers and the order are its own.

Tensor shapes: V vocabulary. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sash.errors import UsageError
from sash.sampling.history import OutputCounts
from sash.sampling.params import SamplingParams

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Row: TypeAlias = NDArray[np.float32]
    Mask: TypeAlias = NDArray[Any]

BANNED = -100.0
"""The bias that forbids a token."""


def changed_scores(
    row_V: Row,
    params: SamplingParams,
    history_ids: Sequence[int] | Tensor,
    *,
    output: OutputCounts | None,
    mask: Mask | None,
    end_ids: Iterable[int],
) -> Row:
    """The row as the request wants it; the very same array where it wants nothing.

    Args:
        row_V: the model's logits, which stay as they are.
        params: what to change.
        history_ids: ids of prompt and output so far.
        output: counts of the output; None where nothing is written yet.
        mask: see `allowed`.
        end_ids: tokens that end the text.

    Raises:
        UsageError: nothing is left to choose from, or an id outside of the row.
    """
    scores_V = row_V
    if mask is not None:
        scores_V = _masked(scores_V, mask)
    if (0 if output is None else output.total) < params.min_tokens:
        scores_V = _unended(scores_V, end_ids)
    if params.logit_bias:
        scores_V = _biased(scores_V, params.logit_bias)
    if params.repetition_penalty != 1 and len(history_ids):
        scores_V = _penalised(scores_V, params.repetition_penalty, history_ids)
    if params.counts_output and output is not None and output.total:
        scores_V = _counted(scores_V, params, output)
    if scores_V is not row_V and scores_V.max() == -math.inf:
        raise UsageError(
            "no token is left to choose from: the grammar, logit_bias and the model together forbid every one"
        )
    return scores_V


def allowed(mask: Mask, size: int) -> NDArray[np.bool_]:
    """A mask as booleans of a row's size; tokens past the mask's end are forbidden.

    Args:
        mask: bool [V], or whole numbers whose bits are tokens, the lowest bit of the first byte first.
        size: V.

    >>> import numpy as np
    >>> allowed(np.array([0b101], dtype=np.uint8), 4).tolist()
    [True, False, True, False]
    >>> allowed(np.array([True, False]), 3).tolist()
    [True, False, False]
    """
    import numpy as np

    flags = mask
    if mask.dtype != np.bool_:
        flags = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little").view(np.bool_)
    if len(flags) < size:
        flags = np.concatenate([flags, np.zeros(size - len(flags), dtype=np.bool_)])
    return flags[:size]


def _masked(scores_V: Row, mask: Mask) -> Row:
    import numpy as np

    return np.where(allowed(mask, len(scores_V)), scores_V, np.float32(-np.inf))


def _unended(scores_V: Row, end_ids: Iterable[int]) -> Row:
    """Without the tokens that end the text, unless nothing else is possible: then the grammar has come to its end."""
    ids = [token_id for token_id in end_ids if 0 <= token_id < len(scores_V)]
    if not ids:
        return scores_V
    open_V = scores_V.copy()
    open_V[ids] = -math.inf
    return open_V if open_V.max() > -math.inf else scores_V


def _biased(scores_V: Row, biases: Sequence[tuple[int, float]]) -> Row:
    import numpy as np

    ids = np.array([token_id for token_id, _ in biases], dtype=np.int64)
    if ids.max() >= len(scores_V):
        raise UsageError(f"logit_bias names token {ids.max()}: the model's ids end at {len(scores_V) - 1}")
    added = np.array([-math.inf if bias == BANNED else bias for _, bias in biases], dtype=np.float32)
    biased_V = scores_V.copy()
    biased_V[ids] = _finite(scores_V[ids] + added)
    return biased_V


def _penalised(scores_V: Row, penalty: float, history_ids: Sequence[int] | Tensor) -> Row:
    """Scores with the repetition penalty of CTRL; each token is penalised once, however often it occurred."""
    import numpy as np

    ids = np.asarray(history_ids, dtype=np.int64)
    if ids.min() < 0 or ids.max() >= len(scores_V):
        raise UsageError(f"history ids must lie between 0 and {len(scores_V) - 1}; got {ids.min()} to {ids.max()}")
    seen = scores_V[ids]
    penalised_V = scores_V.copy()
    with np.errstate(over="ignore", under="ignore"):
        penalised_V[ids] = _finite(np.where(seen > 0, seen / np.float32(penalty), seen * np.float32(penalty)))
    return penalised_V


def _counted(scores_V: Row, params: SamplingParams, output: OutputCounts) -> Row:
    """Scores with OpenAI's two penalties."""
    import numpy as np

    ids, counts = output.arrays()
    if ids.min() < 0 or ids.max() >= len(scores_V):
        raise UsageError(f"output ids must lie between 0 and {len(scores_V) - 1}; got {ids.min()} to {ids.max()}")
    counted_V = scores_V.copy()
    taken = counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
    counted_V[ids] = _finite(counted_V[ids] - taken)
    return counted_V


def _finite(scores: Row) -> Row:
    """The scores with none of them above what a float32 can hold; -inf stays."""
    import numpy as np

    return np.minimum(scores, np.finfo(np.float32).max)
