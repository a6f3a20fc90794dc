"""Streams: what goes wrong in the midst of one is said in it, and nobody else notices."""

import threading

import pytest
import torch

from sash.server.mail import Box, Post

FIELDS = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}


@pytest.fixture
def running(serve):
    with serve(ping_seconds=0.2) as running:
        yield running


@pytest.fixture
def faults(running, monkeypatch):
    """Tokens after which the network's logits of a prompt that begins with these words become NaN."""
    decoder = running.lm.decoder
    honest = decoder.logits
    left = {"rows": -1}

    def logits(hidden):
        found = honest(hidden)
        if left["rows"] >= 0:
            left["rows"] -= len(found)
            if left["rows"] < 0:
                return torch.full_like(found, float("nan"))
        return found

    monkeypatch.setattr(decoder, "logits", logits)
    return left


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("stream", [True, False])
def test_numbers_that_are_none_end_the_answer_with_an_error(running, client, faults, stream, after):
    faults["rows"] = after
    reply = client.chat("x", **FIELDS, stream=stream)
    if stream and after:
        assert reply.status == 200
        *chunks, last = reply.events
        assert last["error"]["code"] == "not_finite"
        assert sum(len(event["choices"]) for event in chunks) >= 2
    else:
        assert (reply.status, reply.error["code"]) == (500, "not_finite")
    running.wait_idle()
    assert client.chat("x", **FIELDS).status == 200


def test_a_fault_in_showing_one_answer_ends_no_other(running, client, monkeypatch):
    expected = client.chat("other", **FIELDS).json["choices"]
    tokenizer = running.lm.tokenizer
    honest = tokenizer.token_bytes
    monkeypatch.setattr(tokenizer, "token_bytes", lambda *a, **o: honest(*a, **o) if poisoned.is_set() else broken())
    poisoned = threading.Event()

    def broken():
        poisoned.set()
        raise RuntimeError("canary")

    reply = client.chat("x", **FIELDS, stream=True)
    error = reply.error if reply.status != 200 else reply.events[-1]["error"]
    assert error["code"] == "internal_error"
    assert b"canary" not in reply.content
    assert client.chat("other", **FIELDS).json["choices"] == expected
    running.wait_idle()


def test_a_fault_in_writing_an_answer_down_is_an_error_event(running, client, monkeypatch):
    monkeypatch.setattr("sash.server.answering.usage", lambda *a: 1 / 0)
    assert client.chat("x", **FIELDS, stream=True).events[-1]["error"]["code"] == "internal_error"
    assert client.chat("x", **FIELDS).error["code"] == "internal_error"
    running.wait_idle()


def test_a_stream_in_which_nothing_comes_says_that_it_lives(running, client, monkeypatch):
    gate = threading.Event()
    honest = running.lm.decoder.logits
    steps = iter(range(1000))

    def slowly(hidden):
        if next(steps) == 3:
            gate.wait(0.7)
        return honest(hidden)

    monkeypatch.setattr(running.lm.decoder, "logits", slowly)
    reply = client.chat("x", **FIELDS, stream=True)
    assert reply.content.count(b": ping\n\n") >= 2
    assert reply.events[-1]["choices"][0]["finish_reason"] == "length"


def test_a_box_keeps_what_was_put_in_order_and_has_a_bound():
    import asyncio

    async def check():
        box = Box(Post(asyncio.get_running_loop()), limit=1000)

        def fill():
            for number in range(100):
                assert box.put(number, 1)

        filler = threading.Thread(target=fill)
        filler.start()
        got = []
        while len(got) < 100:
            got += await asyncio.wait_for(box.take(), 60)
        filler.join()
        assert got == list(range(100))
        assert box.put("x", 1000)
        assert not box.put("y", 1)
        assert await box.take() == ["x"]
        assert box.overflowed
        assert not box.put("z", 1)

    asyncio.run(check())


def test_events_are_utf8_and_hold_no_half_characters(running, client):
    texts = []
    for seed in range(5):
        fields = {**FIELDS, "temperature": 3, "seed": seed}
        events = client.chat("x", **fields, stream=True).events
        texts.append("".join(c["delta"].get("content", "") for event in events for c in event["choices"]))
        assert texts[-1] == client.chat("x", **fields).json["choices"][0]["message"]["content"]
    assert any("\ufffd" in text for text in texts)
    assert any(not text.isascii() for text in texts)
