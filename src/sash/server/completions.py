"""POST /v1/completions: text goes on, and prompts can be echoed with the log-probabilities of their tokens."""

from __future__ import annotations

from typing import Any

from sash.engine.request import Token
from sash.errors import EmptyPromptError
from sash.sampling import SamplingParams
from sash.server.account import shown_length, text_logprobs
from sash.server.errors import ApiError, bad_field
from sash.server.fim import encode_fim
from sash.server.place import Place
from sash.server.plan import Answer, Plan
from sash.server.planning import check_prompt_logprobs, ignored_header, read, room_for
from sash.server.prompt import Looks, Prompt, refuse_rules
from sash.server.protocol import CompletionRequest
from sash.server.window import frame
from sash.server.writing import Part
from sash.session_state import check_ids
from sash.text.tokenizer import Tokenizer


class TextShape:
    """How completions are written down."""

    prefix, whole_kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        echoes: tuple[str, ...] = (),
        n: int = 1,
        logprobs: bool = False,
        writes: bool = True,
    ) -> None:
        """`echoes` are the prompts' texts where they are repeated; without `writes` nothing else is."""
        self._tokenizer, self._echoes, self._n, self._wants, self._writes = tokenizer, echoes, n, logprobs, writes
        self._offsets: dict[int, int] = {}

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._n] if self._echoes else ""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Nothing: the prompt comes with the first part, once its log-probabilities are known."""
        return None

    def pieces(self, part: Part) -> list[dict[str, Any]]:
        """The text of a step, behind the prompt's if that is to be repeated."""
        tokens, text = (part.tokens, part.text) if self._writes else ((), "")
        if not (text or tokens or part.ended is not None):
            return []
        first = part.index not in self._offsets
        offset = self._offsets.setdefault(part.index, len(self._echo(part.index)))
        self._offsets[part.index] += sum(shown_length(self._tokenizer, token.token_id) for token in tokens)
        logprobs = None
        if self._wants:
            logprobs = text_logprobs(self._tokenizer, [(token.token_id, token) for token in tokens], offset)
        echo = self._echo(part.index) if first else ""
        reason = (part.reason if self._writes else "length") if part.ended is not None else None
        return [{"index": part.index, "text": echo + text, "logprobs": logprobs, "finish_reason": reason}]

    def choice(self, answer: Answer) -> dict[str, Any]:
        """A whole answer."""
        index, sequence = answer.index, answer.sequence
        text, tokens, reason = (answer.text, answer.tokens, answer.reason) if self._writes else ("", [], "length")
        known: list[tuple[int, Token | None]] = []
        if self._echoes:
            known += zip(sequence.request.prompt_ids, sequence.prompt_logprobs, strict=False)
        offset = 0 if known else len(self._echo(index))
        known += [(token.token_id, token) for token in tokens]
        logprobs = text_logprobs(self._tokenizer, known, offset) if self._wants else None
        return {"index": index, "text": self._echo(index) + text, "logprobs": logprobs, "finish_reason": reason}


def plan_completion(place: Place, raw: bytes) -> tuple[Plan, TextShape]:
    """What a completion request comes to.

    Raises:
        ApiError: a body that cannot be.
        SashError: a prompt, window or sampling that cannot be.
    """
    body = read(CompletionRequest, raw)
    place.check_model(body.model)
    headers = ignored_header(place, body)
    lm = place.lm
    _check(body)
    prompts = [tuple(ids) for ids in _prompts(lm.tokenizer, body)]
    for ids in prompts:
        check_ids(list(ids), lm.config.vocab_size)
    if len(prompts) > 1:
        refuse_rules(body.window)
    longest = Prompt(tokenizer=lm.tokenizer, ids=max(prompts, key=len))
    seen = frame(lm.config, body.window, longest, body.wanted_tokens)
    max_tokens = room_for(place, body, seen, prompts, SamplingParams().max_tokens)
    wants_prompt = bool(body.echo) and body.logprobs is not None
    if wants_prompt:
        check_prompt_logprobs(prompts, body.logprobs or 0)
    plan = Plan(
        prompts=tuple(prompts),
        params=body.params(max_tokens, body.logprobs),
        frame=seen,
        looks=Looks.of(body.window, longest),
        **body.delivery,
        continues=True,
        prompt_logprobs=body.logprobs if wants_prompt else None,
        headers=headers,
    )
    shape = TextShape(
        lm.tokenizer,
        echoes=tuple(_text_of(lm.tokenizer, ids) for ids in prompts) if body.echo else (),
        n=body.n or 1,
        logprobs=body.logprobs is not None,
        writes=body.max_tokens != 0,
    )
    return plan, shape


def _check(body: CompletionRequest) -> None:
    if body.suffix and not isinstance(body.prompt, str):
        raise bad_field("suffix stands behind one text: give prompt as a string", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError(
            400, "best_of is not supported: ask for n answers", code="unsupported_parameter", param="best_of"
        )
    if body.max_tokens == 0 and not body.echo:
        raise bad_field("max_tokens must be 1 or more, or echo true", "max_tokens")
    if body.window is not None and body.window.pins and (body.window.pins.messages or body.window.pins.roles):
        raise bad_field("a text has no messages to pin: use window.pins.first", "window.pins")
    if body.echo and body.stream and body.logprobs is not None:
        raise bad_field("echo with logprobs cannot be streamed", "stream")


def _prompts(tokenizer: Tokenizer, body: CompletionRequest) -> list[list[int]]:
    """The prompts as ids, whichever of the four forms they came in."""
    prompt: Any = body.prompt
    if body.suffix:
        return [encode_fim(tokenizer, prompt, body.suffix)]
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    found: list[list[int]] = []
    for one in prompt if several else [prompt]:
        if isinstance(one, str):
            if not one:
                raise EmptyPromptError("the prompt has no tokens: give some text to read")
            found.append(tokenizer.encode(one))
        else:
            found.append(one)
    return found


def _text_of(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(ids)
