"""Answers of a given form, and calls of functions, through the official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import mistral_common
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from openai import OpenAI
from pydantic import BaseModel

from sash.attention.pattern import AttentionPattern
from sash.lm import LM
from sash.loading import load_decoder
from sash.text.mistral import MistralTokenizer
from tests.cli.conftest import write_model
from tests.conftest import small_config, small_decoder
from tests.server.live import NAME, PATIENCE, Live, serving

TOKENIZER = "mistral_instruct_tokenizer_240323.model.v3"

HELLO: Any = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bath", "York"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Verdict(BaseModel):
    """What an answer has to be."""

    fine: bool
    colour: Literal["red", "blue"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    lm = load_decoder(write_model(tmp_path_factory.mktemp("models") / NAME))
    with serving(lm, max_rows=4) as live:
        yield live


@pytest.fixture
def openai_client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
def mistral_client(live: Live) -> Iterator[Mistral]:
    with Mistral(api_key="none", server_url=live.url) as client:
        yield client


def sampled(seed: int, **changes: Any) -> dict[str, Any]:
    return {"messages": HELLO, "model": NAME, "max_tokens": 400, "temperature": 1.0, **changes}


def test_an_answer_of_a_given_shape(openai_client: OpenAI):
    found = set()
    for seed in range(4):
        answer = openai_client.chat.completions.parse(**sampled(seed), seed=seed, response_format=Verdict)
        assert answer.choices[0].finish_reason == "stop"
        parsed = answer.choices[0].message.parsed
        assert isinstance(parsed, Verdict)
        found.add((parsed.fine, parsed.colour))
    assert len(found) > 1


def test_an_answer_of_a_given_shape_as_a_stream(openai_client: OpenAI):
    with openai_client.chat.completions.stream(**sampled(1), seed=1, response_format=Verdict) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Verdict)


def test_an_answer_of_a_given_shape_for_mistrals_client(mistral_client: Mistral):
    for seed in range(3):
        answer = mistral_client.chat.parse(response_format=Verdict, **sampled(seed), random_seed=seed)
        assert answer.choices is not None
        message = answer.choices[0].message
        assert message is not None
        assert isinstance(message.parsed, Verdict)


def test_any_json(openai_client: OpenAI):
    for seed in range(2):
        answer = openai_client.chat.completions.create(
            **sampled(seed, max_tokens=60), seed=seed, response_format={"type": "json_object"}
        )
        text = answer.choices[0].message.content or ""
        assert text.lstrip()[:1] == "{"
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


def arguments_of(call: Any) -> dict[str, Any]:
    found = call.function.arguments
    arguments: dict[str, Any] = json.loads(found) if isinstance(found, str) else found
    assert call.function.name == "weather"
    assert arguments["city"] in ("Bath", "York")
    assert arguments["days"] in (1, 2, 3)
    return arguments


@pytest.fixture(scope="module")
def mistral_live() -> Iterator[Live]:
    """Mistral's own tokenizer, with its formats for functions and for gaps, over random weights."""
    tokenizer = MistralTokenizer(Path(mistral_common.__file__).parent / "data" / TOKENIZER)
    config = small_config([AttentionPattern(window=256)], vocab_size=tokenizer.vocab_size)
    with serving(LM(small_decoder(config), tokenizer, chunk=64), max_rows=4, default_max_tokens=300) as live:
        yield live


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_function_is_called(mistral_live: Live, choice: Any):
    with OpenAI(base_url=f"{mistral_live.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        asked = sampled(0, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
        answer = client.chat.completions.create(**asked, seed=3)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        arguments_of(call)
        told = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        turns = [*HELLO, answer.choices[0].message.model_dump(exclude_none=True), told]
        after = client.chat.completions.create(model=NAME, messages=turns, tools=[WEATHER], max_tokens=8)  # type: ignore
        assert after.usage is not None
        assert after.usage.prompt_tokens > (answer.usage.prompt_tokens if answer.usage else 0)
        with client.chat.completions.stream(**asked, seed=3) as stream:
            for _ in stream:
                pass
            (again,) = stream.get_final_completion().choices[0].message.tool_calls or []
        assert again.function.arguments == call.function.arguments


def test_a_function_is_called_for_mistrals_client(mistral_live: Live):
    with Mistral(api_key="none", server_url=mistral_live.url) as client:
        answer = client.chat.complete(**sampled(0, tools=[WEATHER], tool_choice="any"), random_seed=4,
                                      parallel_tool_calls=False)  # fmt: skip
        message = answer.choices[0].message
        assert message is not None
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = message.tool_calls or []
        arguments_of(call)
        assert len(call.id or "") == 9
        turns = [*HELLO, message, {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "sunny"}]
        after = client.chat.complete(model=NAME, messages=turns, tools=[WEATHER], max_tokens=8)
        assert after.usage.prompt_tokens is not None
        assert answer.usage.prompt_tokens is not None
        assert after.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_gap_is_filled(mistral_live: Live):
    with Mistral(api_key="none", server_url=mistral_live.url) as client:
        asked: dict[str, Any] = {"model": NAME, "prompt": "def f(", "suffix": "return x", "max_tokens": 8}
        whole = client.fim.complete(**asked, temperature=0.0)
        message = whole.choices[0].message
        assert message is not None
        with client.fim.stream(**asked, temperature=0.0) as events:
            text = "".join(str(choice.delta.content or "") for event in events for choice in event.data.choices)
        assert text == message.content
        n_prompt = len(mistral_live.lm.tokenizer.encode_fim("def f(", "return x"))
        assert whole.usage.prompt_tokens == n_prompt


def test_no_gap_is_filled_by_models_that_were_not_made_for_it(mistral_client: Mistral):
    with pytest.raises(SDKError) as caught:
        mistral_client.fim.complete(model=NAME, prompt="def f(", suffix="return x")
    assert caught.value.status_code == 400


@pytest.mark.models
def test_a_real_model_keeps_to_a_form():
    lm = load_decoder("smollm2-135m-instruct")
    with serving(lm) as live, OpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=PATIENCE) as client:
        question: Any = [{"role": "user", "content": "Is the sky on a clear day red or blue? Answer in JSON."}]
        asked: dict[str, Any] = {"model": NAME, "messages": question, "temperature": 0, "max_tokens": 60}
        parsed = client.chat.completions.parse(**asked, response_format=Verdict).choices[0].message.parsed
        assert isinstance(parsed, Verdict)
