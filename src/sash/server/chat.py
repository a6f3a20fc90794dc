"""POST /v1/chat/completions."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sash.engine.request import Token
from sash.server.account import chat_logprobs
from sash.server.conversation import as_messages
from sash.server.errors import bad_field
from sash.server.formats import answer_format, open_grammars
from sash.server.place import Place
from sash.server.plan import Answer, Plan
from sash.server.planning import ignored_header, read, room_for
from sash.server.prompt import Looks, Prompt
from sash.server.protocol import ChatRequest
from sash.server.tools import Calling, call_to_json, read_tools
from sash.server.window import frame
from sash.server.writing import Part
from sash.text.grammar_source import GrammarSource
from sash.text.tokenizer import Tokenizer


class ChatShape:
    """How a chat's answers are written down.

    Attributes:
        opening_text: what every answer begins with, given by the request.
    """

    prefix, whole_kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, n_top: int | None, opening_text: str = "") -> None:
        """`n_top` alternatives of each token are reported; None for no log-probabilities."""
        self._tokenizer, self._n_top, self.opening_text = tokenizer, n_top, opening_text
        self._n_calls: Counter[int] = Counter()

    def opening(self, index: int) -> dict[str, Any]:
        """The role, and what the request itself began the answer with."""
        delta = {"role": "assistant", "content": self.opening_text}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def pieces(self, part: Part) -> list[dict[str, Any]]:
        """The text of a step; the reason for the end stands in a choice of its own, as OpenAI has it."""
        choices = []
        logprobs = self._logprobs(part.tokens)
        for call in part.calls:
            delta: dict[str, Any] = {"tool_calls": [{"index": self._n_calls[part.index], **call_to_json(call)}]}
            self._n_calls[part.index] += 1
            choices.append({"index": part.index, "delta": delta, "logprobs": None, "finish_reason": None})
        if part.text or part.tokens:
            delta = {"content": part.text}
            choices.append({"index": part.index, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        if part.ended is not None:
            choices.append({"index": part.index, "delta": {}, "logprobs": None, "finish_reason": part.reason})
        return choices

    def choice(self, answer: Answer) -> dict[str, Any]:
        """A whole answer."""
        text = self.opening_text + answer.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if answer.calls:
            message["content"] = text or None
            message["tool_calls"] = [call_to_json(call) for call in answer.calls]
        logprobs = self._logprobs(answer.tokens)
        return {"index": answer.index, "message": message, "logprobs": logprobs, "finish_reason": answer.reason}

    def _logprobs(self, tokens: list[Token] | tuple[Token, ...]) -> dict[str, Any] | None:
        return None if self._n_top is None else chat_logprobs(self._tokenizer, tokens, self._n_top)


def plan_chat(place: Place, raw: bytes) -> tuple[Plan, ChatShape]:
    """What a chat request comes to.

    Raises:
        ApiError: a body that cannot be.
        SashError: messages, a window or sampling that cannot be.
    """
    body = read(ChatRequest, raw)
    place.check_model(body.model)
    headers = ignored_header(place, body)
    lm = place.lm
    messages = as_messages(body.messages, place.settings.max_messages)
    continues = _continues(body)
    if body.wanted_tokens == 0:
        raise bad_field("max_tokens must be 1 or more", "max_tokens")
    calling = read_tools(lm.tokenizer, body)
    options = dict(calling.options)
    if body.safe_prompt:
        options["safe_prompt"] = True
        headers["x-sash-safe-prompt"] = "1"
    ids = list(lm.tokenizer.encode_chat(messages, continue_final=continues, **options))
    prompt = Prompt(tokenizer=lm.tokenizer, ids=ids, messages=messages, options=options)
    seen = frame(lm.config, body.window, prompt, body.wanted_tokens)
    max_tokens = room_for(place, body, seen, [ids], place.settings.default_max_tokens)
    n_top = _n_top(body)
    source = _source(body, calling)
    plan = Plan(
        prompts=(tuple(ids),),
        params=body.params(max_tokens, n_top),
        frame=seen,
        looks=Looks.of(body.window, prompt),
        **body.delivery,
        continues=continues,
        grammars=open_grammars(lm.tokenizer, source, body.n or 1, continues=continues),
        calling=calling,
        session=body.session,
        headers=headers,
    )
    begun = messages[-1]["content"] if body.messages[-1].prefix else ""
    return plan, ChatShape(lm.tokenizer, n_top, begun)


def _continues(body: ChatRequest) -> bool:
    """Whether the answer goes on the last message."""
    for number, message in enumerate(body.messages, start=1):
        if message.prefix and (number < len(body.messages) or message.role != "assistant"):
            raise bad_field("prefix belongs to the last message, and that must be the assistant's", "messages")
    return bool(body.messages[-1].prefix or body.continue_final_message)


def _n_top(body: ChatRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise bad_field("top_logprobs needs logprobs: true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _source(body: ChatRequest, calling: Calling) -> GrammarSource | None:
    """The grammar of the answer: that of its calls where those are forced, else that of its form."""
    form = answer_format(body.response_format)
    if form is not None and calling.names and not calling.forced:
        message = "response_format and tools that may be called exclude each other: set tool_choice to none or required"
        raise bad_field(message, "response_format")
    return calling.source if calling.source is not None else form
