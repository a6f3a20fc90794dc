"""Streams: what goes wrong in the midst of one is said in it, and nobody else notices."""

import itertools
import threading

import pytest
import torch

from sash.server.mail import Box, Post

FIELDS = {"temperature": 0, "max_tokens": 30, "ignore_eos": True}


LONG = 240.0


@pytest.fixture
def running(serve):
    with serve(ping_seconds=0.05) as running:
        yield running


@pytest.fixture
def halt(running, monkeypatch):
    """Has the network wait before its logits of some later call, until it is told to go on; and then fail, or not."""
    decoder = running.lm.decoder
    honest, calls = decoder.logits, itertools.count()

    def before(call, *, fails):
        go_on = threading.Event()

        def logits(hidden):
            found = honest(hidden)
            if next(calls) != call:
                return found
            assert go_on.wait(LONG)
            return torch.full_like(found, float("nan")) if fails else found

        monkeypatch.setattr(decoder, "logits", logits)
        return go_on

    return before


@pytest.mark.parametrize(("stream", "call"), [(True, 0), (False, 0), (False, 6)])
def test_numbers_that_are_none_end_the_answer_with_an_error(running, client, halt, stream, call):
    halt(call, fails=True).set()
    reply = client.chat("x", **FIELDS, stream=stream)
    assert (reply.status, reply.error["code"]) == (500, "not_finite")
    running.wait_idle()
    assert client.chat("x", **FIELDS).status == 200


def test_numbers_that_are_none_in_the_midst_of_a_stream_are_said_in_it(running, client, halt, rest_of):
    go_on = halt(5, fails=True)
    with client.begun("x", **FIELDS) as begun:
        go_on.set()  # now that the status is out
        reply = rest_of(begun)
    assert reply.status == 200
    *chunks, last = reply.events
    assert last["error"]["code"] == "not_finite"
    assert sum(len(event["choices"]) for event in chunks) >= 2
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


def test_a_stream_in_which_nothing_comes_says_that_it_lives(running, client, halt, rest_of):
    go_on, seen = halt(3, fails=False), b""
    with client.begun("x", **FIELDS) as begun:
        while seen.count(b": ping\n\n") < 2:
            seen += begun.read1(1000)
        go_on.set()
        reply = rest_of(begun, seen)
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
            got += await asyncio.wait_for(box.take(), LONG)
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
