"""What is asked when: the same for every server."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request of a trace.

    Attributes:
        at: seconds after the start of the trace at which it is sent, whatever became of those before.
        prompt: token ids.
        n_write: tokens to write, exactly.
    """

    at: float
    prompt: tuple[int, ...]
    n_write: int


def poisson(
    *, rate: float, count: int, prompts: tuple[int, int], writes: tuple[int, int], vocab_size: int, seed: int
) -> list[Asked]:
    """A trace of Poisson arrivals: exponential times between them, lengths drawn evenly.

    Args:
        rate: requests a second, on average.
        count: requests.
        prompts: the shortest and longest prompt, in tokens.
        writes: the fewest and most tokens that are written.
        vocab_size: ids are drawn evenly from those that are no control tokens.
        seed: the same seed draws the same trace.
    """
    draw = random.Random(seed)
    now, trace = 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        n_prompt = draw.randint(*prompts)
        ids = tuple(draw.randrange(3, vocab_size) for _ in range(n_prompt))
        trace.append(Asked(at=now, prompt=ids, n_write=draw.randint(*writes)))
    return trace


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share of the values does not exceed; 0 for none.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))] if ordered else 0.0
