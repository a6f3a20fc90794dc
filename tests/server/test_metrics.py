"""/metrics, /health, /v1/models, /tokenize, /docs: what a server says of itself."""

from prometheus_client.parser import text_string_to_metric_families


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").content.decode())
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k != "model_name"))): s.value
        for family in families
        for s in family.samples
    }


def test_every_token_is_counted(running, client, until):
    before = samples(client)
    usage = client.chat("x" * 60, max_tokens=9, ignore_eos=True).json["usage"]
    client.chat(model="gpt-4")
    running.wait_idle()
    refused = ("sash_requests_refused_total", (("status", "404"),))
    until(lambda: samples(client).get(refused, 0) > before.get(refused, 0))  # told after the answer was sent
    after = samples(client)

    def grown(name, **labels):
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert grown("sash_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("sash_generation_tokens_total") == usage["completion_tokens"] == 9
    assert grown("sash_request_success_total", finished_reason="length") == 1
    assert grown("sash_requests_refused_total", status="404") == 1
    assert grown("sash_time_to_first_token_seconds_count") == 1
    assert grown("sash_inter_token_latency_seconds_count") == 8
    assert grown("sash_e2e_request_latency_seconds_count") == 1
    assert grown("sash_window_tokens_evicted_total") > 0
    assert after["sash_num_requests_running", ()] == 0
    assert ("sash_kv_bytes", (("kind", "full_equivalent"),)) in after


def test_answers_that_nobody_waits_for_are_counted_too(running, client, until):
    def cancelled():
        return samples(client).get(("sash_request_success_total", (("finished_reason", "cancelled"),)), 0)

    before = cancelled()
    wire = client.socket()
    body = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":100000,"ignore_eos":true}'
    wire.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    running.wait_busy(1)
    wire.close()
    until(lambda: cancelled() == before + 1)
    running.wait_idle()


def test_health_and_models(running, client):
    health = client.get("/health")
    assert (health.status, health.json["status"]) == (200, "ok")
    (card,) = client.get("/v1/models").json["data"]
    assert client.get("/v1/models/small").json == card
    assert card["capabilities"]["completion_chat"] is True
    assert card["attention"]["window"] == 24
    assert card["attention"]["pattern"] == ["sliding", "sliding"]
    assert card["attention"]["kv_bytes_per_sequence"] == running.lm.cache().nbytes


def test_tokens_and_back(running, client):
    ids = running.lm.tokenizer.encode("häl")
    answer = client.post("/tokenize", {"prompt": "häl", "return_token_strs": True}).json
    assert answer["tokens"] == ids
    assert answer["count"] == len(ids) == len(answer["token_strs"])
    assert client.post("/detokenize", {"tokens": ids[1:]}).json == {"prompt": "häl"}
    messages = [{"role": "user", "content": "x"}]
    chat = client.post("/tokenize", {"messages": messages}).json
    assert chat["tokens"] == running.lm.tokenizer.encode_chat(messages)
    assert client.post("/tokenize", {}).status == 400
    assert client.post("/detokenize", {"tokens": [-1]}).status == 400
    assert client.post("/detokenize", {"tokens": [2**31 - 1]}).status == 200


def test_operations_are_listed_without_scripts_from_elsewhere(client):
    docs = client.get("/docs")
    assert docs.status == 200
    assert b"/v1/chat/completions" in docs.content
    assert b"<script" not in docs.content
    assert b"http" not in docs.content.replace(b"HTTP", b"")
    schema = client.get("/openapi.json").json
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/health"} <= set(schema["paths"])
    assert "messages" in schema["components"]["schemas"]["ChatRequest"]["properties"]


def test_the_page_brings_its_own_policy_or_says_that_it_is_not_built(client):
    page = client.get("/")
    assert page.status in (200, 404)
    if page.status == 200:
        assert "default-src 'none'" in page.headers["content-security-policy"]
        again = client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status, again.content) == (304, b"")
    else:
        assert b"build" in page.content


def test_sessions_are_named_ends_of_conversations(running, client):
    answer = client.chat("x", session="s1").json
    client.chat("y", session="s2", stream=True)
    listed = client.get("/v1/sessions").json["data"]
    assert [session["id"] for session in listed] == ["s2", "s1"]
    one = client.get("/v1/sessions/s1").json
    assert one["n_tokens"] == answer["usage"]["total_tokens"]
    assert one["turns"] == 1
    assert one["window"] == answer["window"]
    assert client.request("DELETE", "/v1/sessions/s1").json["deleted"] is True
    assert client.get("/v1/sessions/s1").status == 404
    assert client.chat("x", session="../s").status == 400
