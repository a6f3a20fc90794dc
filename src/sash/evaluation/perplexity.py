"""Perplexity: how well a model predicts a text, read once through its rolling buffer, or by overlapping windows.

Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sash.errors import EmptyPromptError
from sash.lm import LM
from sash.session_state import check_ids

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
    def reads_a_token(self) -> float:
        """Tokens read for each one that was predicted."""
        return self.n_read / self.n_tokens if self.n_tokens else 0.0

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
            "tokens_read_per_token": self.reads_a_token,
            "seconds": self.seconds,
            "tokens_per_second": self.speed,
        }


def perplexity(lm: LM, ids: list[int], *, chunk: int | None = None, progress: Progress | None = None) -> Perplexity:
    """Score a text, read once, chunk by chunk, through the rolling buffer; or again and again by overlapping windows.

    Memory is that of the model, its cache and one chunk, whatever the length of the text. A model that reads by
    overlapping windows (`LM.with_overlap`) scores a text as StreamingLLM's re-computation does (arXiv 2309.17453,
    figure 1c): exactly so with a stride of 1, at `window` tokens read for each that is predicted. `n_read` counts them.

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
    n_read = len(ids)
    if lm.overlap is not None:
        lead = lm.overlap.pins or int(ids[0] == lm.tokenizer.bos_id and lm.overlap.window > 1)
        own = [stop - start for start, stop in readings(len(ids), lm.overlap.window, lm.overlap.stride, lead)]
        n_read = sum(own) + lead * (len(own) - 1)
    return Perplexity(
        n_tokens=len(ids) - 1,
        n_bytes=_n_bytes(lm, ids[1:]),
        nll=-float(scores.double().mean()),
        n_read=n_read,
        seconds=time.perf_counter() - start,
    )


def readings(n_tokens: int, window: int, stride: int, lead: int = 0) -> list[tuple[int, int]]:
    """The readings of a text by overlapping windows: (start, stop), the tokens start..stop - 1.

    The first begins at 0, and each other one has `lead` tokens in front of its own: `window` in all, or for the last as
    many as are left.

    >>> readings(6, window=3, stride=1)
    [(0, 3), (1, 4), (2, 5), (3, 6)]
    >>> readings(9, window=4, stride=2)
    [(0, 4), (2, 6), (4, 8), (6, 9)]
    """
    found = [(0, min(n_tokens, window))]
    while (before := found[-1][1]) < n_tokens:
        stop = before + min(stride, window - lead)
        found.append((stop - window + lead, min(n_tokens, stop)))
    return found


def _check(lm: LM, ids: list[int]) -> None:
    if len(ids) < 2:
        raise EmptyPromptError("perplexity needs 2 tokens or more: give a longer text")
    check_ids(ids, lm.config.vocab_size)


def chosen(logits_NV: Tensor, next_N: Tensor) -> Tensor:
    """Logarithmic probability of each row's next token, [N] float32."""
    return logits_NV.gather(1, next_N[:, None]).squeeze(1) - logits_NV.logsumexp(-1)


def _n_bytes(lm: LM, ids: list[int]) -> int:
    """Bytes of text; control tokens spell none."""
    control = lm.tokenizer.control_ids
    return sum(len(lm.tokenizer.token_bytes(token_id)) for token_id in ids if token_id not in control)
