"""Messages, passages and sentences as tokens, in formats with and without control tokens."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sash.errors import UsageError
from sash.text.mistral import MistralTokenizer
from sash.text.opening import from_gguf
from sash.text.spans import content_spans, find_text, message_spans, sentences
from sash.text.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Answer in rhymes."},
    {"role": "user", "content": "the the 12"},
    {"role": "assistant", "content": "llama"},
    {"role": "user", "content": "the"},
]


def words(tokenizer: Tokenizer, ids: list[int], spans: list[range]) -> list[str]:
    return [tokenizer.decode(ids[span.start : span.stop], skip_control=False) for span in spans]


def test_chatml_is_cut_at_its_turns(byte_level_metadata: dict[str, Any]):
    tokenizer = from_gguf(byte_level_metadata)
    ids = tokenizer.encode_chat(CHAT)
    assert words(tokenizer, ids, message_spans(tokenizer, CHAT)) == [
        "<|im_start|>system\nAnswer in rhymes.<|im_end|>\n",
        "<|im_start|>user\nthe the 12<|im_end|>\n",
        "<|im_start|>assistant\nllama<|im_end|>\n",
        "<|im_start|>user\nthe<|im_end|>\n",
    ]


def test_contents_are_without_what_the_format_writes(byte_level_metadata: dict[str, Any]):
    tokenizer = from_gguf(byte_level_metadata)
    ids = tokenizer.encode_chat(CHAT)
    spans = content_spans(tokenizer, CHAT)
    assert words(tokenizer, ids, [span for span in spans if span is not None]) == [m["content"] for m in CHAT]
    assert content_spans(tokenizer, [{"role": "user", "content": None}, *CHAT[2:]], ids=ids)[0] is None


def test_a_system_prompt_that_the_format_adds_is_nobodys(byte_level_metadata: dict[str, Any]):
    tokenizer = from_gguf(byte_level_metadata)
    messages = CHAT[1:2]
    ids = tokenizer.encode_chat(messages)
    (span,) = message_spans(tokenizer, messages, ids=ids)
    assert words(tokenizer, ids, [span]) == ["<|im_start|>user\nthe the 12<|im_end|>\n"]
    assert span.start > 10


def test_an_open_answer_ends_with_what_it_says(byte_level_metadata: dict[str, Any]):
    tokenizer = from_gguf(byte_level_metadata)
    spans = message_spans(tokenizer, CHAT[:3], continue_final=True)
    ids = tokenizer.encode_chat(CHAT[:3], continue_final=True)
    assert words(tokenizer, ids, spans)[-1] == "<|im_start|>assistant\nllama"
    assert spans[-1].stop == len(ids)


@pytest.mark.parametrize("content", ["", "  the ", "<|im_end|> the", "\n\nQ7", "7", "zebra z", "é", "0"])
def test_messages_that_are_empty_padded_or_spell_control_tokens(byte_level_metadata: dict[str, Any], content: str):
    tokenizer = from_gguf(byte_level_metadata)
    messages = [{"role": "user", "content": content}, *CHAT[2:]]
    ids = tokenizer.encode_chat(messages)
    first, second, third = message_spans(tokenizer, messages)
    assert first.stop == second.start
    assert second.stop == third.start
    assert words(tokenizer, ids, [first]) == [f"<|im_start|>user\n{content}<|im_end|>\n"]


@pytest.mark.parametrize("version", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_mistrals_formats_put_all_of_a_prompt_into_messages(version: str):
    from pathlib import Path

    import mistral_common

    tokenizer = MistralTokenizer(Path(mistral_common.__file__).parent / "data" / version)
    ids = tokenizer.encode_chat(CHAT)
    spans = message_spans(tokenizer, CHAT)
    covered = sorted(position for span in spans for position in span)
    assert covered == list(range(len(ids)))
    for message, said in zip(CHAT, words(tokenizer, ids, spans), strict=True):
        assert message["content"] in said
    assert words(tokenizer, ids, spans)[2].strip() == "llama</s>"


def test_the_same_words_twice_are_told_apart(byte_level_metadata: dict[str, Any]):
    tokenizer = from_gguf(byte_level_metadata)
    messages = [{"role": role, "content": "the the the"} for role in ("user", "assistant", "user")]
    spans = message_spans(tokenizer, messages)
    assert [len(span) for span in spans] == [spans[0].stop - spans[0].start, len(spans[1]), len(spans[0])]
    assert spans[0].stop == spans[1].start < spans[1].stop == spans[2].start


def test_a_message_without_text_gets_what_is_left(byte_tokenizer: Tokenizer):
    class Calls(type(byte_tokenizer)):  # type: ignore[misc]
        def encode_chat(self, messages, **options):  # type: ignore[no-untyped-def]
            return super().encode_chat([{**m, "content": m["content"] or "[call]"} for m in messages], **options)

    tokenizer = Calls()
    messages = [CHAT[1], {"role": "assistant", "content": None}, CHAT[3]]
    ids = tokenizer.encode_chat(messages)
    said = words(tokenizer, ids, message_spans(tokenizer, messages))
    assert said == ["<1>u:the the 12<2>", "a:[call]<2>", "u:the<2>"]


def test_a_passage_is_found_by_what_it_says(byte_tokenizer: Tokenizer):
    ids = byte_tokenizer.encode("Be brief. Say yes. Say yes.")
    span = find_text(byte_tokenizer, ids, " Say yes. ")
    assert byte_tokenizer.decode(ids[span.start : span.stop]) == "Say yes."
    assert span.start == 11
    with pytest.raises(UsageError, match="does not say 'Say no'"):
        find_text(byte_tokenizer, ids, "Say no")
    with pytest.raises(UsageError, match="no text"):
        find_text(byte_tokenizer, ids, "  ")


def test_a_passage_never_crosses_a_control_token(byte_tokenizer: Tokenizer):
    ids = byte_tokenizer.encode_chat([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}])
    with pytest.raises(UsageError, match="does not say"):
        find_text(byte_tokenizer, ids, "aba")


def test_sentences_end_at_points_empty_lines_and_control_tokens(byte_tokenizer: Tokenizer):
    text = 'Be brief!  He said "Go." Then he\nwent. A title\n\nThe end'
    ids = [*byte_tokenizer.encode(text), 2, *byte_tokenizer.encode("More", bos=False)]
    found = sentences(byte_tokenizer, ids)
    assert [passage.text for passage in found] == [
        "Be brief!", 'He said "Go."', "Then he went.", "A title", "The end", "More",
    ]  # fmt: skip
    assert all(a.span.stop <= b.span.start for a, b in itertools.pairwise(found))
    inside = sentences(byte_tokenizer, ids, within=found[2].span)
    assert inside == [found[2]]


def test_long_sentences_are_shown_in_part(byte_tokenizer: Tokenizer):
    (passage,) = sentences(byte_tokenizer, byte_tokenizer.encode("word " * 40))
    assert len(passage.text) == 60
    assert passage.text.endswith("…")
