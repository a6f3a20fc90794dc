"""Mistral's tokenizers: chats byte for byte mistral-common's, and no control token out of text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mistral_common
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Common

from sash.errors import TokenizerError, UsageError
from sash.text.mistral import MistralTokenizer, find_file
from sash.text.opening import from_folder
from sash.text.tokenizer import GUARDRAIL

FILES = Path(mistral_common.__file__).parent / "data"
NAMES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v3-tekken": "tekken_240718.json",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
KINDS = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hi  there\n")],
    [("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two 😀"), ("user", "日本")],
    [("system", "S"), ("user", "a [INST] b </s>"), ("assistant", "c"), ("user", "[/INST] d [SYSTEM_PROMPT]")],
    [("user", "first"), ("user", "second")],
]


TEXTS = ["Hello world", "  two  spaces ", "tabs\t\n\n\nlines", "日本語 😀 é", "1999 + 3.14", "[INST] </s> <s>", ""]


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[MistralTokenizer, Common]:
    path = FILES / NAMES[request.param]
    return MistralTokenizer(path), Common.from_file(path)


def messages_of(conversation: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in conversation]


def expected(common: Common, conversation: list[tuple[str, str]], *, prefix: bool = False) -> list[int]:
    turns = [KINDS[role](content=content) for role, content in conversation]
    if prefix:
        turns[-1].prefix = True
    return common.encode_chat_completion(ChatCompletionRequest(messages=turns)).tokens


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_chats_are_mistral_commons(pair: tuple[MistralTokenizer, Common], conversation: list[tuple[str, str]]) -> None:
    ours, common = pair
    assert ours.encode_chat(messages_of(conversation)) == expected(common, conversation)


def test_the_last_message_can_stay_open(pair: tuple[MistralTokenizer, Common]) -> None:
    ours, common = pair
    conversation = [("user", "Count"), ("assistant", "one, two,")]
    ids = ours.encode_chat(messages_of(conversation), continue_final=True)
    assert ids == expected(common, conversation, prefix=True)
    assert ids[-1] not in ours.eos_ids


def test_safe_prompt_is_a_system_message_in_front(pair: tuple[MistralTokenizer, Common]) -> None:
    ours, common = pair
    assert ours.encode_chat(messages_of([("user", "Hi")]), safe_prompt=True) == expected(
        common, [("system", GUARDRAIL), ("user", "Hi")]
    )
    merged = [("system", f"{GUARDRAIL}\n\nBe brief."), ("user", "Hi")]
    own = messages_of([("system", "Be brief."), ("user", "Hi")])
    assert ours.encode_chat(own, safe_prompt=True) == expected(common, merged)


def test_plain_text_equals_mistral_common_both_ways(pair: tuple[MistralTokenizer, Common]) -> None:
    ours, common = pair
    inner = common.instruct_tokenizer.tokenizer
    for text in [
        "Hello world",
        "  two  spaces ",
        "tabs\t\n\n\nlines",
        "日本語 😀 é",
        "1999 + 3.14",
        "[INST] </s> <s>",
        "",
    ]:
        ids = ours.encode(text)
        assert ids == inner.encode(text, bos=True, eos=False)
        assert ours.decode(ids) == inner.decode(ids) == text


def test_what_is_known_of_the_tokenizers(pair: tuple[MistralTokenizer, Common]) -> None:
    ours, common = pair
    assert ours.has_chat
    assert ours.mask_id is None
    assert (ours.bos_id, ours.eos_ids) == (1, {2})
    assert ours.vocab_size == common.instruct_tokenizer.tokenizer.n_words
    assert ours.kind.endswith(f"{ours.version} (mistral-common)")
    assert ours.token_text(1) == "<s>"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_message_becomes_a_control_token(pair: tuple[MistralTokenizer, Common], data: st.DataObject) -> None:
    ours, _ = pair
    spelled = st.sampled_from([ours.token_text(token_id) for token_id in sorted(ours.control_ids)[:40]])
    content = data.draw(st.lists(spelled | st.text(max_size=8), min_size=1, max_size=6).map("".join))
    assert ours.control_ids.isdisjoint(ours.encode(content, bos=False))
    plain = [token_id for token_id in ours.encode_chat(messages_of([("user", "x")])) if token_id in ours.control_ids]
    ids = ours.encode_chat(messages_of([("user", content)]))
    assert [token_id for token_id in ids if token_id in ours.control_ids] == plain


def test_refusals_are_tokenizer_errors(pair: tuple[MistralTokenizer, Common]) -> None:
    ours, _ = pair
    with pytest.raises(TokenizerError, match="conversation"):
        ours.encode_chat(messages_of([("user", "a"), ("assistant", "b")]))
    with pytest.raises(UsageError, match="role"):
        ours.encode_chat([{"role": "wizard", "content": "x"}])
    with pytest.raises(UsageError, match="continue_final"):
        ours.encode_chat(messages_of([("user", "a")]), continue_final=True)


@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v7"])
def test_a_bare_model_file_tells_its_version(tmp_path: Path, name: str) -> None:
    shutil.copy(FILES / NAMES[name], tmp_path / "tokenizer.model")
    (tmp_path / "params.json").write_text("{}")
    bare, named = from_folder(tmp_path), MistralTokenizer(FILES / NAMES[name])
    assert isinstance(bare, MistralTokenizer)
    assert bare.version == name
    messages = messages_of(CONVERSATIONS[3])
    assert bare.encode_chat(messages) == named.encode_chat(messages)


def test_the_files_of_a_folder_by_preference(tmp_path: Path) -> None:
    assert find_file(tmp_path) is None
    (tmp_path / "tokenizer.model").touch()
    assert find_file(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert find_file(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    assert find_file(tmp_path) == tmp_path / "tokenizer.model"
    for name in ("tokenizer.model.v3", "tokenizer.model.v11", "tekken.json"):
        (tmp_path / name).touch()
        assert find_file(tmp_path) == tmp_path / name


def test_broken_files_give_one_error(tmp_path: Path) -> None:
    good = (FILES / NAMES["v1"]).read_bytes()
    for content in (b"", b"\xff" * 100, good[:1000], good[: len(good) // 2] + b"\x00" * 50):
        (tmp_path / "tokenizer.model.v1").write_bytes(content)
        with pytest.raises(TokenizerError):
            from_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"config": {}}',
        b'{"config": {"pattern": "(a+)+$", "default_vocab_size": 300, "default_num_special_tokens": 10}}',
        b'{"config": {"pattern": "a", "default_vocab_size": 1e99, "default_num_special_tokens": 10}}',
        b'{"config": {"pattern": "a", "default_vocab_size": 10000000000, "default_num_special_tokens": 10}}',
        b'{"config": {"pattern": "a", "default_vocab_size": 300, "default_num_special_tokens": 10, "version": "v3"}}',
    ],
)
def test_broken_tekken_files_give_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tekken.json").write_bytes(content)
    with pytest.raises(TokenizerError):
        from_folder(tmp_path)
