"""Speculation as a user asks for it: same answers from generate, streams, sessions and chats."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.lm import LM
from sash.sampling import SamplingParams
from sash.speculation import DraftModel, PromptLookup
from tests.conftest import ByteTokenizer, small_config, small_decoder
from tests.test_lm import GREEDY, TEXT, make_lm

LONG = {**GREEDY, "max_tokens": 32}


def other_lm(seed: int = 8) -> LM:
    """A smaller model of the same vocabulary."""
    config = small_config([AttentionPattern(window=6)], vocab_size=259)
    return LM(small_decoder(config, seed=seed), ByteTokenizer(), name="smaller", chunk=16)


@pytest.mark.parametrize(
    ("how", "temperature"), [("lookup", 0.0), (3, 0.9), ("itself", 0.0), ("itself", 0.9), ("another", 0.0)]
)
def test_answers_are_those_of_plain_decoding(how: object, temperature: float) -> None:
    lm = make_lm()
    speculate = {"itself": DraftModel(make_lm(), least=0.0), "another": DraftModel(other_lm(), least=0.0)}.get(how, how)  # type: ignore[call-overload]
    sampling = {**LONG, "temperature": temperature, "seed": 5, "stop": ("zz",)}
    prompts = [TEXT[:60], "Short."]
    plain, quick = lm.generate(prompts, **sampling), lm.generate(prompts, speculate=speculate, **sampling)
    for one, two in zip(plain, quick, strict=True):
        assert (one.token_ids, one.text, one.finish_reason) == (two.token_ids, two.text, two.finish_reason)
        assert one.stats.drafted_tokens == one.stats.accepted_tokens == 0
        assert 0 <= two.stats.accepted_tokens <= two.stats.drafted_tokens
    drafted = sum(one.stats.drafted_tokens for one in quick)
    if how in ("itself", "another"):
        assert drafted > 0
    if how == "itself" and not temperature:
        assert sum(one.stats.accepted_tokens for one in quick) == drafted


@settings(max_examples=8, deadline=None)
@given(
    stops=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    texts=st.lists(st.sampled_from(["abcabcabc", "x", TEXT[:50], "qrst" * 8]), min_size=1, max_size=3),
    lookup=st.booleans(),
    close_at=st.integers(1, 12),
)
def test_sessions_go_on_as_plain_ones_wherever_answers_end(stops, texts, lookup, close_at) -> None:
    lm = make_lm(AttentionPattern(window=5, pins=1), AttentionPattern(window=9))
    quick = lm.with_speculation("lookup" if lookup else DraftModel(make_lm(), least=0.0))
    sessions = [lm.session(), quick.session()]
    for text, n_tokens in zip(texts, stops, strict=False):
        answers = []
        for session in sessions:
            session.feed(text)
            stream = session.stream(SamplingParams(temperature=0.0, max_tokens=n_tokens, ignore_eos=True))
            for count, _ in enumerate(stream, 1):
                if count == close_at:
                    break
            stream.close()
            answers.append(stream.completion.token_ids)
        assert answers[0] == answers[1]
        assert sessions[0].tokens == sessions[1].tokens
        caches = [session._cache for session in sessions]
        assert caches[0].lengths == caches[1].lengths
        for one, two in zip(caches[0].stores.values(), caches[1].stores.values(), strict=True):
            assert one.positions == two.positions  # type: ignore[union-attr]
    twins = [session.fork() for session in sessions]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    assert twins[0].generate(params).token_ids == twins[1].generate(params).token_ids


def test_a_stop_string_among_guesses_leaves_the_session_where_plain_decoding_does() -> None:
    lm = make_lm()
    whole = lm.generate(TEXT, **LONG).text
    stop = whole[12:15]
    sessions = [lm.session(), lm.with_speculation(DraftModel(make_lm(), k=9, least=0.0)).session()]
    params = SamplingParams(temperature=0.0, max_tokens=60, stop=(stop,), ignore_eos=True)
    answers = []
    for session in sessions:
        session.feed(TEXT)
        answers.append(session.generate(params))
    assert answers[0].finish_reason == "stop"
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[1].stats.accepted_tokens > 2
    assert sessions[0].tokens == sessions[1].tokens
    assert sessions[0]._cache.lengths == sessions[1]._cache.lengths
    assert sessions[0].generate(params).token_ids == sessions[1].generate(params).token_ids


def test_chats_and_windows_keep_what_guesses() -> None:
    lm = make_lm(AttentionPattern(window=16))
    quick = lm.with_speculation(DraftModel(make_lm(AttentionPattern(window=16)), least=0.0))
    answers = []
    for model in (lm, quick.with_window(9)):
        chat = (model if model is not lm else lm.with_window(9)).conversation("Be brief.")
        said = []
        for question in ("hello", "and now?"):
            stream = chat.say(question, SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
            said.append("".join(stream))
        answers.append((said, stream.completion.stats.drafted_tokens))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == 0 < answers[1][1]
    messages = [{"role": "user", "content": "hello"}]
    assert quick.chat(messages, **LONG).token_ids == lm.chat(messages, **LONG).token_ids
    assert quick.stream(TEXT, **LONG).completion.stats.drafted_tokens == 0
    assert quick.with_speculation(None).speculation is None


@pytest.mark.parametrize("wanted", ["soon", True, 0, 99, 2.5, object()])
def test_what_cannot_guess_is_refused(wanted: object) -> None:
    with pytest.raises(UsageError):
        make_lm().with_speculation(wanted)


def test_what_is_chosen_anew_for_every_token_cannot_be_guessed_ahead() -> None:
    lm = make_lm(AttentionPattern(window=64), AttentionPattern(window=64))
    quick = lm.with_speculation()
    for other in (lambda one: one.with_overlap(8), lambda one: one.with_recall(16, block=8)):
        with pytest.raises(UsageError):
            other(quick)
        with pytest.raises(UsageError):
            other(lm).with_speculation()


def test_a_model_of_another_vocabulary_cannot_guess() -> None:
    config = small_config([AttentionPattern(window=6)], vocab_size=300)
    other = LM(small_decoder(config), ByteTokenizer(), name="other")
    with pytest.raises(UsageError, match="another vocabulary"):
        make_lm().generate("x", speculate=other)


def test_a_small_model_that_is_cut_back_reads_again() -> None:
    lm = other_lm()
    follower = DraftModel(lm, least=0.0).open()
    ids = lm.tokenizer.encode(TEXT)[:50]
    follower.extend(ids)
    first = follower.propose(4)
    follower.extend([*first, 7, 7])
    follower.propose(4)
    follower.cut(50)
    follower.cut(40)
    follower.extend(ids[40:])
    assert follower.propose(4) == first
    assert follower.tokens == ids
    assert PromptLookup().open().propose(3) == []
