"""Perplexity: how well a model predicts a text, read once through its rolling buffer.

Shape suffixes: N tokens, D dim, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sash.errors import EmptyPromptError, UsageError
from sash.lm import LM
from sash.network.batch import Batch
from sash.reading import HEAD_ROWS
from sash.session import check_ids

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """How well a text was predicted.

    Attributes:
        n_tokens: tokens that were predicted: all but the first.
        n_bytes: bytes of text that they spell.
        nll: mean negative log-likelihood of a token, in nats.
        n_read: tokens that went through the network; more than were predicted where they are read again.
        seconds: what it took.
    """

    n_tokens: int
    n_bytes: int
    nll: float
    n_read: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that is no number any more."""
        return math.exp(self.nll) if self.nll < 709 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that a byte of the text costs, so that models with different tokens can be compared."""
        return self.nll * self.n_tokens / math.log(2) / self.n_bytes if self.n_bytes else None

    @property
    def speed(self) -> float:
        """Tokens read a second."""
        return self.n_read / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Fields and properties."""
        return {
            "tokens": self.n_tokens,
            "bytes": self.n_bytes,
            "nll": self.nll,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens_read": self.n_read,
            "seconds": self.seconds,
            "tokens_per_second": self.speed,
        }


def perplexity(lm: LM, ids: list[int], *, chunk: int | None = None, progress: Progress | None = None) -> Perplexity:
    """Score a text, read once, chunk by chunk, through the rolling buffer.

    Memory is that of the model, its cache and one chunk, whatever the length of the text.

    Args:
        lm: the model, with its window and pins as they are to be measured.
        ids: token ids, the begin-of-text id included where the model has one.
        chunk: tokens that are read at once; by default the model's own. The result does not depend on it.
        progress: called with the number of tokens read after each chunk.

    Raises:
        EmptyPromptError: fewer than 2 tokens, so that there is nothing to predict.
        UsageError: an id outside of the vocabulary.
    """
    _check(lm, ids)
    start = time.perf_counter()
    scores = lm.score(ids, chunk or lm.chunk, progress)
    return Perplexity(
        n_tokens=len(ids) - 1,
        n_bytes=_n_bytes(lm, ids[1:]),
        nll=-float(scores.double().mean()),
        n_read=len(ids),
        seconds=time.perf_counter() - start,
    )


def reread_perplexity(
    lm: LM, ids: list[int], window: int, *, stride: int = 1, progress: Progress | None = None
) -> Perplexity:
    """Score a text by reading the last `window` tokens afresh for every prediction: StreamingLLM's re-computation.

    This is the quality that a window of that size can give at best: nothing is cached, positions begin at 0 each time
    (arXiv 2309.17453, figure 1c). With `stride` = 1 that is exact, and costs `window` tokens a prediction. A larger
    stride predicts that many tokens from one reading: the last of them sees `window` tokens, the first of them
    window - stride + 1, so the result is an upper bound that approaches the exact one from above.

    A text that begins with the model's begin-of-text id has it in front of every reading, as one of the `window`.

    Args:
        lm: the model without a forced window.
        ids: token ids.
        window: tokens of each reading.
        stride: tokens predicted from each reading, at most `window`.
        progress: called with the number of tokens predicted after each reading.

    Raises:
        EmptyPromptError: fewer than 2 tokens.
        UsageError: a window or stride that cannot be, or an id outside of the vocabulary.
    """
    _check(lm, ids)
    if window < 1 or not 1 <= stride <= window:
        raise UsageError(f"re-reading needs 1 <= stride <= window; got a stride of {stride} and a window of {window}")
    lead = ids[:1] if ids[0] == lm.tokenizer.bos_id and window > 1 else []
    began = time.perf_counter()
    total, n_read = 0.0, 0
    for first, stop, start in readings(len(ids), window, stride, len(lead)):
        read = [*(lead if start else []), *ids[start : stop - 1]]
        n_read += len(read)
        with torch.inference_mode():
            hidden_ND = lm.decoder(Batch.pack([read], device=lm.device))
            total += float(_log_likelihood(lm, hidden_ND[first - stop :], ids[first:stop]))
        if progress is not None:
            progress(stop - first)
    return Perplexity(
        n_tokens=len(ids) - 1,
        n_bytes=_n_bytes(lm, ids[1:]),
        nll=-total / (len(ids) - 1),
        n_read=n_read,
        seconds=time.perf_counter() - began,
    )


def readings(n_tokens: int, window: int, stride: int, lead: int = 0) -> list[tuple[int, int, int]]:
    """Which tokens each re-reading predicts, and where it starts: (first, stop, start), the tokens first..stop - 1.

    It reads the tokens start..stop - 2, after `lead` others unless start is 0: `window` in all, or as many as there
    are. The first reading predicts all that it can.

    >>> readings(6, window=3, stride=1)
    [(1, 4, 0), (4, 5, 1), (5, 6, 2)]
    >>> readings(10, window=4, stride=2)
    [(1, 5, 0), (5, 7, 2), (7, 9, 4), (9, 10, 5)]
    """
    found = [(1, min(n_tokens, window + 1), 0)]
    while (first := found[-1][1]) < n_tokens:
        stop = min(n_tokens, first + max(1, min(stride, window - lead)))
        found.append((first, stop, max(0, stop - 1 - (window - lead))))
    return found


def _check(lm: LM, ids: list[int]) -> None:
    if len(ids) < 2:
        raise EmptyPromptError("perplexity needs 2 tokens or more: give a longer text")
    check_ids(ids, lm.config.vocab_size)


def _log_likelihood(lm: LM, hidden_ND: Tensor, wanted: list[int]) -> Tensor:
    """Summed logarithmic probability of the tokens that follow, float64; logits are held for a slice of rows."""
    wanted_N = torch.tensor(wanted, device=hidden_ND.device)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(wanted), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        total += chosen(lm.decoder.logits(hidden_ND[rows]), wanted_N[rows]).double().sum().cpu()
    return total


def chosen(logits_NV: Tensor, next_N: Tensor) -> Tensor:
    """Logarithmic probability of each row's next token, [N] float32."""
    return logits_NV.gather(1, next_N[:, None]).squeeze(1) - logits_NV.logsumexp(-1)


def _n_bytes(lm: LM, ids: list[int]) -> int:
    """Bytes of text; control tokens spell none."""
    control = lm.tokenizer.control_ids
    return sum(len(lm.tokenizer.token_bytes(token_id)) for token_id in ids if token_id not in control)
