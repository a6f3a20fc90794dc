"""LM: the one object a user holds. Load it, read with it, write with it, ask it for numbers.

Shape suffixes: T tokens, D dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Many
from typing import Any, Literal

import torch
from torch import Tensor

from sash.answer import Answer
from sash.completion import Completion
from sash.conversation import Conversation
from sash.engine.engine import Engine
from sash.engine.request import Request
from sash.errors import EmptyPromptError, UsageError
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.packed import Network
from sash.network.sizing import check_kv, kv_numbers
from sash.sampling import SamplingParams
from sash.session import Session, Stream, check_ids
from sash.text.tokenizer import Tokenizer

Prompt = str | list[int]

HEAD_ROWS = 128
"""Tokens whose logits are held at once where only a few of them are wanted: 128 x 262,144 x 4 bytes are 128 MiB."""


class LM:
    """A decoder language model with its tokenizer.

    Attributes:
        config: what the network is, any forced window and pins included.
        decoder: the network.
        tokenizer: text to ids and back.
        name: what it was loaded as.
        chunk: tokens of a prompt that are read at once.
        kv: what keys and values are kept as: "auto" (as they are computed), "bf16" or "int8".
    """

    def __init__(
        self, decoder: Network, tokenizer: Tokenizer, *, name: str = "", chunk: int = 512, kv: str = "auto"
    ) -> None:
        if chunk < 1:
            raise UsageError(f"a chunk is 1 token or more; got {chunk}")
        check_kv(kv)
        self.config: ModelConfig = decoder.config
        self.decoder, self.tokenizer, self.name, self.chunk, self.kv = decoder, tokenizer, name, chunk, kv

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

    def cache(self, n_rows: int = 1, kv: str | None = None) -> KVCache:
        """An empty rolling buffer cache for `n_rows` sequences; `kv` is the model's own unless told.

        Raises:
            UsageError: no rows, or a `kv` that is not known.
            DoesNotFitError: there is no memory for it.
        """
        return KVCache(self.config, n_rows, self.dtype, self.device, self.kv if kv is None else kv)

    def with_window(self, window: int | Literal["full"] | None = None, pins: int = 0) -> LM:
        """This model over the same weights, with a forced window and pins; see `ModelConfig.with_window`.

        Raises:
            WindowError, PinsError: a window or pins that cannot be.
        """
        config = self.config.with_window(window, pins)
        decoder = self.decoder.with_config(config)
        return LM(decoder, self.tokenizer, name=self.name, chunk=self.chunk, kv=self.kv)

    # Reading: numbers about a text.

    def hidden(self, ids: list[int], chunk: int | None = 512) -> Iterator[Tensor]:
        """Hidden states of `ids`, chunk by chunk, each [C, D], read through the rolling buffer.

        `chunk=None` reads all of it in one forward; without a cache, unless `kv` says that one rounds keys and values,
        which belongs to the result. The result does not depend on `chunk`.

        Raises:
            EmptyPromptError: no tokens.
            UsageError: a token id or chunk that cannot be.
        """
        if not ids:
            raise EmptyPromptError("there are no tokens to read")
        if chunk is not None and chunk < 1:
            raise UsageError(f"a chunk is 1 token or more, or None for one forward without a cache; got {chunk}")
        check_ids(ids, self.config.vocab_size)
        with torch.inference_mode():
            if chunk is None and self.kv_dtype == _name(self.dtype):
                yield self.decoder(Batch.pack([ids], device=self.device))
                return
            chunk = chunk or len(ids)
            cache = self.cache()
            row = cache.allocate()
            for start in range(0, len(ids), chunk):
                batch = Batch.pack([ids[start : start + chunk]], [start], [row], device=self.device)
                yield self.decoder(batch, cache)

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
        scores: list[Tensor] = []
        start = 0
        for hidden_CD in self.hidden(ids, chunk):
            for rows_ND in torch.split(hidden_CD, HEAD_ROWS):
                next_N = wanted[start : start + len(rows_ND)]
                if len(next_N):
                    logits_NV = self._logits(rows_ND[: len(next_N)])
                    chosen_N = logits_NV.gather(1, next_N.to(logits_NV.device)[:, None]).squeeze(1)
                    scores.append((chosen_N - logits_NV.logsumexp(-1)).cpu())
                start += len(rows_ND)
            if progress is not None:
                progress(len(hidden_CD))
        return torch.cat(scores) if scores else torch.empty(0)

    @torch.inference_mode()
    def _logits(self, hidden_ND: Tensor) -> Tensor:
        return self.decoder.logits(hidden_ND)

    # Writing.

    def generate(self, prompt: Prompt | list[Prompt], **sampling: Any) -> Any:
        """Continue a prompt, or several at once.

        Args:
            prompt: text, token ids, or a list of such; texts get the model's begin-of-text id.
            **sampling: fields of `SamplingParams`: max_tokens, temperature, top_p, top_k, min_p, repetition_penalty,
                seed, stop, logprobs, ignore_eos.

        Returns:
            A `Completion`, or a list of them in the order of the prompts.

        Raises:
            EmptyPromptError: a prompt of no tokens.
            UsageError: a sampling field or token id that cannot be.
        """
        several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
        prompts: list[Prompt] = list(prompt) if several else [prompt]  # type: ignore[list-item,arg-type]
        completions = self._complete([self._encode(one) for one in prompts], SamplingParams(**_as_tuple(sampling)))
        return completions if several else completions[0]

    def _complete(
        self, encoded: list[list[int]], params: SamplingParams, *, continues: bool = True
    ) -> list[Completion]:
        if not encoded:
            return []
        cache = self.cache(min(len(encoded), MAX_SEQUENCES))
        engine = Engine(self.decoder, cache, chunk=self.chunk)
        answers = {}
        for ids in encoded:
            request = Request(prompt_ids=tuple(ids), params=params, stop_ids=self.tokenizer.eos_ids)
            sequence = engine.submit(request)
            answer = Answer(sequence, self.tokenizer, cache, stop=params.stop, continues=continues)
            answers[id(sequence)] = (sequence, answer)
        while not engine.idle:
            for event in engine.step():
                sequence, answer = answers[id(event.sequence)]
                answer.take(event)
                if answer.stopped:
                    engine.cancel(sequence, "stop")
        return [answer.completion() for _, answer in answers.values()]

    def stream(self, prompt: Prompt, **sampling: Any) -> Stream:
        """Continue a prompt piece by piece; the stream's `completion` holds the whole afterwards."""
        session = self.session()
        session.feed(self._encode(prompt))
        return session.stream(SamplingParams(**_as_tuple(sampling)))

    def chat(self, messages: Many[Mapping[str, str]], *, safe_prompt: bool = False, **sampling: Any) -> Completion:
        """Answer the last of `messages`, each a mapping with "role" and "content".

        Args:
            messages: the conversation so far.
            safe_prompt: put the guardrail of the Mistral 7B paper (section 5.1) in front.
            **sampling: fields of `SamplingParams`.

        Raises:
            TokenizerError: the model has no chat template, or it refuses the messages.
        """
        ids = self.tokenizer.encode_chat(messages, safe_prompt=safe_prompt)
        return self._complete([ids], SamplingParams(**_as_tuple(sampling)), continues=False)[0]

    def session(self) -> Session:
        """An open rolling buffer: feed it forever, let it write at any point."""
        return Session(self.decoder, self.tokenizer, self.cache(), chunk=self.chunk)

    def conversation(self, system: str | None = None, *, safe_prompt: bool = False) -> Conversation:
        """A chat that reads only what is new in each turn."""
        return Conversation(self.session, self.tokenizer, system=system, safe_prompt=safe_prompt)

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids or (isinstance(prompt, str) and not prompt):
            raise EmptyPromptError("the prompt has no tokens: give some text to read")
        check_ids(ids, self.config.vocab_size)
        return ids


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


MAX_SEQUENCES = 16
"""Prompts of one call that run at once; more wait for a row."""


def _as_tuple(sampling: dict[str, Any]) -> dict[str, Any]:
    stop = sampling.get("stop")
    if stop is not None:
        sampling = {**sampling, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    unknown = set(sampling) - set(SamplingParams.__dataclass_fields__)
    if unknown:
        known = ", ".join(sorted(SamplingParams.__dataclass_fields__))
        raise UsageError(f"{sorted(unknown)[0]!r} is not a sampling field: {known} are")
    return sampling
