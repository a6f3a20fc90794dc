"""Bodies that are no JSON, or no sense: always 400 in the one shape, never 5xx."""

import json

import pytest

from sash.server.errors import ApiError
from sash.server.json_body import parse

DEEP = 100_000
WRONG = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"x"',
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b'{"a":1,"a":2}',
    b'{"a":{"b":1,"b":2}}',
    b'{"a":NaN}',
    b'{"a":-Infinity}',
    b'{"a":1e999}',
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":' + b"9" * 50 + b"}",
    b'{"a":"\\ud800"}',
    b'{"\\udfff":1}',
    b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b'{"a":' + b"[" * 65 + b"]" * 65 + b"}",
    b'{"a":"\x00"}',
    b"{'a':1}",
    b'{"a":1}}',
]


@pytest.mark.parametrize("raw", WRONG, ids=lambda raw: repr(raw[:20]))
def test_a_body_that_no_honest_client_sends_is_refused(client, raw):
    with pytest.raises(ApiError) as caught:
        parse(raw)
    assert caught.value.status == 400
    reply = client.request("POST", "/v1/chat/completions", raw=raw)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")


def test_pairs_of_surrogates_are_characters():
    assert parse(rb'{"a":"\ud83d\ude00"}') == {"a": "\N{GRINNING FACE}"}


VALUES = [-1, 2**31, 2**63, 1e308, True, "1", None, [], {}, 0.5, -(2**70), ""]
FIELDS = [
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed", "random_seed", "stop",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs", "top_logprobs", "stream", "logit_bias",
    "stream_options", "messages", "model", "tools", "tool_choice", "response_format", "user", "metadata", "window",
    "session", "min_tokens", "ignore_eos", "safe_prompt", "parallel_tool_calls", "return_progress",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_field_breaks_the_server(running, client, field):
    # The end of the answer is by far the likeliest token, so that no answer is long, however long it may be.
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "logit_bias": {"2": 100}}
    for value in VALUES:
        reply = client.post("/v1/chat/completions", {**body, field: value})
        assert reply.status in (200, 400, 404), (field, value, reply.content)
        if reply.status != 200:
            assert reply.error["message"]
    assert running.service.health.state == "ready"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "nobody", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": "x"}] * 2049,
        "x",
        [["user", "x"]],
    ],
    ids=lambda messages: str(messages)[:40],
)
def test_messages_that_cannot_be_are_refused(client, messages):
    reply = client.post("/v1/chat/completions", {"messages": messages})
    assert reply.status == 400
    assert reply.error["param"].startswith("messages")


def test_another_model_is_not_found_and_ours_is_named(client):
    reply = client.chat(model="gpt-4")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    assert "small" in reply.error["message"]
    assert client.get("/v1/models/gpt-4").status == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/v1/models/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/sessions/none", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/assets/%2e%2e/%2e%2e/app.py", 404),
    ],
)
def test_other_paths_have_the_same_shape_of_error(client, method, path, status):
    reply = client.request(method, path)
    assert reply.status == status
    assert reply.error["type"] == "invalid_request_error"


def test_a_body_that_does_not_say_it_is_json_is_not_read(client):
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        reply = client.request("POST", "/v1/chat/completions", raw=body, headers={"Content-Type": kind})
        assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    packed = client.request("POST", "/v1/chat/completions", raw=body, headers={"Content-Encoding": "gzip"})
    assert packed.status == 415


def test_an_error_does_not_repeat_what_was_said(client):
    reply = client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": {"secret": "s3cr3t"}}]})
    assert reply.status == 400
    assert b"s3cr3t" not in reply.content
