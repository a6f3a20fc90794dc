"""Requests that are wrong in every way that generators think of, on every route: refused, never a fault of ours.

SASH_CHAOS=1 (`make test-chaos`) plays 10,000 of them instead of a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from sash.loading import load_decoder
from tests.cli.conftest import write_model
from tests.server.live import NAME, PATIENCE, Live, serving, until

CHAOS = os.environ.get("SASH_CHAOS") == "1"
pytestmark = pytest.mark.timeout(7200 if CHAOS else 900)
N_CASES = 10_000 if CHAOS else 240
TEXT_ROUTES = ("/tokenize", "/detokenize", "/v1/window")
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": NAME, "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "n": 1, "stop": ["x"], "seed": 1,
        "stream": False, "logprobs": True, "top_logprobs": 2,
        "window": {"size": 8, "pins": {"first": 2}, "overflow": "slide"},
        "response_format": {"type": "text"}, "logit_bias": {"5": 1.0}, "presence_penalty": 0.1, "tools": None,
        "tool_choice": None, "stream_options": None, "safe_prompt": False, "min_p": 0.0, "user": "u",
    },
    "/v1/completions": {
        "model": NAME, "prompt": "ab", "max_tokens": 2, "echo": True, "logprobs": 1, "n": 1, "stop": None,
        "stream": True, "stream_options": {"include_usage": True}, "window": {"pins": {"roles": ["user"]}},
    },
    "/tokenize": {"model": NAME, "messages": [{"role": "user", "content": "b"}], "prompt": None},
    "/detokenize": {"model": NAME, "tokens": [5, 6, 7]},
    "/v1/window": {"model": NAME, "messages": [{"role": "user", "content": "b"}], "window": {"size": 8}},
}  # fmt: skip
HEALTHY = {"model": NAME, "prompt": "How do you do?", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    lm = load_decoder(write_model(tmp_path_factory.mktemp("models") / NAME))
    # What happens to be valid shall be short.
    with serving(lm, max_rows=4, default_max_tokens=4, max_cost=4096, ping_seconds=5.0) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=live.url, trust_env=False, timeout=PATIENCE) as client:
        expected = live.lm.generate(str(HEALTHY["prompt"]), max_tokens=8, temperature=0.0).text
        yield client
        assert client.post("/v1/completions", json=HEALTHY).json()["choices"][0]["text"] == expected
        until(live.free)
        assert live.service.health.state == "ready"


def check(status: int, body: bytes, what: object) -> None:
    """Not our fault, and said in the one shape that all errors have."""
    assert status < 500, f"{status} for {what!r:.2000}: {body[:500]!r}"
    if status >= 400 and body:
        error = json.loads(body)["error"]
        assert error.keys() >= {"message", "type", "param", "code"}
        assert error["message"]
        assert "Traceback" not in error["message"]


quick = settings(
    deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], print_blob=False,
    derandomize=not CHAOS,
)  # fmt: skip

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 1e308, -1e308, 1e-320, 0.1]),
    st.floats(allow_nan=True, allow_infinity=True),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\0", "\ud800", "</s>", "<|im_start|>", "{{ 1/0 }}", "a" * 5000, "../../etc/passwd", "true"]),
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """A request that was valid, until some of its parts were replaced, taken out, doubled or added."""
    body: Any = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = body
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            act = draw(st.integers(0, 3))
            if act == 0:
                place[key] = draw(junk)
            elif act == 1:
                del place[key]
            elif act == 2 and isinstance(place, list):
                place += [place[key]] * draw(st.integers(1, 300))
            elif isinstance(place, dict):
                place[draw(texts)] = draw(junk)
            break
    found: dict[str, Any] = body
    return found


@pytest.mark.parametrize("path", WHOLE)
def test_bodies_that_are_nearly_right(client: httpx2.Client, path: str):
    @settings(quick, max_examples=N_CASES // 2 // len(WHOLE))
    @given(mutated(WHOLE[path]))
    def play(body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()  # NaN, Infinity and lone surrogates among it
        answer = client.post(path, content=raw, headers={"content-type": "application/json"})
        check(answer.status_code, b"" if answer.status_code == 200 else answer.content, body)

    play()


def route_paths(live: Live) -> list[tuple[str, str]]:
    """Every route of the application with each of its methods."""
    routes = live.server.config.app.routes  # type: ignore[union-attr]
    return sorted((method, route.path) for route in routes if isinstance(route, APIRoute) for method in route.methods)


def test_bytes_that_are_no_json(live: Live, client: httpx2.Client):
    routes = route_paths(live)
    assert {path for _, path in routes} >= {*WHOLE, "/health", "/metrics", "/v1/models"}
    kinds = st.sampled_from(
        ["application/json", "text/plain", "multipart/form-data; boundary=x", "", "a/b;c=" + "d" * 99]
    )
    bodies = st.one_of(
        st.binary(max_size=200),
        st.sampled_from(
            [b"[" * 100_000, b'{"a":' * 50_000, b'{"model": ' + b"9" * 6000 + b"}", b"\xef\xbb\xbf{}", b"{}{}", b"nul",
             b'{"n": 1, "n": 2}', b'{"prompt": "\xff\xfe"}', b'{"prompt": "\\ud800"}', b'{"a": 1e999999}', b"\0" * 1000]
        ),
    )  # fmt: skip
    segments = st.sampled_from(["..", "%2e%2e", "%00", "a%2fb", "x" * 3000, "\u00fc", "{}", "%ff", "a;b", ""])

    @settings(quick, max_examples=N_CASES // 4)
    @given(st.sampled_from(routes), st.sampled_from(["GET", "POST", "DELETE", "PUT", "OPTIONS", "HEAD", "BREW"]),
           bodies, kinds, segments, st.booleans())  # fmt: skip
    def play(route: tuple[str, str], other: str, raw: bytes, kind: str, segment: str, known: bool) -> None:
        method, path = route
        path = path.replace("{name:path}", segment).replace("{name}", segment) if "{" in path else path
        method = method if known else other
        answer = client.request(method, path, content=raw, headers={"content-type": kind} if kind else {})
        is_page = answer.headers.get("content-type", "").startswith("text/plain") or method == "HEAD"
        check(answer.status_code, b"" if answer.status_code == 200 or is_page else answer.content, (method, path, raw))

    play()


def test_what_the_description_of_the_api_forbids(live: Live, client: httpx2.Client):
    """schemathesis, in its negative mode: data that does not fit what /openapi.json says."""
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    # A name in a path may be any text, so nothing that stands there is forbidden.
    with_data = [one for one in operations if one.body]
    assert {one.path for one in with_data} >= set(WHOLE)
    for operation in with_data:

        @settings(quick, max_examples=max(4, N_CASES // 4 // len(with_data) if CHAOS else 0))
        @given(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        def play(case: Any) -> None:
            answer = case.call(base_url=live.url)
            check(answer.status_code, b"" if answer.status_code == 200 else answer.content, case.body)

        play()
