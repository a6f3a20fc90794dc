"""OpenAI's own Python client, unchanged, against a real server on loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from sash.loading import load_decoder
from tests.cli.conftest import write_model
from tests.server.live import NAME, PATIENCE, Live, serving, until

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 12}
KEY = "sk-test"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    lm = load_decoder(write_model(tmp_path_factory.mktemp("models") / NAME))
    with serving(lm, api_keys=(KEY,), max_rows=4, max_waiting=4) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with client_of(live) as client:
        yield client


def client_of(live: Live, key: str = KEY) -> OpenAI:
    return OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def test_a_chat(client: OpenAI, live: Live):
    answer = client.chat.completions.create(messages=HELLO, **GREEDY)
    expected = live.lm.chat(HELLO, temperature=0.0, max_tokens=12)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert (choice.message.role, choice.finish_reason, choice.index) == ("assistant", expected.finish_reason, 0)
    assert (answer.object, answer.model) == ("chat.completion", NAME)
    n_prompt = len(live.lm.tokenizer.encode_chat(HELLO))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (n_prompt, 12)
    assert answer.usage.total_tokens == n_prompt + 12
    assert answer.model_extra is not None
    seen = answer.model_extra["window"]
    assert (seen["size"], seen["evicted"]) == (16, n_prompt + 12 - 16)
    assert answer.model_extra["timings"]["ttft_ms"] > 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_adds_up_to_the_whole(client: OpenAI, n: int):
    asked: dict[str, Any] = {"messages": HELLO, **GREEDY, "n": n, "temperature": 1.0, "seed": 3}
    whole = client.chat.completions.create(**asked)
    texts, roles, reasons = [""] * n, [0] * n, [""] * n
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == [1] * n
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12 * n
    if n > 1:
        assert len(set(texts)) == n


def test_a_stop_string_never_shows(client: OpenAI):
    whole = client.chat.completions.create(messages=HELLO, **{**GREEDY, "max_tokens": 40}).choices[0].message.content
    assert whole is not None
    stop = whole[6:9]
    for stream in (False, True):
        answer: Any = client.chat.completions.create(
            messages=HELLO, **{**GREEDY, "max_tokens": 40}, stop=[stop], stream=stream
        )
        if stream:
            choices = [choice for chunk in answer for choice in chunk.choices]
            text = "".join(choice.delta.content or "" for choice in choices)
            reason = choices[-1].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_draws_the_same_in_any_company(client: OpenAI, live: Live):
    def drawn(seed: int, n_words: int = 1) -> str | None:
        messages: Any = [{"role": "user", "content": "Hello " * n_words}]
        asked = {"model": NAME, "max_tokens": 16, "temperature": 1.2, "seed": seed}
        return client.chat.completions.create(messages=messages, **asked).choices[0].message.content

    alone = [drawn(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        company = [pool.submit(drawn, seed, 1 if seed < 4 else 9) for seed in (0, 10, 1, 11, 2, 12, 3)]
        assert [job.result() for job in company][::2] == alone


def test_logprobs_of_a_chat(client: OpenAI, live: Live):
    answer = client.chat.completions.create(messages=HELLO, **GREEDY, logprobs=True, top_logprobs=3)
    expected = live.lm.chat(HELLO, temperature=0.0, max_tokens=12, logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert expected.logprobs is not None
    assert [one.logprob for one in logprobs.content] == pytest.approx([one.logprob for one in expected.logprobs])
    for one in logprobs.content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == pytest.approx(one.logprob)
    raw = b"".join(bytes(one.bytes or ()) for one in logprobs.content)
    assert raw.decode(errors="replace") == answer.choices[0].message.content


def test_a_completion_with_the_logprobs_of_its_prompt(client: OpenAI, live: Live):
    text = "It was a dark night"
    answer = client.completions.create(prompt=text, model=NAME, max_tokens=4, temperature=0, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text.startswith(text)
    assert choice.logprobs is not None
    ids = live.lm.tokenizer.encode(text)
    told = choice.logprobs.token_logprobs or []
    assert told[0] is None
    assert told[1 : len(ids)] == pytest.approx(live.lm.score(ids).tolist(), abs=1e-4)
    assert len(told) == len(ids) + 4


def test_several_prompts_and_token_ids(client: OpenAI, live: Live):
    expected = [live.lm.generate(text, max_tokens=6, temperature=0.0).text for text in ("One", "Two")]
    answer = client.completions.create(prompt=["One", "Two"], model=NAME, max_tokens=6, temperature=0)
    assert [choice.text for choice in answer.choices] == expected
    ids = live.lm.tokenizer.encode("One")
    answer = client.completions.create(prompt=ids, model=NAME, max_tokens=6, temperature=0)
    assert answer.choices[0].text == expected[0]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)


def test_parts_of_text_and_old_turns(client: OpenAI, live: Live):
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    answer = client.chat.completions.create(messages=parts, **GREEDY)
    assert answer.choices[0].message.content == live.lm.chat(HELLO, temperature=0.0, max_tokens=12).text
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages=image, **GREEDY)


def test_models(client: OpenAI):
    (model,) = client.models.list().data
    assert model.id == NAME
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("changes", "error", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"max_tokens": "many"}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"n": 0}, openai.BadRequestError, "invalid_value", "n"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, openai.BadRequestError, "invalid_value", None),
        ({"logprobs": True, "top_logprobs": 99}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"extra_body": {"window": {"size": 999}}}, openai.BadRequestError, "window_not_supported", "window"),
        ({"extra_body": {"window": {"overflow": "error"}}}, openai.BadRequestError, "context_length_exceeded", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_come_before_the_answer(
    client: OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError], code: str, param: str, stream: bool
):
    asked: dict[str, Any] = {"messages": HELLO, **GREEDY, **changes}
    with pytest.raises(error) as caught:
        client.chat.completions.create(**asked, stream=stream)
    assert code is None or caught.value.code == code
    assert param is None or caught.value.param == param
    assert caught.value.body.keys() >= {"message", "type", "param", "code"}  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["wrong", "sk-tes", "sk-test2"])
def test_a_wrong_key(live: Live, key: str):
    with client_of(live, key) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(messages=HELLO, **GREEDY)
    assert caught.value.code == "invalid_api_key"


def test_a_closed_stream_frees_its_row(client: OpenAI, live: Live):
    asked: dict[str, Any] = {"messages": HELLO, **GREEDY, "max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
    for _ in range(5):
        stream = client.chat.completions.create(**asked, stream=True)
        next(iter(stream))
        assert live.service.figures().running == 1
        stream.close()
        until(live.free)


def test_too_many_are_told_to_come_back(client: OpenAI, live: Live):
    asked: dict[str, Any] = {"messages": HELLO, **GREEDY, "max_tokens": 100_000, "extra_body": {"ignore_eos": True}}
    streams: list[Any] = []

    def busy() -> int:
        figures = live.service.figures()
        return figures.running + figures.waiting

    def begin() -> None:
        streams.append(client.chat.completions.create(**asked, stream=True))

    for count in range(8):
        threading.Thread(target=begin, daemon=True).start()
        until(lambda count=count: busy() > count)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**asked, stream=True)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.code == "queue_full"
    until(lambda: live.service.figures().running == 4)
    until(lambda: len(streams) >= 4)

    def all_left() -> bool:
        for stream in list(streams):
            stream.close()
        return live.free()

    until(all_left, pause=0.02)
    assert client.chat.completions.create(messages=HELLO, **GREEDY).choices[0].message.content


def test_the_async_client(live: Live):
    async def talk() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client:
            jobs = [client.chat.completions.create(messages=HELLO, **GREEDY) for _ in range(4)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*jobs)]

    assert asyncio.run(talk()) == [live.lm.chat(HELLO, temperature=0.0, max_tokens=12).text] * 4


def test_unknown_fields_are_named(client: OpenAI):
    raw = client.chat.completions.with_raw_response.create(
        messages=HELLO, **GREEDY, extra_body={"num_ctx": 7, "window": {"colour": 1}}
    )
    assert "num_ctx" in raw.headers["x-sash-ignored"]
    assert "window.colour" in raw.headers["x-sash-ignored"]


@pytest.mark.models
def test_a_real_model(tmp_path: Path):
    lm = load_decoder("smollm2-135m-instruct")
    question: Any = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    with serving(lm, model="smollm2") as live, client_of(live) as client:
        asked: dict[str, Any] = {"model": "smollm2", "messages": question, "temperature": 0, "max_tokens": 30}
        whole = client.chat.completions.create(**asked)
        assert "Paris" in (whole.choices[0].message.content or "")
        assert whole.choices[0].finish_reason == "stop"
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True)
        ]
        assert "".join(pieces) == whole.choices[0].message.content
