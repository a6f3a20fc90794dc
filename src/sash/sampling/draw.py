"""One draw from one row of logits.

Tensor shapes: V vocabulary, C candidates that the filters left. torch and numpy are imported by the functions that
compute.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sash.errors import NumericalError, UsageError
from sash.sampling.history import OutputCounts
from sash.sampling.params import SamplingParams
from sash.sampling.scores import changed_scores

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sash.sampling.scores import Mask, Row

    Ids: TypeAlias = NDArray[np.int64]

_FIRST_CANDIDATES = 1024
_BLOCK = 1024
_COLDEST = 1e-30  # a temperature below this would be 0 as a float32


@dataclass(frozen=True, slots=True)
class Sampled:
    """One chosen token.

    Attributes:
        token_id: the token.
        logprob: its natural log-probability under the model's own distribution, before any penalty or filter; None
            where it was not asked for.
        top: the likeliest tokens of that distribution with their log-probabilities, likeliest first.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def new_generator(params: SamplingParams) -> torch.Generator:
    """A request's own CPU generator: its draws depend on its seed alone, whatever else is in the batch."""
    import torch

    seed = params.seed if params.seed is not None else int.from_bytes(os.urandom(8), "big") >> 1
    return torch.Generator(device="cpu").manual_seed(seed)


def sample(
    logits_V: Tensor,
    params: SamplingParams,
    history_ids: Sequence[int] | Tensor,
    generator: torch.Generator,
    *,
    output: OutputCounts | None = None,
    mask: Mask | None = None,
    end_ids: Iterable[int] = (),
) -> Sampled:
    """Chooses the next token of one sequence.

    First what `sash.sampling.scores` names (mask, min_tokens, bias, penalties), then temperature, top_k, top_p, min_p,
    in the order of transformers. The draw inverts the cumulative distribution in float64, over ids in rising order,
    with a single uniform number.

    Log-probabilities are told where `params.logprobs` is not None: they take several passes over a large vocabulary,
    and the likeliest token takes one.

    Args:
        logits_V: one row of logits; -inf marks tokens that cannot be.
        params: how to choose.
        history_ids: ids of prompt and output so far; only read with a repetition penalty. `SeenTokens.ids` is quickest.
        generator: see `new_generator`; untouched at temperature 0.
        output: counts of the output so far, read with presence_penalty, frequency_penalty and min_tokens; None where
            nothing is written yet.
        mask: the tokens that a grammar allows next: bool [V], or a packed bitmask, see `sash.sampling.scores.allowed`.
        end_ids: tokens that end the text, which min_tokens forbids at first.

    Raises:
        NumericalError: the logits hold NaN or +inf, or nothing but -inf.
        UsageError: not one row, ids outside of it, or no token left to choose from.
    """
    # One row is too little work for torch's threads, and numpy's sorting and maxima are many times as fast on it.
    row_V: Row = _as_floats(logits_V).numpy()
    likeliest = _check_logits(row_V)
    scores_V = changed_scores(row_V, params, history_ids, output=output, mask=mask, end_ids=end_ids)
    if params.temperature != 0:
        token_id = _draw(scores_V, params, generator)
    else:
        token_id = likeliest if scores_V is row_V else int(scores_V.argmax())
    if params.logprobs is None:
        return Sampled(token_id)
    return _report(row_V, float(row_V[likeliest]), token_id, params.logprobs)


def _as_floats(logits_V: Tensor) -> Tensor:
    """In float32, on the CPU."""
    import torch

    if logits_V.dtype == torch.float32 and logits_V.is_cpu and not logits_V.requires_grad:
        return logits_V
    return logits_V.detach().to(device="cpu", dtype=torch.float32)


def _check_logits(row_V: Row) -> int:
    """Where the largest logit is. The first NaN counts as the largest, so one pass finds every fault."""
    if row_V.ndim != 1 or not row_V.size:
        raise UsageError(f"sample takes one row of logits; got the shape {row_V.shape}")
    likeliest = int(row_V.argmax())
    largest = float(row_V[likeliest])
    if math.isnan(largest):
        raise NumericalError(
            "the model's logits hold NaN: its weights are broken, or its dtype overflowed; try float32"
        )
    if largest == math.inf:
        raise NumericalError("the logits hold +inf: the dtype overflowed; try float32")
    if largest == -math.inf:
        raise NumericalError("the model's logits are all -inf, so no token is possible")
    return likeliest


def _draw(scores_V: Row, params: SamplingParams, generator: torch.Generator) -> int:
    """One draw from the filtered distribution."""
    import numpy as np
    import torch

    ids_C = _likeliest(scores_V, params.top_k)
    scores_C = scores_V if ids_C is None else scores_V[ids_C]
    # Shifted before they are divided, so that no temperature can make them overflow upwards.
    with np.errstate(over="ignore", under="ignore"):
        weights_C = scores_C - scores_C.max()
        weights_C /= np.float32(max(params.temperature, _COLDEST))
        np.exp(weights_C, out=weights_C)
    if params.top_p < 1:
        places = _nucleus(weights_C, params.top_p)
        weights_C, ids_C = weights_C[places], places if ids_C is None else ids_C[places]
    if params.min_p > 0:
        weights_C = np.where(weights_C >= params.min_p * weights_C.max(), weights_C, np.float32(0))
    uniform = float(torch.rand((), dtype=torch.float64, generator=generator))
    place = _invert(weights_C, uniform)
    return place if ids_C is None else int(ids_C[place])


def _invert(weights_C: Row, uniform: float) -> int:
    """The first place where the cumulative weight exceeds this fraction of the whole, in float64.

    Weights are added up block by block, then within the one block that matters.

    >>> import numpy as np
    >>> [_invert(np.array([1, 0, 2, 1], dtype=np.float32), uniform) for uniform in (0.0, 0.24, 0.25, 0.74, 0.75, 0.99)]
    [0, 0, 2, 2, 3, 3]
    """
    import numpy as np

    whole = len(weights_C) - len(weights_C) % _BLOCK
    sums = weights_C[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    ends = np.append(sums, weights_C[whole:].sum(dtype=np.float64)).cumsum()
    point = uniform * ends[-1]
    block = min(int(np.searchsorted(ends, point, side="right")), int(np.searchsorted(ends, ends[-1])))
    start = block * _BLOCK
    inside = weights_C[start : start + _BLOCK].cumsum(dtype=np.float64)
    point -= ends[block - 1] if block else 0.0
    # Rounding may put the point just past the end: then it is the last place that has any weight.
    place = min(int(np.searchsorted(inside, point, side="right")), int(np.searchsorted(inside, inside[-1])))
    return start + place


def _likeliest(scores_V: Row, top_k: int) -> Ids | None:
    """Ids of the k largest scores and of all that tie with the last of them, rising; None for all ids.

    >>> import numpy as np
    >>> _likeliest(np.array([1.0, 3.0, 2.0, 2.0], dtype=np.float32), 2)
    array([1, 2, 3])
    """
    import numpy as np

    if not 0 < top_k < len(scores_V):
        return None
    smallest = np.partition(scores_V, len(scores_V) - top_k)[len(scores_V) - top_k]
    return np.flatnonzero(scores_V >= smallest)


def _nucleus(weights_C: Row, top_p: float) -> Ids:
    """Places of the likeliest tokens, up to and including the one that takes their sum to top_p; rising.

    Of equally likely tokens the lower id counts as likelier. All are only sorted where the likeliest thousand do not
    suffice.

    >>> import numpy as np
    >>> _nucleus(np.array([0.1, 0.4, 0.1, 0.4], dtype=np.float32), 0.85)
    array([0, 1, 3])
    """
    import numpy as np

    needed = top_p * float(weights_C.sum(dtype=np.float64))
    for count in (_FIRST_CANDIDATES, len(weights_C)):
        skipped = max(0, len(weights_C) - count)
        largest = np.sort(np.partition(weights_C, skipped)[skipped:] if skipped else weights_C)[::-1]
        sums = largest.cumsum(dtype=np.float64)
        if sums[-1] >= needed:
            break
    kept = min(int(np.searchsorted(sums, needed)) + 1, len(sums))
    smallest = largest[kept - 1]
    above = np.flatnonzero(weights_C > smallest)
    tied = np.flatnonzero(weights_C == smallest)[: kept - len(above)]
    return np.sort(np.concatenate([above, tied]))


def _report(row_V: Row, largest: float, token_id: int, logprobs: int) -> Sampled:
    """The chosen token with log-probabilities of the unmodified distribution."""
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        shifted_V = row_V - np.float32(largest)
        total = largest + math.log(float(np.exp(shifted_V, out=shifted_V).sum(dtype=np.float64)))
    top: tuple[tuple[int, float], ...] = ()
    if logprobs:
        ids = _likeliest(row_V, logprobs)
        ids = np.arange(len(row_V)) if ids is None else ids
        ids = ids[np.argsort(-row_V[ids], kind="stable")][:logprobs]
        top = tuple((int(candidate), float(row_V[candidate]) - total) for candidate in ids)
    return Sampled(token_id=token_id, logprob=float(row_V[token_id]) - total, top=top)
