"""POST /v1/chat/completions, whole and streamed, over a real socket."""

import json

import pytest


def test_a_chat_is_answered_as_the_model_itself_answers_it(running, client):
    reply = client.chat("hello", temperature=0, max_tokens=12, logprobs=True)
    assert reply.status == 200
    answer = reply.json
    expected = running.lm.chat([{"role": "user", "content": "hello"}], temperature=0, max_tokens=12)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "small"
    assert answer["usage"]["completion_tokens"] == len(expected.token_ids) == len(choice["logprobs"]["content"])
    assert answer["usage"]["prompt_tokens"] == expected.stats.prompt_tokens


def test_a_stream_says_the_same_as_the_whole_answer(client):
    whole = client.chat("hello", temperature=0, max_tokens=20).json
    reply = client.chat("hello", temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.events
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["delta"].get("content", "") for event in events for c in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    reasons = [c["finish_reason"] for event in events for c in event["choices"]]
    assert [reason for reason in reasons if reason] == [whole["choices"][0]["finish_reason"]]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(event["usage"] is None for event in events[:-1])


def test_a_stream_that_asks_for_no_account_has_a_choice_in_every_chunk(client):
    events = client.chat(stream=True).events
    assert all(len(event["choices"]) == 1 for event in events)
    assert events[-1]["window"]["size"] == 24


def test_seeded_answers_are_the_same_in_any_company(client):
    one = client.chat(temperature=1.5, seed=7, max_tokens=16).json["choices"][0]["message"]["content"]
    several = client.chat(temperature=1.5, seed=7, max_tokens=16, n=3).json["choices"]
    assert [choice["index"] for choice in several] == [0, 1, 2]
    assert several[0]["message"]["content"] == one
    assert len({choice["message"]["content"] for choice in several}) == 3
    assert client.chat(temperature=1.5, random_seed=7, max_tokens=16).json["choices"][0]["message"]["content"] == one


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client):
    text = client.chat(temperature=0, max_tokens=40).json["choices"][0]["message"]["content"]
    stop = text[5:8]
    cut = client.chat(temperature=0, max_tokens=40, stop=[stop]).json["choices"][0]
    assert cut["message"]["content"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_top_logprobs_are_those_asked_for(client):
    choice = client.chat(max_tokens=3, ignore_eos=True, logprobs=True, top_logprobs=2).json["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 3
    for entry in entries:
        assert len(entry["top_logprobs"]) == 2
        assert bytes(entry["bytes"]).decode("utf-8", "replace") or True
        assert entry["logprob"] <= entry["top_logprobs"][0]["logprob"] <= 0


def test_a_prefix_message_begins_the_answer(running, client):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Yes, ", "prefix": True}]
    answer = client.chat(messages=messages, temperature=0, max_tokens=5).json
    assert answer["choices"][0]["message"]["content"].startswith("Yes, ")
    streamed = client.chat(messages=messages, temperature=0, max_tokens=5, stream=True).events
    assert streamed[0]["choices"][0]["delta"]["content"] == "Yes, "
    wrong = client.chat(messages=[messages[1], messages[0]])
    assert (wrong.status, wrong.error["param"]) == (400, "messages")


def test_content_may_be_text_parts_and_nothing_else(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert (
        client.chat(messages=[{"role": "user", "content": parts}], temperature=0).json["choices"]
        == (client.chat("hello", temperature=0).json["choices"])
    )
    image = [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]
    refused = client.chat(messages=[{"role": "user", "content": image}])
    assert (refused.status, refused.error["code"]) == (400, "unsupported_content")


def test_progress_is_told_where_it_is_asked_for(client):
    events = client.chat("x" * 100, stream=True, return_progress=True).events
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert told[-1]["processed"] == told[-1]["total"] > 100
    assert sorted(one["processed"] for one in told) == [one["processed"] for one in told]


def test_what_nothing_reads_is_named_in_a_header(client):
    reply = client.chat(num_ctx=5, stream_options={"colour": 1}, stream=False)
    assert reply.status == 200
    assert reply.headers["x-sash-ignored"] == "num_ctx, stream_options.colour"
    assert json.loads(reply.content)["object"] == "chat.completion"


@pytest.mark.parametrize(("name", "shown"), [(" ", "?"), ("a b ", "a?b?"), ("", "?"), ("\r\nx: y", "??x:?y")])
def test_whatever_a_field_is_called_its_name_is_no_broken_header(client, name, shown):
    for path, body in (("/tokenize", {"prompt": "a"}), ("/v1/chat/completions", {"messages": [], "max_tokens": 1})):
        reply = client.post(path, {**body, name: 1})
        assert reply.status in (200, 400)
        assert path != "/tokenize" or reply.headers["x-sash-ignored"] == shown
