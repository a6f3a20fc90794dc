"""Runs a step's work through the network and samples: torch lives here, the state of requests does not.

Where a row's numbers depend on nothing but itself (`Network.independent`), a whole step is one forward. Elsewhere every
prompt chunk is a forward of its own, and sequences that write are taken together, at most 16 at a time: up to there
the matrix products of bfloat16 on x86 give a row the same bits whoever shares the batch, and a chunk is long enough to
gain nothing from company. So what a request reads does not depend on the others.

Guesses of the tokens to come are rows of the same forward. Their keys and values wait beside the cache, and the logits
after them here, until what is written proves them right; see `Runner._go_on`.

What fails in one request's part ends that request. A forward that fails is repeated with each of its works alone, so
that the others go on as if nothing had been: see `Runner._alone`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from sash.engine.lanes import Lanes, Place
from sash.engine.request import Lost, Result, Sequence, Token, Work
from sash.errors import DoesNotFitError, NumericalError, SashError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.packed import Network
from sash.network.undo import undo
from sash.sampling import new_generator, sample

logger = logging.getLogger(__name__)

MAX_WRITERS = 16

FEW_ROWS = 4
"""Rows that are sampled faster than threads are woken."""

HEAD_ROWS = 128
"""Prompt tokens whose logits are held at once, where they are asked for."""

Results = list[tuple[Work, Result]]


class Runner:
    """The network and cache of every lane."""

    def __init__(self, lanes: Lanes, n_threads: int = 1) -> None:
        """`n_threads` choose tokens at once where many rows are written; `close` ends them."""
        self.lanes = lanes
        self._generators: dict[Sequence, torch.Generator] = {}
        self._ahead: dict[Sequence, list[Tensor | Exception]] = {}
        self._pool = ThreadPoolExecutor(n_threads, "sash-sampling") if n_threads > 1 else None

    @torch.inference_mode()
    def run(self, works: list[Work]) -> Results:
        """Compute a step; an error in one sequence's part is its result, and nobody else's."""
        results: Results = []
        ahead = [work for work in works if work.ahead]
        if ahead:
            results += self._chosen([(work, self._go_on(work)) for work in ahead])
            works = [work for work in works if not work.ahead]
        for lane in dict.fromkeys(work.sequence.lane for work in works):
            place = self.lanes.of(lane)
            for batch in _batches([work for work in works if work.sequence.lane == lane], place.network):
                results += self._attempt(place, batch)
        return results

    def _attempt(self, place: Place, works: list[Work]) -> Results:
        """One forward of all, or where that fails one of each."""
        _empty_rows(works, place.cache)
        for work in works:
            if work.sequence.reading:
                request = work.sequence.request
                place.cache.ask(_row(work.sequence), request.position + len(request.prompt_ids))
        try:
            hidden_TD = place.network(_pack(works, place.cache), place.cache)
        except Exception as error:
            if len(works) == 1 and not works[0].drafts:
                return [(works[0], _as_error(error, "computing"))]
            logger.warning("a step of %d sequences failed (%s): each is tried alone", len(works), type(error).__name__)
            written = not isinstance(error, DoesNotFitError)  # memory is taken before anything is computed
            return [result for work in works for result in self._alone(place, work, written)]
        return self._reveal(place, works, hidden_TD)

    def _alone(self, place: Place, work: Work, written: bool) -> Results:
        """Repeat one work of a forward that failed; `written` says that the forward may have begun to compute.

        A forward that failed half way may have written keys and values of some layers. A single token's go where
        nothing is any more that its sequence can see, so that its step can be repeated; what a longer chunk wrote over
        may be needed by its own first tokens, so its row has to be read anew. Guesses are written nowhere, and what is
        repeated goes without.
        """
        work = replace(work, drafts=())
        sequence = work.sequence
        if undo(place.cache, _row(sequence), sequence.position, work.n_tokens) or not written:
            return self._attempt(place, [work])
        if sequence.request.row is not None:
            return [(work, SashError("a part of the text was lost when a step failed: feed it again"))]
        place.cache.wipe(_row(sequence))
        return [(work, Lost())]

    def _reveal(self, place: Place, works: list[Work], hidden_TD: Tensor) -> Results:
        """What a forward that went well says of each work."""
        ends, end = [], 0
        for work in works:
            end += work.n_rows
            ends.append(end)
        last = [
            row
            for end, work in zip(ends, works, strict=True)
            if work.writes
            for row in range(end - len(work.drafts) - 1, end)
        ]
        logits = iter(self._logits(place.network, hidden_TD, last))
        parts: list[tuple[Work, Tensor | Exception | None]] = []
        for end, work in zip(ends, works, strict=True):
            logits_V = next(logits) if work.writes else None
            if work.drafts:
                self._ahead[work.sequence] = [next(logits) for _ in work.drafts]
                fault = _accept(place.cache, work)
            else:
                fault = self._score(place.network, work, hidden_TD[end - work.n_tokens : end])
            _note_recalled(place.cache, work)
            parts.append((work, fault or logits_V))
        return self._chosen(parts)

    def _go_on(self, work: Work) -> Tensor | Exception:
        """Logits after a token that was guessed, whose keys and values count from now on."""
        fault = _accept(self.lanes.of(work.sequence.lane).cache, work)
        return fault or self._ahead[work.sequence].pop(0)

    def _chosen(self, parts: list[tuple[Work, Tensor | Exception | None]]) -> Results:
        """The tokens of all that write."""
        if self._pool is None or sum(work.writes for work, _ in parts) < FEW_ROWS:
            return [self._choose(*part) for part in parts]
        return list(self._pool.map(lambda part: self._choose(*part), parts))

    def _choose(self, work: Work, logits_V: Tensor | Exception | None) -> tuple[Work, Result]:
        """The token of one work, if it writes; several threads may be at this at once, for different sequences."""
        try:
            return work, None if logits_V is None else self._sample(work.sequence, logits_V)
        except Exception as error:
            return work, _as_error(error, "choosing a token")

    def _logits(self, network: Network, hidden_TD: Tensor, rows: list[int]) -> list[Tensor | Exception]:
        """Logits of each of these rows, or what went wrong with it."""
        if not rows:
            return []
        try:
            return list(network.logits(hidden_TD if len(rows) == hidden_TD.shape[0] else hidden_TD[rows]).unbind())
        except Exception as error:
            if len(rows) == 1:
                return [error]
        return [one for row in rows for one in self._logits(network, hidden_TD[row : row + 1], [0])]

    def _sample(self, sequence: Sequence, logits_V: Tensor | Exception) -> Token:
        if isinstance(logits_V, Exception):
            raise logits_V
        request = sequence.request
        grammar = request.grammar
        sampled = sample(
            logits_V,
            request.params,
            sequence.seen.ids if request.params.repetition_penalty != 1 else (),
            self._generator(sequence),
            output=sequence.counts,
            mask=None if grammar is None else grammar.mask(),
            end_ids=request.stop_ids,
        )
        if grammar is not None:
            grammar.take(sampled.token_id)
        ends = grammar is not None and grammar.finished
        return Token(sampled.token_id, sampled.logprob, tuple(sampled.top), ends)

    def _score(self, network: Network, work: Work, hidden_CD: Tensor) -> Exception | None:
        """Add the log-probabilities of the prompt tokens that follow each token of a chunk, if asked for."""
        sequence = work.sequence
        prompt, first, n_top = sequence.request.prompt_ids, sequence.n_read, sequence.request.prompt_logprobs
        if n_top is None:
            return None
        scored: list[Token | None] = [] if first else [None]
        wanted = prompt[first + 1 : first + 1 + work.n_tokens]
        try:
            for start in range(0, len(wanted), HEAD_ROWS):
                logits_NV = network.logits(hidden_CD[start : min(start + HEAD_ROWS, len(wanted))])
                scored += _scores(logits_NV, wanted[start : start + HEAD_ROWS], n_top)
        except Exception as error:
            return error
        sequence.prompt_logprobs += scored
        return None

    def _generator(self, sequence: Sequence) -> torch.Generator:
        if sequence not in self._generators:
            self._generators[sequence] = new_generator(sequence.request.params)
        return self._generators[sequence]

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence that has ended."""
        self._generators.pop(sequence, None)
        self._ahead.pop(sequence, None)


def _batches(works: list[Work], network: Network) -> list[list[Work]]:
    """Works that share a forward."""
    if network.independent:
        return [works] if works else []
    writing = [work for work in works if not work.sequence.reading]
    together: list[list[Work]] = []
    n_rows = MAX_WRITERS
    for work in writing:
        if n_rows + work.n_rows > MAX_WRITERS:
            together.append([])
            n_rows = 0
        together[-1].append(work)
        n_rows += work.n_rows
    return together + [[work] for work in works if work.sequence.reading]


def _empty_rows(works: list[Work], cache: KVCache) -> None:
    """Where windows overlap, each reading begins in an empty row."""
    for work in works:
        if work.sequence.request.held is not None and not work.sequence.position and cache.lengths[_row(work.sequence)]:
            cache.wipe(_row(work.sequence))


def _pack(works: list[Work], cache: KVCache) -> Batch:
    return Batch.pack(
        [[*work.sequence.next_tokens(work.n_tokens), *work.drafts] for work in works],
        [work.sequence.position for work in works],
        [_row(work.sequence) for work in works],
        **_flags(works),
        drafted=[bool(work.drafts) for work in works],
        device=cache.device,
    )


def _flags(works: list[Work]) -> dict[str, list[list[bool]] | None]:
    """Which tokens of each work are pinned, and which are global; None where no request has any."""
    requests = [work.sequence.request for work in works]
    pinned = is_global = None
    if any(one.pins for one in requests):
        pinned = [work.sequence.next_flags(work.n_tokens) + [False] * len(work.drafts) for work in works]
    if any(one.seers for one in requests):
        is_global = [work.sequence.next_seers(work.n_tokens) + [False] * len(work.drafts) for work in works]
    return {"pinned": pinned, "is_global": is_global}


def _note_recalled(cache: KVCache, work: Work) -> None:
    """Keep what was brought back for the token that is written now, if asked for: it changes with the next ones."""
    sequence = work.sequence
    if not work.writes or not sequence.request.audits or cache.recall is None:
        return
    length = cache.lengths[_row(sequence)]
    shown = cache.recall.shown(_row(sequence), length - 1, length)
    sequence.recalled = (sequence.recalled[0] if sequence.output_ids else shown), shown


def _accept(cache: KVCache, work: Work) -> Exception | None:
    """Commit the next token of a row's guesses; what went wrong, if anything did."""
    try:
        cache.accept(_row(work.sequence))
    except Exception as error:
        return error
    return None


def _scores(logits_NV: Tensor, wanted: Many[int], n_top: int) -> list[Token]:
    """Each token with its log-probability in its row, and the likeliest of that row."""
    scores_NV = logits_NV.float().log_softmax(-1)
    chosen_N = scores_NV.gather(1, torch.tensor(list(wanted), device=scores_NV.device)[:, None]).squeeze(1).tolist()
    if any(math.isnan(score) for score in chosen_N):
        raise NumericalError("the model's logits hold NaN: its weights are broken, or its dtype overflowed")
    top_NK, ids_NK = scores_NV.topk(n_top, -1) if n_top else (scores_NV[:, :0], scores_NV[:, :0])
    return [
        Token(token_id, chosen, tuple(zip(map(int, ids), tops, strict=True)))
        for token_id, chosen, ids, tops in zip(wanted, chosen_N, ids_NK.tolist(), top_NK.tolist(), strict=True)
    ]


def _as_error(error: Exception, doing: str) -> SashError:
    """What ended one request, as an error that its caller can be told."""
    if isinstance(error, SashError):
        return error
    logger.error("a request failed while %s", doing, exc_info=error)
    told = SashError(f"the request failed while {doing}: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


def _row(sequence: Sequence) -> int:
    if sequence.row is None:
        raise SashError("a sequence was scheduled before it had a cache row")
    return sequence.row
