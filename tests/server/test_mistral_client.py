"""Mistral's own Python client, unchanged, against a real server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from sash.loading import load_decoder
from tests.cli.conftest import write_model
from tests.server.live import NAME, Live, serving, until

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 12}
KEY = "test-key"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    lm = load_decoder(write_model(tmp_path_factory.mktemp("models") / NAME))
    with serving(lm, api_keys=(KEY,), max_rows=4) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[Mistral]:
    with Mistral(api_key=KEY, server_url=live.url) as client:
        yield client


def expected(live: Live, messages: Any = HELLO, **options: Any) -> str:
    return live.lm.chat(messages, temperature=0.0, max_tokens=12, **options).text


def test_a_chat(client: Mistral, live: Live):
    answer = client.chat.complete(messages=HELLO, **GREEDY)
    choice = answer.choices[0]
    assert choice.message is not None
    assert choice.message.content == expected(live)
    assert choice.finish_reason == "length"
    assert answer.model == NAME
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (
        12, len(live.lm.tokenizer.encode_chat(HELLO)),
    )  # fmt: skip


def test_a_stream(client: Mistral, live: Live):
    text, reasons, usages = "", [], []
    with client.chat.stream(messages=HELLO, **GREEDY) as events:
        for event in events:
            usages += [event.data.usage] if event.data.usage else []
            for choice in event.data.choices:
                assert isinstance(choice.delta.content or "", str)
                text += str(choice.delta.content or "")
                reasons += [choice.finish_reason] if choice.finish_reason else []
    assert (text, reasons) == (expected(live), ["length"])
    assert len(usages) <= 1


def test_a_seed_by_mistrals_name(client: Mistral):
    def drawn(seed: int) -> Any:
        answer = client.chat.complete(messages=HELLO, model=NAME, temperature=1.2, max_tokens=12, random_seed=seed)
        assert answer.choices[0].message is not None
        return answer.choices[0].message.content

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_guardrail(client: Mistral, live: Live):
    answer = client.chat.complete(messages=HELLO, safe_prompt=True, **GREEDY)
    assert answer.choices[0].message is not None
    assert answer.choices[0].message.content == expected(live, safe_prompt=True)
    assert answer.usage.prompt_tokens == len(live.lm.tokenizer.encode_chat(HELLO, safe_prompt=True))


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_begun_is_gone_on_with(client: Mistral, live: Live, stream: bool):
    messages = [*HELLO, {"role": "assistant", "content": "Once upon", "prefix": True}]
    ids = live.lm.tokenizer.encode_chat([*HELLO, {"role": "assistant", "content": "Once upon"}], continue_final=True)
    rest = live.lm.generate(ids, temperature=0.0, max_tokens=12).text
    if stream:
        with client.chat.stream(messages=messages, **GREEDY) as events:
            text = "".join(str(choice.delta.content or "") for event in events for choice in event.data.choices)
    else:
        answer = client.chat.complete(messages=messages, **GREEDY)
        assert answer.choices[0].message is not None
        text = str(answer.choices[0].message.content)
    assert text.startswith("Once upon")
    assert text.removeprefix("Once upon").strip() == rest.strip()


def test_n_stop_and_penalties(client: Mistral):
    answer = client.chat.complete(messages=HELLO, model=NAME, max_tokens=8, n=3, temperature=1.0, random_seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    whole = client.chat.complete(messages=HELLO, **{**GREEDY, "max_tokens": 40}).choices[0].message
    assert whole is not None
    assert isinstance(whole.content, str)
    stop = whole.content[5:8]
    stopped = client.chat.complete(messages=HELLO, **{**GREEDY, "max_tokens": 40}, stop=stop).choices[0]
    assert stopped.message is not None
    assert (stopped.message.content, stopped.finish_reason) == (whole.content[: whole.content.index(stop)], "stop")
    other = client.chat.complete(messages=HELLO, **{**GREEDY, "max_tokens": 40}, frequency_penalty=2.0).choices[0]
    assert other.message is not None
    assert other.message.content != whole.content


def test_models(client: Mistral):
    cards = client.models.list().data
    assert cards is not None
    assert [card.id for card in cards] == [NAME]
    card = client.models.retrieve(model_id=NAME)
    assert card.capabilities.completion_chat is True
    assert card.capabilities.function_calling in (True, False)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "nobody"}, 404),
        ({"temperature": -1.0}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y.png"}]}]}, 400),
        ({"n": 1000}, 400),
    ],
)
def test_errors(client: Mistral, changes: dict[str, Any], status: int):
    with pytest.raises(SDKError) as caught:
        client.chat.complete(**{"messages": HELLO, **GREEDY, **changes})
    assert caught.value.status_code == status
    assert '"error":{"message":' in caught.value.body


def test_a_wrong_key(live: Live):
    with Mistral(api_key="wrong", server_url=live.url) as client, pytest.raises(SDKError) as caught:
        client.chat.complete(messages=HELLO, **GREEDY)
    assert caught.value.status_code == 401


def test_a_stream_that_is_left(client: Mistral, live: Live):
    with client.chat.stream(messages=HELLO, **{**GREEDY, "max_tokens": 100_000}) as events:
        next(iter(events))
        assert live.service.figures().running == 1
    until(live.free)


def test_the_async_client(live: Live):
    async def talk() -> list[Any]:
        async with Mistral(api_key=KEY, server_url=live.url) as client:
            jobs = [client.chat.complete_async(messages=HELLO, **GREEDY) for _ in range(4)]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*jobs)]

    assert asyncio.run(talk()) == [expected(live)] * 4
