"""The `window` object of requests and answers, and POST /v1/window."""

import pytest

from sash.attention.pattern import AttentionPattern
from sash.completion import View
from sash.engine.lanes import Lane
from sash.errors import UsageError, WindowError
from sash.explain.audit import Audit
from sash.explain.instruction import Leaving
from sash.explain.reach import cone
from sash.network.hierarchy import Hierarchy
from sash.network.recall import RecallSettings, recalling
from sash.server.fields import Pins, Window
from sash.server.prompt import Prompt
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
    prompt = Prompt(tokenizer=running.lm.tokenizer, ids=[1] * 100)
    own = frame(config, None, prompt)
    assert (own.lane, own.pins, own.n_pins(100), own.n_pins(2)) == (Lane(), (), 3, 2)
    assert own.account(100, "off", 0)["pinned"] == 3
    narrow = frame(config, Window(size=8), prompt)
    assert (narrow.lane.window, narrow.pins, narrow.n_pins(100)) == (8, (range(3),), 3)
    assert narrow.account(100, "off", 0)["pinned"] == 3
    more = frame(config, Window(pins=Pins(first=5)), prompt)
    assert (more.pins, more.n_pins(100)) == ((range(5),), 5)


def test_a_model_that_remembers_is_not_asked_for_what_cannot_be_beside_it(running):
    lm = running.lm
    prompt = Prompt(tokenizer=lm.tokenizer, ids=[1] * 100)
    summing = lm.config.with_hierarchy(Hierarchy(block=8))
    for config in (summing, recalling(lm.config, RecallSettings(block=8), 16)):
        with pytest.raises(UsageError, match=r"leave out window\.global"):
            frame(config, Window.model_validate({"global": ["0:4"]}), prompt)
        assert frame(config, Window(size=12), prompt).config.windows[0] == 12
    with pytest.raises(WindowError, match="summed up in blocks of 8 tokens"):
        frame(summing, Window(size=6), prompt)


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


RULES = [
    ({"rules": ["system"]}, {"roles": ["system"]}),
    ({"rules": ["message:1"], "budget": 24}, {"messages": [0]}),
    ({"rules": ["0:10"], "overflow": "head", "budget": 4}, {"first": 4}),
    ({"rules": ["0:10", "text:be brief"], "overflow": "head", "budget": 4}, {"first": 4}),
]


@pytest.mark.parametrize(("rules", "same"), RULES)
def test_rules_pin_what_they_name(client, rules, same):
    asked = {"messages": LONG, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
    one, other = (client.chat(**asked, window={"pins": pins}).json for pins in (rules, same))
    assert one["window"]["pinned"] == other["window"]["pinned"] > 0
    assert one["choices"] == other["choices"]


def test_a_passage_of_a_text_is_pinned(running, client):
    text = "say it in rhymes. " + "x" * 60
    body = {"prompt": text, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
    answer = client.post("/v1/completions", {**body, "window": {"pins": {"rules": ["text:in rhymes"]}}}).json
    assert answer["window"]["pinned"] == 9
    lm = running.lm
    assert (
        answer["choices"][0]["text"]
        == lm.generate(text, pins="text:in rhymes", temperature=0, max_tokens=8, ignore_eos=True).text
    )
    two = client.post("/v1/completions", {**body, "prompt": [text, text], "window": {"pins": {"rules": ["0:3"]}}})
    assert (two.status, two.error["param"]) == (400, None) or two.status == 400
    assert "one prompt" in two.error["message"]


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        (
            {"rules": ["0:25"]},
            "25 tokens are to be pinned (0:25: 25), and the budget is 24: raise it (window.pins.budget",
        ),
        ({"rules": ["0:9"], "budget": 8}, "window.pins.overflow head, tail or head+tail"),
        ({"rules": ["0:9"], "budget": 25}, "a budget of 25 pins does not fit the window of 24"),
        ({"rules": ["sistem"]}, "does not say what to pin"),
        ({"rules": ["text:nowhere"]}, "does not say 'nowhere'"),
        ({"rules": ["0:9"] * 17}, "rules"),
        ({"rules": []}, "rules"),
        ({"rules": ["0:9"], "overflow": "middle"}, "overflow"),
        ({"rules": ["text:" + "x" * 2000]}, "rules"),
    ],
)
def test_rules_that_cannot_be_are_refused_with_the_figures(client, pins, words):
    reply = client.chat(messages=LONG, window={"pins": pins})
    assert reply.status == 400
    assert words in reply.error["message"] + str(reply.error["param"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_audited_as_it_is_here(running, client, stream):
    asked = {"messages": LONG, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
    window = {"audit": True, "watch": True, "pins": {"rules": ["user:2"], "budget": 24}}
    reply = client.chat(**asked, window=window, stream=stream)
    told = (reply.events[-1] if stream else reply.json)["window"]
    expected = running.lm.chat(
        LONG, pins="user:2", pin_budget=24, audit=True, temperature=0, max_tokens=6, ignore_eos=True
    )
    assert (Audit.of_json(told["audit"]["first"]), Audit.of_json(told["audit"]["last"])) == expected.audit
    gone = Leaving.of_json(told["leaving"])
    assert (gone.sentence, gone.instruction, gone.pin) == ("“be brief”", "the system prompt", "system")
    assert (gone.window, gone.n_layers, gone.layers) == (WINDOW, 2, ())


@pytest.mark.parametrize(("way", "verdict"), [("recall", "recalled"), ("hierarchy", "summarised")])
def test_an_audit_tells_what_was_brought_back_and_what_was_summed_up(serve, lm, way, verdict):
    sampling = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    lm = lm.with_recall(16, block=8, piece=8) if way == "recall" else lm.with_hierarchy(block=8, per_level=2)
    with serve(lm) as running:
        told = running.client.chat(messages=LONG, **sampling, window={"audit": True}).json["window"]["audit"]
    expected = lm.chat(LONG, audit=True, **sampling)
    assert (Audit.of_json(told["first"]), Audit.of_json(told["last"])) == expected.audit
    assert all(any(part[verdict] for part in end["parts"]) for end in told.values())


def test_what_is_in_sight_has_not_left(client):
    asked = {"messages": LONG, "max_tokens": 2}
    pinned = client.chat(**asked, window={"watch": True, "pins": {"roles": ["system"]}}).json["window"]
    assert pinned["leaving"] is None
    assert "audit" not in pinned
    marked = client.chat(**asked, window={"watch": ["text:hole in"], "audit": ["user:1", "text:brief"]}).json["window"]
    assert marked["leaving"]["instruction"] == "the instruction"
    assert [part["name"] for part in marked["audit"]["first"]["parts"]] == ["user:1", "text:brief"]
    plain = client.chat(**asked).json["window"]
    assert not {"leaving", "audit"} & set(plain)


def test_an_audit_is_bounded(client, monkeypatch):
    monkeypatch.setattr("sash.server.prompt.MAX_PARTS", 3)
    reply = client.chat("a. b. c. d.", window={"audit": True})
    assert (reply.status, reply.error["param"]) == (400, "window.audit")
    assert "4 sentences" in reply.error["message"]
    assert client.chat("a. b. c.", window={"audit": True}).status == 200
    monkeypatch.setattr("sash.server.prompt.MAX_RENDERED", 5)
    assert client.chat("a.", window={"audit": True}).status == 400
    assert client.chat("a.", window={"audit": ["user"]}).status == 200


def test_the_window_route_tells_of_the_next_token(client):
    told = client.post("/v1/window", {"messages": LONG, "window": {"watch": True, "audit": ["system"]}}).json
    assert told["leaving"]["pin"] == "system"
    assert told["audit"]["first"]["position"] == told["n_tokens"]


def test_what_is_global_sees_all_that_was_read(running, client):
    asked = {"messages": LONG, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
    window = {"global": ["text:sliding one", "answer"], "audit": ["system"], "watch": True}
    answer = client.chat(**asked, window=window).json
    expected = running.lm.chat(
        LONG, global_=["text:sliding one", "answer"], pin_budget=WINDOW, audit=["system"], temperature=0, max_tokens=6,
        ignore_eos=True,
    )  # fmt: skip
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert Audit.of_json(answer["window"]["audit"]["last"]) == expected.audit[1]
    assert expected.audit[1].parts[0].global_seen > 0
    assert answer["window"]["pinned"] > 80
    assert answer["window"]["leaving"]["pin"] == "system"  # the first token is drawn behind the last of the prompt
    plain = client.chat(**asked, window={"pins": {"rules": ["text:sliding one"]}}).json
    assert plain["choices"] != answer["choices"]
    for fields, words in (
        ({"global": ["0:25"]}, "25 tokens are to be pinned or global"),
        ({"global": ["sistem"]}, "does not say what to pin"),
        ({"global": []}, "global"),
    ):
        reply = client.chat(**asked, window=fields)
        assert (reply.status, words in reply.error["message"] + str(reply.error["param"])) == (400, True), fields
    reply = client.post("/v1/completions", {"prompt": "x" * 60, "window": {"global": ["answer"]}})
    assert (reply.status, "say max_tokens" in reply.error["message"]) == (400, True)


def test_keys_share_no_snapshots(serve, lm):
    body = {"max_tokens": 2, "messages": [{"role": "user", "content": "x" * 40}]}
    for keys, reuses in ((("one", "two"), ("miss", "miss", "whole", "whole")), ((), ("miss", "whole"))):
        with serve(lm, api_keys=keys, snapshots=True) as running:
            seen = []
            for key in (*keys, *keys) or ("", ""):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                seen.append(running.client.post("/v1/chat/completions", body, headers=headers).json["window"]["reuse"])
            assert tuple(seen) == reuses
