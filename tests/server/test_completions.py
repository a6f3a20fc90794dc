"""POST /v1/completions: four forms of prompts, echo, and log-probabilities of prompts."""

import pytest


def complete(client, prompt, **fields):
    return client.post("/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0, **fields})


def test_all_forms_of_a_prompt_say_the_same(running, client):
    ids = running.lm.tokenizer.encode("hello")
    expected = running.lm.generate("hello", temperature=0, max_tokens=6).text
    assert complete(client, "hello").json["choices"][0]["text"] == expected
    assert complete(client, ids).json["choices"][0]["text"] == expected
    answer = complete(client, ["hello", "hello"]).json
    assert [choice["text"] for choice in answer["choices"]] == [expected, expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == 2 * len(ids)
    assert [choice["text"] for choice in complete(client, [ids, ids], n=2).json["choices"]] == [expected] * 4


def test_echo_repeats_the_prompt_with_the_models_own_log_probabilities(running, client):
    ids = running.lm.tokenizer.encode("a long enough text that slides out of the window of 24")
    scores = running.lm.score(ids, chunk=16)
    (choice,) = complete(client, ids, echo=True, logprobs=2, max_tokens=0).json["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"] == running.lm.tokenizer.decode(ids)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(scores.tolist(), abs=1e-4)
    assert [len(top or {}) for top in logprobs["top_logprobs"][1:]] == [2] * (len(ids) - 1)
    for offset, token in list(zip(logprobs["text_offset"], logprobs["tokens"], strict=True))[1:]:
        assert choice["text"][offset : offset + len(token)] == token


def test_echo_and_answer_stand_in_one_text(running, client):
    written = complete(client, "hello", logprobs=1).json["choices"][0]
    both = complete(client, "hello", echo=True, logprobs=1).json["choices"][0]
    assert both["text"] == "hello" + written["text"]
    assert both["logprobs"]["tokens"][-6:] == written["logprobs"]["tokens"]
    assert len(both["logprobs"]["tokens"]) == 6 + len(running.lm.tokenizer.encode("hello"))
    streamed = complete(client, "hello", echo=True, stream=True).events
    assert "".join(choice["text"] for event in streamed for choice in event["choices"]) == both["text"]


def test_streams_of_several_prompts_can_be_told_apart(client):
    whole = [choice["text"] for choice in complete(client, ["one", "two"]).json["choices"]]
    texts = ["", ""]
    for event in complete(client, ["one", "two"], stream=True).events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == whole


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": [259]}, None),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 4}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "n": 17}, "n"),
        ({"prompt": ["a"] * 40, "n": 2}, "n"),
        ({"prompt": "a", "n": 16, "max_tokens": 1 << 20}, "max_tokens"),
        ({"prompt": "a", "seed": 1, "random_seed": 2}, "random_seed"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"1000000": 1}}, None),
        ({"prompt": "a", "window": {"pins": {"roles": ["system"]}}}, "window.pins"),
    ],
)
def test_what_cannot_be_is_refused(client, fields, param):
    reply = client.post("/v1/completions", fields)
    assert reply.status == 400
    assert (reply.error["param"] or "").startswith(param or "")


def test_a_request_may_not_take_more_answers_than_there_is_room_for(running, client):
    """16 that wait and 8 that run are all there is: none of 40 is left behind when they are refused."""
    reply = complete(client, ["x"] * 40, max_tokens=10_000, ignore_eos=True)
    assert reply.status == 429
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.error["code"] == "queue_full"
    running.wait_idle()


def test_several_answers_read_their_prompt_once(serve):
    with serve(snapshots=True) as running:
        ids = running.lm.tokenizer.encode(
            "a long enough text that slides out of the window of 24 and is read in slices"
        )
        one, two = ids, [*ids, 65]
        answer = complete(running.client, [one, two], n=3, temperature=1, seed=5).json
        assert len(answer["choices"]) == 6
        assert answer["usage"]["prompt_tokens"] == len(one) + len(two)
        figures = running.service.figures()
        assert figures.prompt_tokens <= len(one) + len(two) + 4 * (1 if running.lm.decoder.independent else 16)
        alone = [complete(running.client, one, temperature=1, seed=seed).json["choices"][0]["text"] for seed in (5, 6)]
        assert [choice["text"] for choice in answer["choices"][:2]] == alone
