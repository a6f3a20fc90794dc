"""POST /v1/fim/completions: fill the gap between a prompt and a suffix (Mistral's Codestral API)."""

from __future__ import annotations

from sash.server.chat import ChatShape
from sash.server.errors import ApiError, bad_field
from sash.server.place import Place
from sash.server.plan import Plan
from sash.server.planning import ignored_header, read, room_for
from sash.server.prompt import Looks, Prompt
from sash.server.protocol import FimRequest
from sash.server.window import frame
from sash.text.tokenizer import Tokenizer


def plan_fim(place: Place, raw: bytes) -> tuple[Plan, ChatShape]:
    """What a request to fill a gap comes to.

    Raises:
        ApiError: a body that cannot be, or a model that was not made for this.
        SashError: a prompt, window or sampling that cannot be.
    """
    body = read(FimRequest, raw)
    place.check_model(body.model)
    headers = ignored_header(place, body)
    lm = place.lm
    if body.max_tokens == 0:
        raise bad_field("max_tokens must be 1 or more", "max_tokens")
    ids = encode_fim(lm.tokenizer, body.prompt, body.suffix or "")
    prompt = Prompt(tokenizer=lm.tokenizer, ids=ids)
    seen = frame(lm.config, body.window, prompt, body.wanted_tokens)
    max_tokens = room_for(place, body, seen, [ids], place.settings.default_max_tokens)
    plan = Plan(
        prompts=(tuple(ids),),
        params=body.params(max_tokens, None),
        frame=seen,
        looks=Looks.of(body.window, prompt),
        **body.delivery,
        continues=True,
        headers=headers,
    )
    return plan, ChatShape(lm.tokenizer, None)


def encode_fim(tokenizer: Tokenizer, prompt: str, suffix: str) -> list[int]:
    """The ids of a text with a gap.

    Raises:
        ApiError: 400, the model was not made for this.
    """
    if not tokenizer.has_fim:
        message = "this model was not made to fill gaps: its tokenizer has no tokens for that"
        raise ApiError(400, message, code="unsupported_parameter", param="suffix")
    return tokenizer.encode_fim(prompt, suffix)
