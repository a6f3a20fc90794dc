"""Limits and defaults that every route which writes text shares. Runs on a thread of its own, not on the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from sash.server.errors import bad_field, from_validation, too_long
from sash.server.fields import Fields, SamplingFields, ignored
from sash.server.json_body import parse
from sash.server.place import Place
from sash.server.window import Frame

F = TypeVar("F", bound=Fields)

MAX_PROMPT_LOGPROBS = 1 << 20
"""Log-probabilities of prompts that one request may ask for, all alternatives counted."""


def read(kind: type[F], raw: bytes) -> F:
    """A body as its model.

    Raises:
        ApiError: 400.
    """
    try:
        return kind.model_validate(parse(raw))
    except ValidationError as error:
        raise from_validation(error) from None


def ignored_header(place: Place, body: Fields) -> dict[str, str]:
    """The header that names fields which nothing reads; nothing where there are none.

    Raises:
        ApiError: 400, there are some, and the server is strict.
    """
    names = ignored(body, place.settings.strict_fields)
    return {"x-sash-ignored": names} if names else {}


def room_for(place: Place, body: SamplingFields, frame: Frame, prompts: Sequence[Sequence[int]], default: int) -> int:
    """Tokens that each answer may have.

    Raises:
        ApiError: 400, more answers or tokens than one request may ask for.
            Or a model that sees everything was never trained on so long a prompt.
    """
    n_answers = (body.n or 1) * len(prompts)
    if n_answers > place.settings.max_choices:
        raise bad_field(f"one request may ask for {place.settings.max_choices} answers; this one for {n_answers}", "n")
    wanted = body.wanted_tokens
    max_tokens = max(1, default if wanted is None else wanted)
    left = _left(frame, max(map(len, prompts)), body)
    if left is not None:
        max_tokens = min(max_tokens, left)
    most = place.settings.max_cost // n_answers
    if max_tokens > most and wanted is not None:
        message = f"max_tokens is {max_tokens} for each of {n_answers} answers; here it is {most} at most"
        raise bad_field(message, "max_tokens")
    return min(max_tokens, most)


def _left(frame: Frame, n_prompt: int, body: SamplingFields) -> int | None:
    """Tokens until the end of what the model was trained on; None where it slides, or was told to."""
    config = frame.config
    slides = all(window is not None for window in config.windows)
    told = body.window is not None and body.window.overflow == "slide"
    if slides or told or not config.context:
        return None
    if n_prompt >= config.context:
        message = (
            f"this model was trained on {config.context} tokens and the prompt has {n_prompt}: shorten it, or send"
            ' "window": {"size": N} to read it with a sliding window'
        )
        raise too_long(message, n_prompt, config.context)
    return config.context - n_prompt


def check_prompt_logprobs(prompts: Sequence[Sequence[int]], n_top: int) -> None:
    """Refuse more log-probabilities of prompts than memory is worth.

    Raises:
        ApiError: 400.
    """
    count = sum(map(len, prompts)) * (1 + n_top)
    if count > MAX_PROMPT_LOGPROBS:
        message = f"echo with logprobs comes to {count} log-probabilities; {MAX_PROMPT_LOGPROBS} at most: shorten it"
        raise bad_field(message, "logprobs")
