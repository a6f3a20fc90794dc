"""Reading: a network, its caches, and numbers about a text.

Shape suffixes: T tokens, C tokens of a chunk, N a few of them, D dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sash.engine.overlap import Held, Overlap
from sash.errors import EmptyPromptError, UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.packed import Network
from sash.network.recall_points import RecallSettings
from sash.network.sizing import check_kv, kv_numbers
from sash.session_state import check_ids
from sash.text.tokenizer import Tokenizer

HEAD_ROWS = 128
"""Tokens whose logits are held at once where only a few of them are wanted: 128 x 262,144 x 4 bytes are 128 MiB."""


class Reader:
    """A decoder language model with its tokenizer.

    Attributes:
        config: what the network is, any forced window and pins included.
        decoder: the network.
        tokenizer: text to ids and back.
        name: what it was loaded as.
        chunk: tokens of a prompt that are read at once.
        kv: what keys and values are kept as: "auto" (as they are computed), "bf16" or "int8".
        overlap: how it reads by overlapping windows; None where windows roll.
        recall: how what slid out of the window is brought back; None for not at all. See `LM.with_recall`.
    """

    recall: RecallSettings | None = None

    def __init__(
        self,
        decoder: Network,
        tokenizer: Tokenizer,
        *,
        name: str = "",
        chunk: int = 512,
        kv: str = "auto",
        overlap: Overlap | None = None,
    ) -> None:
        if chunk < 1:
            raise UsageError(f"a chunk is 1 token or more; got {chunk}")
        check_kv(kv)
        self.config: ModelConfig = decoder.config
        self.decoder, self.tokenizer, self.name, self.chunk, self.kv = decoder, tokenizer, name, chunk, kv
        self.overlap = overlap

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.decoder.dtype

    @property
    def kv_dtype(self) -> str:
        """What its caches keep: the name of a dtype; int8 with a scale a token and head."""
        return kv_numbers(self.kv, _name(self.dtype))

    def cache(self, n_rows: int = 1, kv: str | None = None, *, log: bool | int = False) -> KVCache:
        """An empty rolling buffer cache for `n_rows` sequences; `kv` is the model's own unless told.

        `log` keeps what leaves the window, all of it or so many bytes of it; see `sash.network.cache.KVCache`.

        Raises:
            UsageError: no rows, or a `kv` that is not known.
            DoesNotFitError: there is no memory for it.
        """
        return KVCache(
            self.config, n_rows, self.dtype, self.device, self.kv if kv is None else kv, log=log, recall=self.recall
        )

    def hidden(self, ids: list[int], chunk: int | None = 512) -> Iterator[Tensor]:
        """Hidden states of `ids`, chunk by chunk, each [C, D], read through the rolling buffer.

        `chunk=None` reads all of it in one forward; without a cache, unless `kv` says that one rounds keys and values,
        which belongs to the result, or summaries do. The result does not depend on `chunk`. Where windows overlap,
        tokens that are read again have no second state.

        Raises:
            EmptyPromptError: no tokens.
            UsageError: a token id or chunk that cannot be.
        """
        if not ids:
            raise EmptyPromptError("there are no tokens to read")
        if chunk is not None and chunk < 1:
            raise UsageError(f"a chunk is 1 token or more, or None for one forward without a cache; got {chunk}")
        check_ids(ids, self.config.vocab_size)
        if self.overlap is not None:
            yield from self._hidden_again(Held(self.overlap, self.tokenizer.bos_id), ids, chunk or self.overlap.window)
            return
        with torch.inference_mode():
            if chunk is None and self.kv_dtype == _name(self.dtype) and self.config.hierarchy is None:
                yield self.decoder(Batch.pack([ids], device=self.device))
                return
            chunk = chunk or len(ids)
            cache = self.cache()
            row = cache.allocate()
            for start in range(0, len(ids), chunk):
                batch = Batch.pack([ids[start : start + chunk]], [start], [row], device=self.device)
                yield self.decoder(batch, cache)

    @torch.inference_mode()
    def _hidden_again(self, held: Held, ids: list[int], chunk: int) -> Iterator[Tensor]:
        """`hidden` by overlapping windows."""
        cache = self.cache()
        row = cache.allocate()
        waiting = [(token_id, False) for token_id in ids]
        done = 0
        while done < len(ids):
            held.settle(waiting[done : done + 1])  # it takes none: everything new is wanted
            if not held.row:
                cache.wipe(row)
            again = [token.token_id for token in held.again]
            count = min(chunk, held.room, len(again) + len(ids) - done)
            part = [*again, *ids[done : done + count]][:count]
            hidden_CD = self.decoder(Batch.pack([part], [len(held.row)], [row], device=self.device), cache)
            fresh = held.read(count, waiting[done : done + count])
            done += fresh
            if fresh:
                yield hidden_CD[count - fresh :]

    def logits(self, ids: list[int], chunk: int | None = 512) -> Tensor:
        """Logits after each token of `ids`, [T, V] float32; see `hidden` for `chunk`."""
        out_TV = torch.empty(len(ids), self.config.vocab_size)
        start = 0
        for hidden_CD in self.hidden(ids, chunk):
            for rows_ND in torch.split(hidden_CD, HEAD_ROWS):
                out_TV[start : start + len(rows_ND)] = self._logits(rows_ND)
                start += len(rows_ND)
        return out_TV

    def score(self, ids: list[int], chunk: int | None = 512, progress: Callable[[int], None] | None = None) -> Tensor:
        """Logarithmic probability of each token after those before it, [T - 1] float32: the first has none.

        Args:
            ids: token ids.
            chunk: see `hidden`.
            progress: called with the number of tokens read after each chunk.
        """
        wanted = torch.tensor(ids[1:], dtype=torch.int64)
        # Made at once: small tensors kept among freed logits of many megabytes would leave holes that nothing fits.
        scores = torch.empty(len(wanted))
        start = 0
        for hidden_CD in self.hidden(ids, chunk):
            for rows_ND in torch.split(hidden_CD, HEAD_ROWS):
                next_N = wanted[start : start + len(rows_ND)]
                if len(next_N):
                    logits_NV = self._logits(rows_ND[: len(next_N)])
                    chosen_N = logits_NV.gather(1, next_N.to(logits_NV.device)[:, None]).squeeze(1)
                    scores[start : start + len(next_N)] = chosen_N - logits_NV.logsumexp(-1)
                start += len(rows_ND)
            if progress is not None:
                progress(len(hidden_CD))
        return scores

    @torch.inference_mode()
    def _logits(self, hidden_ND: Tensor) -> Tensor:
        return self.decoder.logits(hidden_ND)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
