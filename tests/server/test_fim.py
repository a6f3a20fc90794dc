"""POST /v1/fim/completions, and completions with a suffix."""

import pytest


@pytest.fixture
def filling(running, monkeypatch):
    """The tokenizer of a model that was made for it: the suffix first, then the prompt, as Codestral has it."""
    tokenizer = running.lm.tokenizer

    def encode_fim(prompt, suffix=""):
        return [1, *tokenizer.encode("S" + suffix, bos=False), *tokenizer.encode("P" + prompt, bos=False)]

    monkeypatch.setattr(tokenizer, "encode_fim", encode_fim)
    monkeypatch.setattr(type(tokenizer), "has_fim", True)
    return tokenizer


def test_a_gap_is_filled(running, client, filling):
    fields = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    expected = running.lm.generate(filling.encode_fim("a = ", "\nb"), **fields).text
    reply = client.post("/v1/fim/completions", {"prompt": "a = ", "suffix": "\nb", **fields}).json
    assert reply["choices"][0]["message"]["content"] == expected
    events = client.post("/v1/fim/completions", {"prompt": "a = ", "suffix": "\nb", **fields, "stream": True}).events
    assert "".join(c["delta"].get("content", "") for event in events for c in event["choices"]) == expected
    text = client.post("/v1/completions", {"prompt": "a = ", "suffix": "\nb", **fields}).json["choices"][0]["text"]
    assert text == expected
    assert client.get("/v1/models/small").json["capabilities"]["completion_fim"] is True


def test_a_model_that_was_not_made_for_it_says_so(client):
    for path in ("/v1/fim/completions", "/v1/completions"):
        reply = client.post(path, {"prompt": "a", "suffix": "b"})
        assert (reply.status, reply.error["param"]) == (400, "suffix")
    several = client.post("/v1/completions", {"prompt": ["a"], "suffix": "b"})
    assert (several.status, several.error["param"]) == (400, "suffix")
    assert client.get("/v1/models/small").json["capabilities"]["completion_fim"] is False
