"""Who may call, how much they may send, how long they may take, and what becomes of them if they leave."""

import base64
import contextlib
import json
import socket
import struct
import time

import pytest
from starlette.routing import Route

KEY = "s3cret-key-1"
BODY = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 100_000, "ignore_eos": True}
LONG = {**BODY, "stream": True, "logprobs": True, "top_logprobs": 20}


def send(client, text, body=b"", *, small=False):
    """A request as bytes; the socket it was sent on."""
    wire = client.socket()
    if small:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(ConnectionError):  # the server may have heard enough before all is said
        wire.sendall(text.replace("\n", "\r\n").encode() + body)
    return wire


def post(client, body, *, small=False):
    """A chat, on a socket that holds little of the answer, or much."""
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\nHost: localhost\nContent-Type: application/json\n"
    return send(client, f"{head}Content-Length: {len(content)}\n\n", content, small=small)


def received(wire):
    """Everything until the server closes the connection."""
    parts = []
    try:
        while part := wire.recv(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    wire.close()
    return b"".join(parts)


def heard(wire):
    """Whether the server has begun its answer; False where it refused the request, or cut the connection off."""
    begun = b"HTTP/1.1 200"
    try:
        return wire.recv(len(begun), socket.MSG_PEEK | socket.MSG_WAITALL) == begun
    except ConnectionError:
        return False


def reset(wire):
    """Leave without a word."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_a_client_that_leaves_frees_its_row(running, client, stream, leave):
    wires = [post(client, {**BODY, "stream": stream}) for _ in range(4)]
    running.wait_busy(4)
    for wire in wires:
        leave(wire)
    running.wait_idle()
    assert client.chat().status == 200


def test_a_client_that_leaves_the_queue_is_forgotten(running, client):
    wires = [post(client, BODY) for _ in range(12)]
    running.wait_busy(8, 4)
    for wire in reversed(wires):
        wire.close()
    running.wait_idle()


def test_more_than_may_wait_are_told_when_to_come_back(running, client):
    wires = [post(client, {**BODY, "n": 8}) for _ in range(3)]
    running.wait_busy(8, 16)
    reply = client.chat(stream=True)
    assert (reply.status, reply.error["code"]) == (429, "queue_full")
    assert 1 <= int(reply.headers["retry-after"]) <= 30
    for wire in wires:
        wire.close()
    running.wait_idle()


class TestSlow:
    """A server without patience cuts off a client that was kept from speaking, too: such a one tries again."""

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, serve):
        with serve(read_timeout=0.3, write_timeout=0.3, keep_alive=0.3) as running:
            yield running

    def answer(self, client, text):
        while not (reply := received(send(client, text))):
            continue
        return reply

    def test_headers_that_do_not_end_are_not_waited_for(self, running, client):
        wire = send(client, "GET /health HTTP/1.1\nHost: localhost\nX: ")
        with contextlib.suppress(ConnectionError):
            while True:
                wire.sendall(b"x")
                time.sleep(0.03)
        wire.close()
        assert received(client.socket()) == b""

    def test_a_body_that_does_not_end_is_not_waited_for(self, running, client):
        reply = self.answer(client, "POST /tokenize HTTP/1.1\nHost: localhost\nContent-Length: 100\n\n{")
        assert b"408" in reply.split(b"\r\n")[0]
        assert b"body_too_slow" in reply

    def test_a_client_that_does_not_read_is_ended(self, running, client):
        wires = []
        while not wires or not heard(wires[-1]):
            wires.append(post(client, LONG, small=True))
        running.wait_idle()  # by the time it may leave its answer unread, or by what waits for it: whichever is first
        assert "length" not in running.service.figures().finished
        for wire in wires:
            wire.close()

    def test_an_idle_connection_ends(self, running, client):
        reply = self.answer(client, "GET /health HTTP/1.1\nHost: localhost\n\n")
        assert reply.startswith(b"HTTP/1.1 200")


def test_no_more_waits_for_a_client_than_a_box_holds(running, client):
    wire = post(client, LONG, small=True)
    assert heard(wire)
    running.wait_idle()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    said = b""
    while b"client_too_slow" not in said:
        part = wire.recv(1 << 16)
        assert part, "the answer ends without a reason"
        said += part
    wire.close()


def test_bodies_and_headers_have_a_size(serve):
    with serve(max_body=10_000) as running:
        client = running.client
        for headers in ("Content-Length: 20000", "Transfer-Encoding: chunked"):
            chunk = b"x" * 20_000 if "Length" in headers else b"4e20\r\n" + b"x" * 20_000 + b"\r\n0\r\n\r\n"
            wire = send(client, f"POST /tokenize HTTP/1.1\nHost: localhost\n{headers}\n\n", chunk)
            assert received(wire).startswith(b"HTTP/1.1 413")
        many = "".join(f"x-{n}: 1\n" for n in range(101))
        wire = send(client, f"GET /health HTTP/1.1\nHost: localhost\n{many}\n")
        assert b" 431 " in received(wire).split(b"\r\n")[0]
        long = send(client, f"GET /health HTTP/1.1\nHost: localhost\nx: {'y' * 70_000}\n\n")
        reply = received(long)  # which may be lost with the connection: not all was read of what was said
        assert reply == b"" or reply.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
        assert client.get("/health", headers={f"x-{n}": "1" for n in range(101)}).error["code"] == "too_many_headers"
        assert client.post("/tokenize", {"prompt": "x" * 9_000}).status == 200


@pytest.mark.parametrize(
    "text", ["\n\n", "HELLO\n\n", "GET / HTTP/9.9\n\n", "GET /health HTTP/1.1\nHost: a\nHost: b\n\n",
             "POST /tokenize HTTP/1.1\nHost: localhost\nContent-Length: 5\nTransfer-Encoding: chunked\n\n0\n\n"]
)  # fmt: skip
def test_what_is_no_http_has_the_shape_of_all_errors(client, text):
    reply = received(send(client, text + "\n\n"))
    if reply:
        assert reply.startswith(b"HTTP/1.1 4")
        assert b'"error"' in reply.partition(b"\r\n\r\n")[2]
    assert client.get("/health").status == 200


class TestKeys:
    @pytest.fixture(scope="class")
    @classmethod
    def running(cls, serve):
        with serve(api_keys=(KEY, "another")) as running:
            yield running

    def test_every_route_but_health_wants_a_key(self, running, client):
        app = running.server.config.app
        routes = [route for route in app.routes if isinstance(route, Route) or hasattr(route, "methods")]
        assert len(routes) > 10
        for route in routes:
            path = route.path.replace("{name:path}", "x").replace("{name}", "x")
            for method in {*route.methods, "OPTIONS", "HEAD", "TRACE"}:
                for variant in (path, path + "?a=/health", path + "/", "/" + path, path + "/../health", path + "%2e"):
                    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic !"}):
                        status = client.request(method, variant, headers={"Host": "localhost", **given}).status
                        assert (status == 401) == (variant.partition("?")[0] != "/health"), (method, variant, status)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Authorization": f"Bearer {KEY}"},
            {"Authorization": "bearer another"},
            {"X-Api-Key": KEY},
            {"Authorization": "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()},
        ],
    )
    def test_a_right_key_opens(self, client, headers):
        assert client.get("/v1/models", headers=headers).status == 200

    def test_a_wrong_key_does_not(self, client):
        reply = client.chat()
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        for path in ("localhost/v1/models?x=", "localhost/health", "localhost/health#"):
            assert client.get("/v1/models", headers={"Host": path}).status in (400, 401)
        assert (
            client.get("/v1/models", headers={"X-Forwarded-Prefix": "/health", "X-Original-URL": "/health"}).status
            == 401
        )

    def test_sessions_are_their_owners_own(self, client):
        mine, theirs = {"Authorization": f"Bearer {KEY}"}, {"Authorization": "Bearer another"}
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "session": "s"}
        assert client.post("/v1/chat/completions", body, headers=mine).status == 200
        assert client.get("/v1/sessions/s", headers=mine).status == 200
        assert client.get("/v1/sessions/s", headers=theirs).status == 404
        assert client.get("/v1/sessions", headers=theirs).json["data"] == []


def test_pages_of_other_origins_may_not_call(client):
    own = f"http://127.0.0.1:{client.port}"
    assert client.get("/v1/models", headers={"Origin": own}).status == 200
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://localhost",
        "file://",
        "http://[",
        "http://",
        "",
    ):
        reply = client.get("/v1/models", headers={"Origin": origin})
        assert (reply.status, reply.error["code"]) == (403, "invalid_origin"), origin
        assert "access-control-allow-origin" not in reply.headers


def test_names_that_were_pointed_here_are_not_answered_to(client):
    assert client.get("/v1/models", headers={"Host": f"localhost:{client.port}"}).status == 200
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
        assert client.get("/v1/models", headers={"Host": host}).status == 403
    assert client.get("/v1/models", headers={"Host": "a/b"}).status == 400


def test_origins_that_were_allowed_may_call(serve):
    page = "https://page.example"
    with serve(origins=(page,), api_keys=(KEY,)) as running:
        client = running.client
        asked = {"Origin": page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a, b"}
        preflight = client.request("OPTIONS", "/v1/chat/completions", headers=asked)
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-headers"] == "x-a, b"
        reply = client.get("/v1/models", headers={"Origin": page, "Authorization": f"Bearer {KEY}"})
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, page)
        assert client.get("/v1/models", headers={"Origin": page}).status == 401
        asked["Origin"] = "https://evil.example"
        assert client.request("OPTIONS", "/v1/chat/completions", headers=asked).status == 403


def test_strict_servers_refuse_what_they_do_not_know(serve):
    with serve(strict_fields=True, alias="nice") as running:
        reply = running.client.chat(num_ctx=4)
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unknown_field", "num_ctx")
        assert running.client.chat(model="small").json["model"] == "nice"
        assert running.client.chat(model="nice").status == 200
        assert len(running.client.get("/v1/models").json["data"]) == 2


def test_neither_prompts_nor_keys_are_logged(serve, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    with serve(api_keys=(KEY,)) as running:
        client, headers = running.client, {"Authorization": f"Bearer {KEY}"}
        body = {"messages": [{"role": "user", "content": "canary-prompt"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", body, headers=headers).status == 200
        assert client.post("/v1/chat/completions", {**body, "n": "canary-prompt"}, headers=headers).status == 400

        def broken(*args, **options):
            raise KeyError(str(args))

        monkeypatch.setattr(running.lm.tokenizer, "encode_chat", broken)
        reply = client.post("/v1/chat/completions", body, headers=headers)
        assert (reply.status, reply.error["code"]) == (500, "internal_error")
        assert reply.headers["x-request-id"] in reply.error["message"]
        assert b"canary" not in reply.content
    assert len(caplog.records) > 3
    assert "canary" not in caplog.text
    assert KEY not in caplog.text
