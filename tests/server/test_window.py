"""The `window` object of requests and answers, and POST /v1/window."""

import pytest

from sash.attention.pattern import AttentionPattern
from sash.completion import View
from sash.engine.lanes import Lane
from sash.explain.reach import cone
from sash.server.fields import Pins, Window
from sash.server.window import Frame, Sight, frame

WINDOW = 24

LONG = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is a window? " * 2},
    {"role": "assistant", "content": "a hole in a wall " * 2},
    {"role": "user", "content": "and a sliding one?"},
]


@pytest.mark.parametrize("n_tokens", [1, 5, 24, 25, 60, 200])
@pytest.mark.parametrize("windows", [(8, 8), (8, None), (4, 16, 4)])
@pytest.mark.parametrize("pins", [(), (range(2),), (range(1, 2), range(3, 5))])
def test_sight_is_that_of_the_cone(n_tokens, windows, pins):
    pins = tuple(run for run in pins if run.stop <= n_tokens)
    patterns = [AttentionPattern(window=w, pins=4 if w else 0, pin_by="flag") for w in windows]
    sight = Sight.of(patterns, n_tokens, pins)
    whole = cone(patterns, n_tokens, pinned_positions=[p for run in pins for p in run])
    counts = whole.counts()
    assert sight.counts() == {
        "direct": counts["direct"],
        "pinned": counts["pinned"],
        "relayed": counts["relay"],
        "out_of_reach": counts["out"],
    }
    assert sum(sight.counts().values()) == n_tokens


def test_an_answer_says_what_was_still_visible(running, client):
    answer = client.chat("x" * 100, max_tokens=10, ignore_eos=True).json
    length = answer["usage"]["total_tokens"]
    view = View.of(running.lm.config, length)
    assert answer["window"] == {
        "size": WINDOW,
        "layers": 2,
        "windowed_layers": 2,
        "first_visible": length - WINDOW,
        "evicted": length - WINDOW,
        "pinned": 0,
        "relayed": view.relayed,
        "out_of_reach": view.out_of_reach,
        "reuse": answer["window"]["reuse"],
        "cached_tokens": answer["usage"]["prompt_tokens_details"]["cached_tokens"],
    }


def test_a_smaller_window_changes_what_is_read(running, client):
    narrow = client.chat("x" * 50, temperature=0, max_tokens=12, window={"size": 6}).json
    other = running.lm.with_window(6).chat([{"role": "user", "content": "x" * 50}], temperature=0, max_tokens=12)
    assert narrow["choices"][0]["message"]["content"] == other.text
    assert narrow["window"]["size"] == 6
    same = client.chat("x" * 50, temperature=0, max_tokens=12, window={"size": WINDOW}).json
    assert same["choices"] == client.chat("x" * 50, temperature=0, max_tokens=12).json["choices"]


def test_a_window_can_only_become_smaller(client):
    reply = client.chat(window={"size": WINDOW + 1})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "window_not_supported", "window")


def test_a_prompt_past_the_window_is_refused_where_sliding_is(client):
    reply = client.chat("x" * 100, window={"overflow": "error"})
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert client.chat("x", window={"overflow": "error"}).status == 200


@pytest.mark.parametrize("pins", [{"first": 4}, {"roles": ["system"]}, {"messages": [0]}, {"messages": [0, 3]}])
def test_pinned_messages_stay_visible(client, pins):
    reply = client.chat(messages=LONG, temperature=0, max_tokens=4, window={"pins": pins})
    if pins == {"messages": [0, 3]}:
        assert (reply.status, reply.error["code"]) == (400, "window_not_supported")
        return
    assert reply.status == 200
    assert reply.json["window"]["pinned"] >= 4


def test_pins_that_cannot_be_are_refused(client):
    for pins in ({"messages": [9]}, {"first": 1000}, {"messages": [1]}):
        reply = client.chat(messages=LONG, window={"pins": pins})
        assert (reply.status, reply.error["param"]) == (400, "window"), pins


def test_the_page_is_told_what_the_next_token_sees_of_each_message(running, client):
    answer = client.post("/v1/window", {"messages": LONG, "window": {"pins": {"messages": [0]}}}).json
    assert answer["n_tokens"] == len(running.lm.tokenizer.encode_chat(LONG))
    assert answer["size"] == WINDOW
    assert answer["capacity"]["used"] == WINDOW + answer["capacity"]["pinned"]
    first, *_, last = answer["messages"]
    assert (first["index"], first["start"]) == (0, 0)
    assert first["pinned"] == first["stop"] - first["start"] == answer["capacity"]["pinned"]
    assert last["direct"] > 0
    for message in answer["messages"]:
        kinds = ("direct", "pinned", "relayed", "out_of_reach")
        assert sum(message[kind] for kind in kinds) == message["stop"] - message["start"]
    stops = [message["stop"] for message in answer["messages"]]
    assert stops == sorted(stops)


def test_a_model_without_a_window_has_none_to_speak_of(running):
    patterns = [AttentionPattern()] * 2
    config = running.lm.config.with_window("full")
    frame = Frame(config=config, lane=Lane())
    assert frame.config.patterns == tuple(patterns)
    account = frame.account(1000, "off", 0)
    assert account["size"] is None
    assert account["first_visible"] == account["evicted"] == account["out_of_reach"] == 0


def test_a_model_with_pins_of_its_own_keeps_them_in_every_window(running):
    config = running.lm.config.with_window(pins=3)
    own = frame(config, None, 100, [], list)
    assert (own.lane, own.pins, own.n_pins(100), own.n_pins(2)) == (Lane(), (), 3, 2)
    assert own.account(100, "off", 0)["pinned"] == 3
    narrow = frame(config, Window(size=8), 100, [], list)
    assert (narrow.lane.window, narrow.pins, narrow.n_pins(100)) == (8, (range(3),), 3)
    assert narrow.account(100, "off", 0)["pinned"] == 3
    more = frame(config, Window(pins=Pins(first=5)), 100, [], list)
    assert (more.pins, more.n_pins(100)) == ((range(5),), 5)


def test_a_model_that_sees_everything_has_an_end(serve, small_models, lm):
    config = small_models.small_config([AttentionPattern()], vocab_size=lm.config.vocab_size, context=40)
    with serve(type(lm)(small_models.small_decoder(config), lm.tokenizer, chunk=16)) as running:
        client = running.client
        reply = client.chat("x" * 100)
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
        assert reply.error["n_ctx"] == 40 < reply.error["n_prompt_tokens"]
        answer = client.chat("x" * 20, max_tokens=1000, ignore_eos=True).json
        assert answer["usage"]["total_tokens"] == 40
        assert answer["choices"][0]["finish_reason"] == "length"
        assert client.chat("x" * 100, window={"size": 16}).json["window"]["size"] == 16
        assert client.chat("x" * 100, window={"overflow": "slide"}).json["window"]["size"] is None
        assert client.chat(window={"pins": {"first": 2}}).status == 400
        assert client.chat("x" * 100, window={"size": 16, "pins": {"first": 2}}).json["window"]["pinned"] == 2


def test_a_long_prompt_is_submitted_off_the_loop(client, monkeypatch):
    plain = client.chat("x" * 100, temperature=0).json["choices"]
    monkeypatch.setattr("sash.server.answering.LONG", 50)
    assert client.chat("x" * 100, temperature=0).json["choices"] == plain
    assert client.chat("x" * 100, window={"size": 1}, stream=True).status == 200
    assert client.chat(max_tokens=0).error["param"] == "max_tokens"
