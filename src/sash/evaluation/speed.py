"""How fast a model reads prompts and writes on, beside what the machine allows.

Work goes through the engine, as a user's does: scheduling, sampling (greedy) and all. Tokens are random: speed does not
depend on them.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sash.engine.engine import Engine
from sash.engine.request import Request
from sash.errors import UsageError
from sash.evaluation.limits import Kind, Limits
from sash.evaluation.roofline import Bound, Work, key_bytes_of, kinds_of, reading, writing
from sash.lm import LM
from sash.network.cache import KVCache
from sash.sampling import SamplingParams

logger = logging.getLogger(__name__)

SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        prompts: lengths of prompts to read.
        n_write: tokens that each stream writes; 0 to measure reading only.
        depths: tokens that a stream has read before it writes.
        batches: streams that write at once.
        rounds: how often each is measured.

    Raises:
        UsageError: a count that cannot be.
    """

    prompts: tuple[int, ...]
    n_write: int
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    rounds: int

    def __post_init__(self) -> None:
        for name, least, counts in (
            ("-p counts tokens of a prompt", 1, self.prompts),
            ("-n counts tokens to write", 0, (self.n_write,)),
            ("-d counts tokens before", 0, self.depths),
            ("-b counts streams", 1, self.batches),
            ("--rounds counts rounds", 1, (self.rounds,)),
        ):
            for count in counts:
                if count < least:
                    raise UsageError(f"{name}, so it is {least} or more; got {count}")

    @property
    def n_tokens(self) -> int:
        """Tokens that are read and written in all."""
        written = self.rounds * self.n_write * len(self.depths) * sum(self.batches)
        return self.rounds * sum(self.prompts) + written + (max(self.depths, default=0) if self.n_write else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One line of the table.

    Attributes:
        task: "read" a prompt of `n_tokens`, or "write" `n_tokens` in each stream.
        n_tokens, depth, n_streams: see `Plan`.
        seconds: of each round.
        work: what a round has to do at least.
        kinds: what is multiplied in the linear maps, and in attention.
    """

    task: Literal["read", "write"]
    n_tokens: int
    depth: int
    n_streams: int
    seconds: tuple[float, ...]
    work: Work
    kinds: tuple[Kind, Kind]

    @property
    def speeds(self) -> tuple[float, ...]:
        """Tokens a second of each round, all streams together."""
        return tuple(self.n_tokens * self.n_streams / seconds for seconds in self.seconds)

    @property
    def median(self) -> float:
        """Tokens a second of the median round."""
        return statistics.median(self.speeds)

    def limit(self, limits: Limits) -> tuple[float, Bound]:
        """Tokens a second that a machine allows at most, and what bounds them."""
        return self.work.tokens_per_second(limits, *self.kinds)

    def to_json(self, limits: Limits) -> dict[str, Any]:
        """Plain values; speeds are tokens a second."""
        limit, bound = self.limit(limits)
        return {
            "task": self.task,
            "tokens": self.n_tokens,
            "depth": self.depth,
            "streams": self.n_streams,
            "seconds": list(self.seconds),
            "speed": self.median,
            "speed_min": min(self.speeds),
            "speed_max": max(self.speeds),
            "limit": limit,
            "of_limit": self.median / limit,
            "bound": bound,
        }


class Bench:
    """Measures a model by a plan. One use.

    Attributes:
        lm: the model.
    """

    def __init__(
        self,
        lm: LM,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Get ready.

        Args:
            lm: the model.
            cancelled: asked between two steps; True ends the measurement.
            progress: called with the number of tokens that were read or written since the last call.
        """
        self.lm = lm
        self._cancelled, self._progress = cancelled, progress
        self._generator = torch.Generator().manual_seed(SEED)

    def run(self, plan: Plan) -> Iterator[Speed]:
        """Measure; yields each line when its rounds are done, or as many of them as there were before the end."""
        if not self._warm_up():
            return
        for n_tokens in dict.fromkeys(plan.prompts):
            yield from self._line("read", n_tokens, 0, 1, list(self._read_rounds(n_tokens, plan.rounds)))
        if not plan.n_write:
            return
        filled = self.lm.cache(1)
        row = filled.allocate()
        for depth in sorted(set(plan.depths)):
            if not self._fill(filled, row, depth):
                return
            for n_streams in dict.fromkeys(plan.batches):
                rounds, key_bytes = self._write_rounds(filled, n_streams, plan.n_write, plan.rounds)
                yield from self._line("write", plan.n_write, depth, n_streams, rounds, key_bytes)

    def _line(
        self,
        task: Literal["read", "write"],
        n_tokens: int,
        depth: int,
        n_streams: int,
        seconds: list[float],
        key_bytes: float = 0.0,
    ) -> Iterator[Speed]:
        if not seconds:
            return
        decoder = self.lm.decoder
        work = reading(decoder, n_tokens) if task == "read" else writing(decoder, depth, n_streams, n_tokens, key_bytes)
        line = Speed(
            task=task, n_tokens=n_tokens, depth=depth, n_streams=n_streams, seconds=tuple(seconds), work=work,
            kinds=kinds_of(decoder),
        )  # fmt: skip
        logger.info("%s %d tokens, depth %d, %d streams: %.2f tok/s", task, n_tokens, depth, n_streams, line.median)
        yield line

    def _draw(self, count: int) -> tuple[int, ...]:
        ids_T = torch.randint(0, self.lm.config.vocab_size, (count,), generator=self._generator)
        return tuple(ids_T.tolist())

    def _warm_up(self) -> bool:
        """Read a little and write a little, so that nothing is done for the first time in a measurement."""
        cache = self.lm.cache(1)
        engine = Engine(self.lm.decoder, cache, chunk=self.lm.chunk)
        engine.submit(Request(prompt_ids=self._draw(16), params=_greedy(3)))
        while not engine.idle:
            if self._cancelled():
                return False
            engine.step()
        return True

    def _read_rounds(self, n_tokens: int, rounds: int) -> Iterator[float]:
        """Seconds of each round, from the prompt to the first token of the answer."""
        cache = self.lm.cache(1)
        row = cache.allocate()
        for _ in range(rounds):
            seconds = self._read(cache, row, n_tokens)
            if seconds is None:
                return
            yield seconds
            cache.wipe(row)

    def _fill(self, cache: KVCache, row: int, depth: int) -> bool:
        """Read on in a row until it holds `depth` tokens; False if that was cancelled."""
        missing = depth - cache.lengths[row]
        return missing < 1 or self._read(cache, row, missing) is not None

    def _read(self, cache: KVCache, row: int, n_tokens: int) -> float | None:
        """Seconds of reading on in a row up to the first token of the answer; None if that was cancelled."""
        request = Request(
            prompt_ids=self._draw(n_tokens),
            params=_greedy(1),
            row=row,
            position=cache.lengths[row],
            keep_row=True,
        )
        engine = Engine(self.lm.decoder, cache, chunk=self.lm.chunk, rows=[])
        began = time.perf_counter()
        engine.submit(request)
        while not engine.idle:
            if self._cancelled():
                return None
            self._progress(sum(event.n_read for event in engine.step()))
        return time.perf_counter() - began

    def _write_rounds(self, filled: KVCache, n_streams: int, n_tokens: int, rounds: int) -> tuple[list[float], float]:
        """Seconds of each round, in which every stream writes on from a copy of what row 0 of `filled` holds.

        And the bytes of a key and value. The first token of each stream comes of reading a token of its own, which
        makes the streams differ; the time runs from there.
        """
        cache = self.lm.cache(n_streams)
        rows = [cache.allocate() for _ in range(n_streams)]
        seconds: list[float] = []
        for _ in range(rounds):
            engine = Engine(self.lm.decoder, cache, chunk=max(self.lm.chunk, n_streams), rows=[])
            for row in rows:
                cache.wipe(row)
                cache.copy_row(row, filled, 0)
                request = Request(
                    prompt_ids=self._draw(1),
                    params=_greedy(n_tokens + 1),
                    row=row,
                    position=cache.lengths[row],
                    keep_row=True,
                )
                engine.submit(request)
            engine.step()
            began = time.perf_counter()
            while not engine.idle:
                if self._cancelled():
                    return seconds, key_bytes_of(cache)
                self._progress(len(engine.step()))
            seconds.append(time.perf_counter() - began)
        return seconds, key_bytes_of(cache)


def _greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
