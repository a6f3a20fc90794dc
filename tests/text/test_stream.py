"""A stream of tokens is the text, whatever way it is cut; stop strings never show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sash.errors import UsageError
from sash.text.stream import Detokenizer, StopMatcher
from sash.text.tokenizer import Tokenizer

SHARED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def streamed(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.flush()]


@SHARED
@given(data=st.data())
@pytest.mark.parametrize("skip_control", [True, False])
@pytest.mark.parametrize("continues", [True, False])
def test_any_ids_stream_to_what_they_decode_to(
    byte_level: Tokenizer,
    spaced: Tokenizer,
    tekken: Tokenizer,
    data: st.DataObject,
    skip_control: bool,
    continues: bool,
) -> None:
    for tokenizer in (byte_level, spaced, tekken):
        low_and_high = st.integers(0, 1400) | st.integers(0, tokenizer.vocab_size + 5)
        ids = data.draw(st.lists(low_and_high, max_size=30))
        pieces = streamed(tokenizer, ids, skip_control=skip_control, continues=continues)
        assert "".join(pieces) == tokenizer.decode(ids, skip_control=skip_control, continues=continues)


@SHARED
@given(text=st.text(max_size=60) | st.text("😀é日 \n\t", max_size=40))
def test_text_survives_the_round_trip_a_character_at_a_time(
    byte_level: Tokenizer, spaced: Tokenizer, tekken: Tokenizer, text: str
) -> None:
    for tokenizer in (byte_level, spaced, tekken):
        if tokenizer is spaced and "\N{LOWER ONE EIGHTH BLOCK}" in text:
            continue  # the character that SentencePiece writes spaces with comes back as a space
        pieces = streamed(tokenizer, tokenizer.encode(text, bos=False))
        assert "".join(pieces) == text
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces) or "\N{REPLACEMENT CHARACTER}" in text


def test_unfinished_characters_wait_and_end_as_replacements(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("😀!", bos=False)
    assert len(ids) >= 3
    pieces = streamed(byte_level, ids)
    assert [piece for piece in pieces if piece] == ["😀", "!"]
    cut = streamed(byte_level, ids[:1])
    assert cut == ["", "\N{REPLACEMENT CHARACTER}"]


def test_a_control_token_ends_a_character(byte_level: Tokenizer) -> None:
    first, *rest = byte_level.encode("é", bos=False)
    assert streamed(byte_level, [first, 2, *rest])[1] == "\N{REPLACEMENT CHARACTER}"


def test_only_the_first_space_of_a_text_goes(spaced: Tokenizer) -> None:
    ids = spaced.encode("two words")
    assert spaced.decode(ids) == "two words"
    assert spaced.decode(ids, continues=True) == " two words"
    assert spaced.decode(ids, skip_control=False) == "<s>two words"
    assert spaced.decode(spaced.encode("  two", bos=False)) == "  two"


stops_and_texts = st.tuples(
    st.lists(st.text("ab<", min_size=1, max_size=5), min_size=1, max_size=4), st.lists(st.text("ab<c", max_size=6))
)


def reference(stops: list[str], text: str) -> tuple[str, bool]:
    """The obvious way: the shortest prefix of the text that ends in a stop."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(stops_and_texts)
def test_no_stop_leaks_however_the_text_is_cut(case: tuple[list[str], list[str]]) -> None:
    stops, chunks = case
    matcher = StopMatcher(stops)
    shown, hit = "", False
    for chunk in chunks:
        text, hit = matcher.add(chunk)
        shown += text
        assert not any(stop in shown for stop in stops)
    shown += matcher.flush()
    assert (shown, hit) == reference(stops, "".join(chunks))


def test_what_cannot_be_a_stop_is_shown_at_once() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.add("Hello\n") == ("Hello", False)
    assert matcher.add("Us") == ("", False)
    assert matcher.add("ed") == ("\nUsed", False)
    assert matcher.add("x\nUser: more") == ("x", True)
    assert matcher.add("after") == ("", True)


def test_without_stops_text_passes_through() -> None:
    assert StopMatcher([]).add("anything") == ("anything", False)


@pytest.mark.parametrize("stops", [[""], "END"])
def test_stops_that_make_no_sense_are_refused(stops: Any) -> None:
    with pytest.raises(UsageError):
        StopMatcher(stops)
