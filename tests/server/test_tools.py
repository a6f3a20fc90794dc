"""Tools over HTTP, with Mistral's own tokenizer and a model of random weights that a grammar makes obey."""

import json
from pathlib import Path

import mistral_common
import pytest

from sash.attention.pattern import AttentionPattern
from sash.engine.request import Event, Request, Sequence, Token
from sash.lm import LM
from sash.sampling import SamplingParams
from sash.server.tools import Calling
from sash.server.writing import Writer
from sash.text.mistral import MistralTokenizer

TOKENIZER = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
ASKED = {"name": "weather", "arguments": '{"city":"Rome"}'}
HISTORY = [
    {"role": "user", "content": "What is the weather in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_abcdefgh1234", "type": "function", "function": ASKED}
        ],
    },
    {"role": "tool", "tool_call_id": "call_abcdefgh1234", "content": "sunny"},
]  # fmt: skip


@pytest.fixture(scope="module")
def running(serve, small_models):
    tokenizer = MistralTokenizer(TOKENIZER)
    config = small_models.small_config([AttentionPattern(window=256)], vocab_size=tokenizer.vocab_size)
    with serve(LM(small_models.small_decoder(config), tokenizer, chunk=64), default_max_tokens=200) as running:
        yield running


def calls_of(reply):
    (choice,) = reply.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    return choice["message"]["tool_calls"]


@pytest.mark.parametrize("choice", ["any", "required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be_made_keeps_to_its_schema(client, choice):
    reply = client.chat(tools=[WEATHER], tool_choice=choice, max_tokens=300, temperature=1, seed=1,
                        parallel_tool_calls=False)  # fmt: skip
    (call,) = calls_of(reply)
    assert call["type"] == "function"
    assert len(call["id"]) == 9
    assert call["function"]["name"] == "weather"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Oslo", "Rome")
    assert 1 <= arguments["days"] <= 7


def test_a_stream_brings_whole_calls(client):
    fields = {"tools": [WEATHER], "tool_choice": "any", "max_tokens": 300, "temperature": 1, "seed": 2}
    events = client.chat(**fields, parallel_tool_calls=False, stream=True).events
    choices = [choice for event in events for choice in event["choices"]]
    (call,) = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert call["index"] == 0
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city", "days"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_calls_and_their_results_are_read_as_the_tokenizer_writes_them(running, client):
    reply = client.chat(messages=HISTORY, tools=[WEATHER], max_tokens=2)
    assert reply.status == 200
    ids = running.lm.tokenizer.encode_chat([{**HISTORY[0]}, {**HISTORY[1], "content": ""}, HISTORY[2]], tools=[WEATHER])
    assert reply.json["usage"]["prompt_tokens"] == len(ids)
    spans = client.post("/v1/window", {"messages": HISTORY, "tools": [WEATHER]}).json
    assert spans["n_tokens"] == len(ids)
    assert len(spans["messages"]) == 3


def test_tools_that_may_not_be_called_are_not_shown(client):
    plain = client.chat("hello").json["usage"]["prompt_tokens"]
    assert client.chat("hello", tools=[WEATHER], tool_choice="none").json["usage"]["prompt_tokens"] == plain
    assert client.chat("hello", tools=[WEATHER]).json["usage"]["prompt_tokens"] > plain


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "retrieval", "function": {"name": "x"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": HISTORY[1]["tool_calls"]}]}, "messages"),
        ({"messages": HISTORY[2:]}, "messages"),
    ],
)
def test_tools_that_cannot_be_are_refused(client, fields, param):
    reply = client.chat(**fields)
    assert reply.status == 400
    assert reply.error["param"].startswith(param)


class Tray:
    """A box that shows what was put into it."""

    def __init__(self):
        self.parts = []

    def put(self, part, size):
        self.parts.append(part)
        return True


@pytest.mark.parametrize(("parallel", "names"), [(True, ["weather", "time"]), (False, ["weather"])])
def test_calls_that_the_model_makes_by_itself_are_found(running, parallel, names):
    tokenizer = running.lm.tokenizer
    said = '[{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "time", "arguments": {}}]'
    ids = [*tokenizer.encode("Let me see.", bos=False), 5, *tokenizer.encode(said, bos=False), 2]
    sequence = Sequence(Request(prompt_ids=(1,), params=SamplingParams(), stop_ids=tokenizer.eos_ids))
    tray = Tray()
    writer = Writer(0, tokenizer, tray, calling=Calling(names=("weather", "time"), parallel=parallel))
    for token_id in ids:
        sequence.finish_reason = "stop" if token_id == 2 else None
        writer(Event(sequence, 0, Token(token_id, 0.0)))
    assert "".join(part.text for part in tray.parts) == "Let me see."
    assert [call.name for part in tray.parts for call in part.calls] == names
    assert tray.parts[-1].reason == "tool_calls"


def test_a_model_without_tools_says_so(serve):
    with serve() as running:
        reply = running.client.chat(tools=[WEATHER])
        assert (reply.status, reply.error["param"], reply.error["code"]) == (400, "tools", "unsupported_parameter")
        assert running.client.chat(tools=[WEATHER], tool_choice="none").status == 200
        assert running.client.chat(tools=[]).status == 200
