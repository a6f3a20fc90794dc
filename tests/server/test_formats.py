"""response_format: what is answered is what the schema says, streamed or not."""

import json

import pytest

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


def wanting(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_its_schema(client, stream):
    reply = client.chat(response_format=wanting(SCHEMA), max_tokens=300, temperature=1, seed=3, stream=stream)
    assert reply.status == 200
    if stream:
        choices = [choice for event in reply.events for choice in event["choices"]]
        text, reason = "".join(c["delta"].get("content", "") for c in choices), choices[-1]["finish_reason"]
    else:
        text, reason = reply.json["choices"][0]["message"]["content"], reply.json["choices"][0]["finish_reason"]
    assert reason == "stop"
    answer = json.loads(text)
    assert set(answer) == {"ok", "n"}
    assert isinstance(answer["ok"], bool)
    assert 0 <= answer["n"] <= 99


def test_each_of_several_answers_has_a_state_of_its_own(client):
    choices = client.chat(response_format=wanting(SCHEMA), max_tokens=300, n=3, temperature=1, seed=1).json["choices"]
    assert [set(json.loads(choice["message"]["content"])) for choice in choices] == [{"ok", "n"}] * 3


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        wanting({"type": "nonsense"}),
        wanting({"type": "string", "pattern": "(?<=a)b"}),
        wanting({"$ref": "http://169.254.169.254/schema"}),
        wanting({"$ref": "file:///etc/passwd"}),
        wanting({"enum": ["x" * 200_000]}),
        {"type": "xml"},
    ],
    ids=lambda asked: json.dumps(asked)[:60],
)
def test_what_cannot_be_enforced_is_refused(client, asked):
    reply = client.chat(response_format=asked)
    assert reply.status == 400
    assert reply.error["param"].startswith("response_format")
