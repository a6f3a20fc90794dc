"""POST /tokenize, /detokenize and /v1/window: what the model will read, and what of it the next token can see."""

from __future__ import annotations

from typing import Any

from sash.server.conversation import as_messages
from sash.server.errors import bad_field
from sash.server.place import Place
from sash.server.planning import ignored_header, read
from sash.server.prompt import Looks, Prompt
from sash.server.protocol import DetokenizeRequest, TokenizeRequest, WindowRequest
from sash.server.tools import plain_tools
from sash.server.window import frame

Answer = tuple[dict[str, Any], dict[str, str]]
"""A body and further headers."""


def tokenize(place: Place, raw: bytes) -> Answer:
    """The ids of a text or of a conversation."""
    body = read(TokenizeRequest, raw)
    place.check_model(body.model)
    headers = ignored_header(place, body)
    lm = place.lm
    if (body.prompt is None) == (body.messages is None):
        raise bad_field("give either prompt or messages", "prompt")
    if body.messages is not None:
        ids = lm.tokenizer.encode_chat(as_messages(body.messages, place.settings.max_messages))
    else:
        ids = lm.tokenizer.encode(body.prompt or "", bos=body.add_special_tokens is not False)
    answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": lm.config.context or None}
    if body.return_token_strs:
        answer["token_strs"] = [lm.tokenizer.token_text(token_id) for token_id in ids]
    return answer, headers


def detokenize(place: Place, raw: bytes) -> Answer:
    """The text of some ids."""
    body = read(DetokenizeRequest, raw)
    place.check_model(body.model)
    headers = ignored_header(place, body)
    tokenizer = place.lm.tokenizer
    text = tokenizer.decode(body.tokens, skip_control=False)
    return {"prompt": text}, headers


def window(place: Place, raw: bytes) -> Answer:
    """How much of each message the next token could see, were an answer to begin now."""
    body = read(WindowRequest, raw)
    place.check_model(body.model)
    headers = ignored_header(place, body)
    lm = place.lm
    messages = as_messages(body.messages, place.settings.max_messages)
    options: dict[str, Any] = {"safe_prompt": True} if body.safe_prompt else {}
    if body.tools:
        options["tools"] = plain_tools(body.tools)
    ids = lm.tokenizer.encode_chat(messages, **options)
    prompt = Prompt(tokenizer=lm.tokenizer, ids=ids, messages=messages, options=options)
    seen = frame(lm.config, body.window, prompt, 0)
    sight = seen.sight(len(ids))
    size = seen.config.window
    answer = {
        "n_tokens": len(ids),
        "size": size,
        "capacity": {
            "slots": None if size is None else size + max(pattern.pins for pattern in seen.config.patterns),
            "used": len(ids) if size is None else min(len(ids), size) + sight.counts()["pinned"],
            "pinned": seen.n_pins(len(ids)),
        },
        "messages": [
            {"index": index, "start": span.start, "stop": span.stop, **sight.counts(span.start, span.stop)}
            for index, span in enumerate(prompt.spans)
        ],
        **Looks.of(body.window, prompt).account(seen.config, seen.pins, seen.seers, 0),
    }
    return answer, headers
