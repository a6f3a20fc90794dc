"""What an answer says of itself: tokens used, times, and what the model could see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sash.engine.request import Sequence as Running
from sash.engine.request import Token
from sash.server.metrics import times
from sash.server.window import Frame
from sash.text.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""What OpenAI says where a probability is 0, for JSON has no infinity."""


def to_json(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def usage(sequences: Mapping[int, Running], n: int) -> dict[str, Any]:
    """Tokens of all answers; a prompt that has `n` answers counts once."""
    prompts = [sequence for index, sequence in sequences.items() if index % n == 0]
    n_prompt = sum(len(sequence.request.prompt_ids) for sequence in prompts)
    n_output = sum(len(sequence.output_ids) for sequence in sequences.values())
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_output,
        "total_tokens": n_prompt + n_output,
        "prompt_tokens_details": {"cached_tokens": sum(sequence.n_reused for sequence in prompts)},
    }


def timings(sequence: Running) -> dict[str, Any]:
    """Milliseconds and speeds of one answer; the names are llama-server's."""
    arrived, admitted, first, finished = times(sequence)
    n_read = len(sequence.request.prompt_ids) - sequence.n_reused
    n_written = len(sequence.output_ids)
    reading, writing = first - admitted, finished - first
    return {
        "queue_ms": _ms(admitted - arrived),
        "prompt_n": n_read,
        "prompt_ms": _ms(reading),
        "prompt_per_second": _rate(n_read, reading),
        "predicted_n": n_written,
        "predicted_ms": _ms(writing),
        "predicted_per_second": _rate(n_written - 1, writing),
        "ttft_ms": _ms(first - arrived),
    }


def _ms(seconds: float) -> float:
    return round(1000 * max(0.0, seconds), 3)


def _rate(count: int, seconds: float) -> float:
    return round(max(0, count) / seconds, 3) if seconds > 0 else 0.0


def view(frame: Frame, sequence: Running) -> dict[str, Any]:
    """The `window` of one answer, as of its last token."""
    length = len(sequence.request.prompt_ids) + len(sequence.output_ids)
    return frame.account(length, sequence.reuse, sequence.n_reused)


def finite(logprob: float | None) -> float | None:
    """A log-probability that JSON can write; None where none was asked for."""
    if logprob is None:
        return None
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token], n_top: int) -> dict[str, Any]:
    """`logprobs` of a chat's choice."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {"token": tokenizer.token_text(token_id), "logprob": finite(logprob), "bytes": list(raw)}

    content = [
        {
            **entry(token.token_id, token.logprob),
            "top_logprobs": [entry(*pair) for pair in token.top[:n_top]],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, tokens: Sequence[tuple[int, Token | None]], offset: int) -> dict[str, Any]:
    """`logprobs` of a completion's choice: of each token its text, log-probability, alternatives and place in the text.

    Args:
        tokenizer: of the model.
        tokens: ids, with what was computed of each; None for the first of a prompt.
        offset: characters of the text before these tokens.
    """
    texts, values, tops, offsets = [], [], [], []
    for token_id, token in tokens:
        text = tokenizer.token_text(token_id)
        texts.append(text)
        values.append(None if token is None else finite(token.logprob))
        tops.append(None if token is None else _alternatives(tokenizer, token))
        offsets.append(offset)
        offset += shown_length(tokenizer, token_id)
    return {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def shown_length(tokenizer: Tokenizer, token_id: int) -> int:
    """Characters of a token in a text, where control tokens are not shown."""
    return 0 if token_id in tokenizer.control_ids else len(tokenizer.token_text(token_id))


def _alternatives(tokenizer: Tokenizer, token: Token) -> dict[str, float | None]:
    """Alternatives by their text; of two with the same text the likelier stays."""
    found: dict[str, float | None] = {}
    for token_id, logprob in token.top:
        found.setdefault(tokenizer.token_text(token_id), finite(logprob))
    return found
