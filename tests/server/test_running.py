"""A server's life: loading, ready, draining, and dead."""

import threading

import pytest

from sash.errors import DoesNotFitError
from sash.server.app import create_app
from sash.server.running import Server, make_service, run
from sash.server.settings import Settings

LONG = 240.0
BODY = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "ignore_eos": True}


@pytest.fixture
def begin(lm, client_of, until):
    """Starts a server that loads a model once it is told to, or at once; everything is ended afterwards."""
    ends = []

    def start(**settings):
        given = Settings(**{"model": "small", "port": 0, "kv_memory": 1 << 26, **settings})
        loads = threading.Event()

        def loading():
            assert loads.wait(LONG)
            service = make_service(lm, given)
            service.start()
            return lm, service

        server = Server(create_app(None, None, given), given, loading)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started)
        ends.append((server, thread, loads))
        return server, client_of(server.port), loads, thread

    yield start
    for server, thread, loads in ends:
        loads.set()
        server.should_exit = server.force_exit = True
        thread.join(LONG)
        if server.place.loaded:
            server.place.service.stop()


def test_a_server_answers_while_its_model_is_loaded(begin, until):
    server, client, loads, _ = begin()
    assert (client.get("/health").status, client.get("/health").json["status"]) == (503, "loading")
    for reply in (client.chat(), client.get("/v1/models"), client.post("/tokenize", {"prompt": "x"})):
        assert (reply.status, reply.error["code"]) == (503, "loading")
        assert int(reply.headers["retry-after"]) > 0
    assert client.get("/metrics").status == 200
    loads.set()
    until(lambda: server.place.loaded)
    assert client.get("/health").status == 200
    assert client.chat().status == 200


def test_what_was_accepted_is_finished_and_the_rest_refused(begin, until):
    server, client, loads, thread = begin()
    loads.set()
    until(lambda: server.place.loaded)
    service, go_on = server.place.service, threading.Event()
    compute = service._steps.compute
    service._steps.compute = lambda: compute() if go_on.wait(LONG) else []
    replies = []
    asking = [
        threading.Thread(
            target=lambda s=stream: replies.append(client.post("/v1/chat/completions", {**BODY, "stream": s}))
        )
        for stream in (True, False, True, False)
    ]
    for one in asking:
        one.start()
    until(lambda: service.figures().running + service.figures().waiting == 4)  # and nothing of it is computed
    server._loop.call_soon_threadsafe(server.end)
    until(lambda: service.health.state == "draining")
    refused = client.chat()
    health = client.get("/health")
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert int(refused.headers["retry-after"]) > 0
    assert (health.status, health.json["status"]) == (503, "draining")
    go_on.set()
    for one in asking:
        one.join(LONG)
    thread.join(LONG)
    assert not thread.is_alive()
    assert [reply.status for reply in replies] == [200] * 4
    for reply in replies:
        whole = reply.events[-1] if "event-stream" in reply.headers["content-type"] else reply.json
        assert whole["usage"]["completion_tokens"] == 200


def test_what_cannot_be_finished_in_time_ends_with_an_error(begin, until, rest_of):
    server, client, loads, thread = begin(drain_seconds=0.05)
    loads.set()
    until(lambda: server.place.loaded)
    replies, body = [], {"max_tokens": 500_000, "ignore_eos": True}
    asking = threading.Thread(target=lambda: replies.append(client.chat(**body)))
    asking.start()
    with client.begun(**body) as begun:
        until(lambda: server.place.service.figures().running == 2)
        server._loop.call_soon_threadsafe(server.end)
        streamed = rest_of(begun)
    asking.join(LONG)
    thread.join(LONG)
    assert not thread.is_alive()
    (whole,) = replies
    assert (whole.status, whole.error["code"]) == (503, "draining")
    assert streamed.status == 200
    assert streamed.events[-1]["error"]["code"] == "draining"


def test_an_engine_that_dies_is_not_healthy(begin, until):
    server, client, loads, _ = begin()
    loads.set()
    until(lambda: server.place.loaded)
    server.place.service.stop()
    assert (client.get("/health").status, client.get("/health").json["status"]) == (503, "dead")
    reply = client.chat()
    assert (reply.status, reply.error["code"]) == (503, "dead")


def test_a_model_that_cannot_be_loaded_ends_the_server():
    def load():
        raise DoesNotFitError("too large")

    with pytest.raises(DoesNotFitError, match="too large"):
        run(Settings(model="small", port=0), load)


def test_snapshots_outlive_the_server(begin, until, tmp_path):
    """The second turn reads only what is new, and so does the first after a restart."""
    turn = [{"role": "user", "content": "tell me " * 20}]
    answers = []
    for _ in range(2):
        server, client, loads, thread = begin(snapshot_dir=tmp_path, snapshot_memory=1 << 26)
        loads.set()
        until(lambda server=server: server.place.loaded)
        answers.append(client.chat(messages=turn, temperature=0, max_tokens=8, session="s").json)
        assert client.post("/v1/sessions/s/save").json["saved"] is True
        assert server.place.service.snapshots.figures().disk.files > 0
        server._loop.call_soon_threadsafe(server.end)
        thread.join(LONG)
        server.place.service.stop()
    first, second = answers
    assert first["choices"] == second["choices"]
    assert first["window"]["reuse"] == "miss"
    assert second["window"]["reuse"] in ("part", "whole")
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    server, client, loads, _ = begin(snapshot_dir=tmp_path)
    loads.set()
    until(lambda: server.place.loaded)
    assert client.get("/v1/sessions/s").json["turns"] == 2
    assert "sash_snapshot_bytes" in client.get("/metrics").content.decode()
