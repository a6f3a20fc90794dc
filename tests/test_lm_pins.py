"""Pins by message, passage and position, and audits, through the object that a user holds."""

from __future__ import annotations

import pytest

from sash.attention.pattern import AttentionPattern
from sash.completion import View
from sash.errors import PinsError, UsageError
from sash.explain.reach import cone
from sash.lm import LM
from sash.network.batch import Batch
from sash.sampling import SamplingParams
from tests.conftest import ByteTokenizer, small_config, small_decoder

GREEDY = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
INSTRUCTION = "Answer in rhymes."
TEXT = f"{INSTRUCTION} " + "The quick brown fox jumps over the lazy dog. " * 4
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many dogs sleep in the yard, and how many foxes jump? " * 3},
]


def make_lm(*patterns: AttentionPattern, chunk: int = 16) -> LM:
    layers = list(patterns) or [AttentionPattern(window=30), AttentionPattern(window=20)]
    config = small_config(layers, vocab_size=259)
    return LM(small_decoder(config, seed=3), ByteTokenizer(), name="small", chunk=chunk)


def expected(lm: LM, ids: list[int], pins: list[range], n: int) -> list[int]:
    """Greedy tokens by one forward a token, without a cache, over the pattern that pins by flag."""
    pinned = {at for span in pins for at in span}
    decoder = small_decoder(lm.config.with_window(None, len(pinned), pin_by="flag"), seed=3)
    ids = list(ids)
    for _ in range(n):
        batch = Batch.pack([ids], pinned=[[at in pinned for at in range(len(ids))]])
        ids.append(int(decoder.logits(decoder(batch)[-1:])[0].argmax()))
    return ids[-n:]


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("pins", [f"text:{INSTRUCTION}", [range(3, 9), "text:quick"]])
def test_pinned_passages_stay_visible_in_every_chunk(pins, chunk: int):
    lm = make_lm(chunk=chunk)
    ids = lm.tokenizer.encode(TEXT)
    spans = [range(1, 18)] if isinstance(pins, str) else [range(3, 9), range(23, 28)]
    written = lm.generate(TEXT, pins=pins, pin_budget=20, **GREEDY)
    assert list(written.token_ids) == expected(lm, ids, spans, 8)
    assert written.stats.view.pinned == sum(map(len, spans))
    assert list(lm.generate(TEXT, **GREEDY).token_ids) != list(written.token_ids)


def test_a_stream_is_pinned_and_audited_as_an_answer_is():
    lm = make_lm()
    asked = {"pins": f"text:{INSTRUCTION}", "pin_budget": 20, "audit": True, **GREEDY}
    whole, stream = lm.generate(TEXT, **asked), lm.stream(TEXT, **asked)
    assert "".join(stream) == whole.text == stream.completion.text
    assert (stream.completion.token_ids, stream.completion.audit) == (whole.token_ids, whole.audit)
    with pytest.raises(PinsError, match="budget is 10"):
        lm.stream(TEXT, pins=f"text:{INSTRUCTION}")
    with pytest.raises(UsageError, match="not a sampling field"):
        lm.stream(TEXT, pinned=1)
    session = lm.session(pins=20)
    session.feed(TEXT, pins=[range(1, 18)])
    told = session.audit([("instruction", range(1, 18)), ("fox", range(30, 60))])
    assert (told.position, told.parts[0].pinned, told.parts[0].verdict) == (session.tokens, 17, "direct")
    assert told.parts[1].verdict in ("relay", "out", "mixed")
    with pytest.raises(UsageError, match="nothing yet"):
        lm.session().audit([("none", range(1))])


def seeing(lm: LM, ids: list[int], seers: list[range], n: int) -> list[int]:
    """Greedy tokens by one forward a token, without a cache, where some are global."""
    flagged = {at for span in seers for at in span}
    decoder = small_decoder(lm.config.with_global(len(flagged)), seed=3)
    ids = list(ids)
    for _ in range(n):
        batch = Batch.pack([ids], is_global=[[at in flagged for at in range(len(ids))]])
        ids.append(int(decoder.logits(decoder(batch)[-1:])[0].argmax()))
    return ids[-n:]


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_global_tokens_see_all_and_are_seen_by_all(chunk: int):
    lm = make_lm(chunk=chunk)
    ids = lm.tokenizer.encode(TEXT)
    last = range(len(ids) - 3, len(ids))
    asked = {"global_": [last], "pin_budget": 20, **GREEDY}
    written = lm.generate(TEXT, **asked, audit=True)
    assert list(written.token_ids) == seeing(lm, ids, [last], 8)
    assert list(lm.generate(TEXT, **GREEDY).token_ids) != list(written.token_ids)
    assert lm.stream(TEXT, **asked).completion.token_ids == ()
    stream = lm.stream(TEXT, **asked)
    assert ("".join(stream), stream.completion.token_ids) == (written.text, written.token_ids)
    assert written.audit is not None
    first = written.audit[0].parts[0]
    assert (first.global_seen, first.verdict) == (len(first.span), "direct")
    answered = lm.generate(TEXT, **{**asked, "global_": [last, "answer"]})
    assert list(answered.token_ids) == seeing(lm, ids, [range(last.start, len(ids) + 8)], 8)
    assert answered.stats.view.global_seen > first.span.start
    assert answered.stats.kv_bytes > written.stats.kv_bytes


def test_global_tokens_of_a_batch_and_a_chat():
    lm = make_lm()
    texts = [TEXT, "Answer in rhymes. " * 5 + TEXT]
    asked = {"global_": "text:in rhymes", "pin_budget": 20, **GREEDY}
    for text, completion in zip(texts, lm.generate(texts, **asked), strict=True):
        assert completion.token_ids == lm.generate(text, **asked).token_ids
    ids = lm.tokenizer.encode_chat(CHAT)
    written = lm.chat(CHAT, global_="system", pin_budget=20, **GREEDY)
    assert list(written.token_ids) == seeing(lm, ids, [range(13)], 8)


@pytest.mark.parametrize(
    ("global_", "words"),
    [
        ([range(11)], "11 tokens are to be pinned or global .*0:11: 11.*budget is 10"),
        (["answer", range(4)], "answer: 8"),
    ],
)
def test_global_tokens_share_the_budget_of_pins(global_, words: str):
    with pytest.raises(PinsError, match=words):
        make_lm().generate(TEXT, global_=global_, **GREEDY)
    with pytest.raises(PinsError, match="no window"):
        make_lm(AttentionPattern()).generate(TEXT, global_=global_, **GREEDY)
    with pytest.raises(UsageError, match="overlap"):
        make_lm().with_overlap(5).generate(TEXT, global_=[range(2)], **GREEDY)
    with pytest.raises(UsageError, match="guess"):
        make_lm().generate(TEXT, global_=["answer", range(2)], speculate="lookup", **GREEDY)
    plain = make_lm().generate(TEXT, global_=[range(2)], **GREEDY)
    assert make_lm().generate(TEXT, global_=[range(2)], speculate="lookup", **GREEDY).token_ids == plain.token_ids


def test_a_session_has_room_for_global_tokens():
    lm = make_lm()
    session = lm.session(pins=4, sees=True)
    session.feed(TEXT)
    session.feed(" and so on", seers=[range(2, 5)])
    n = session.tokens - 10
    assert session.global_positions == (n + 2, n + 3, n + 4)
    twin = session.fork()
    params = SamplingParams(**GREEDY)
    assert twin.generate(params).token_ids == session.generate(params).token_ids
    with pytest.raises(PinsError, match=r"5 tokens would be pinned or global.*room for 4.*sees=True"):
        session.feed("x", seers=[range(2)])
    with pytest.raises(PinsError, match="room for 0"):
        lm.session(pins=4).feed("x", seers=[range(1)])


def test_each_prompt_of_a_batch_has_its_own_pins():
    lm = make_lm()
    texts = [TEXT, "Answer in rhymes. " * 5 + TEXT, f"Please. {TEXT}"]
    together = lm.generate(texts, pins=f"text:{INSTRUCTION}", pin_budget=20, **GREEDY)
    for text, completion in zip(texts, together, strict=True):
        alone = lm.generate(text, pins=f"text:{INSTRUCTION}", pin_budget=20, **GREEDY)
        assert completion.token_ids == alone.token_ids
        assert completion.stats.view.pinned == len(INSTRUCTION)


def test_a_system_prompt_is_pinned_by_its_role():
    lm = make_lm()
    ids = lm.tokenizer.encode_chat(CHAT)
    written = lm.chat(CHAT, pins="system", pin_budget=20, **GREEDY)
    assert list(written.token_ids) == expected(lm, ids, [range(13)], 8)
    with pytest.raises(PinsError, match=r"13 tokens .*system: 13.*budget is 10"):
        lm.chat(CHAT, pins="system", **GREEDY)
    cut = lm.chat(CHAT, pins="system", pin_overflow="head", **GREEDY)
    assert list(cut.token_ids) == expected(lm, ids, [range(10)], 8)


def test_pins_that_a_model_has_anyway_stay_pinned():
    pinned = make_lm(AttentionPattern(window=30, pins=4), AttentionPattern(window=20, pins=4))
    bare = make_lm()
    ids = bare.tokenizer.encode(TEXT)
    written = pinned.generate(TEXT, pins=[range(40, 44)], **GREEDY)
    assert list(written.token_ids) == expected(bare, ids, [range(4), range(40, 44)], 8)


def test_without_a_window_there_is_nothing_to_pin():
    with pytest.raises(PinsError, match="no window"):
        make_lm(AttentionPattern()).generate(TEXT, pins=[range(4)], **GREEDY)
    with pytest.raises(UsageError, match="does not say 'Sing'"):
        make_lm().generate(TEXT, pins="text:Sing", **GREEDY)


def test_a_conversation_keeps_its_pins_through_all_turns():
    lm = make_lm()
    talk = lm.conversation("Be brief.", pins="system", pin_budget=20)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    for question in ("How many dogs sleep?", "And how many foxes jump?", "Why?"):
        read_before = 0 if talk.session is None else talk.session.tokens
        history = [*talk.messages, {"role": "user", "content": question}]
        stream = talk.say(question, params)
        for _ in stream:
            pass
        assert talk.session is not None
        assert talk.session.pinned == tuple(range(13))
        assert talk.session.tokens == read_before + talk.read_anew + 6
        ids = lm.tokenizer.encode_chat(history)
        if read_before == 0:
            assert list(stream.completion.token_ids) == expected(lm, ids, [range(13)], 6)
        assert stream.completion.stats.view.pinned == max(0, min(13, talk.session.tokens - 30))
    assert talk.read_anew < 20
    assert talk.session.view.out_of_reach > 0


def test_a_pin_on_a_later_message_is_read_in_its_turn_and_one_on_an_answer_again():
    lm = make_lm()
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    talk = lm.conversation("Be brief.", pins=["user:2"], pin_budget=20)
    for question in ("One dog?", "Two?"):
        for _ in talk.say(question, params):
            pass
    assert talk.session is not None
    assert talk.read_anew < 15
    assert len(talk.session.pinned) == len("u:Two?") + 1
    talk = lm.conversation("Be brief.", pins=["assistant:1"], pin_budget=20)
    for question in ("One dog?", "Two?"):
        for _ in talk.say(question, params):
            pass
    assert 12 < talk.read_anew < 20  # from the answer on


def test_a_session_pins_what_it_is_told_to():
    lm = make_lm()
    session = lm.session(pins=20)
    session.feed(INSTRUCTION, pins=True)
    session.feed(TEXT[len(INSTRUCTION) :])
    twin = session.fork()
    written = session.generate(SamplingParams(**GREEDY))
    ids = lm.tokenizer.encode(TEXT)
    assert list(written.token_ids) == expected(lm, ids, [range(18)], 8)
    assert twin.generate(SamplingParams(**GREEDY)).token_ids == written.token_ids
    with pytest.raises(PinsError, match="21 tokens would be pinned, and the session has room for 20"):
        session.feed("abc", pins=True)
    with pytest.raises(PinsError, match="only tokens that are fed"):
        session.feed("abc", pins=[range(2, 4)])
    with pytest.raises(PinsError, match="room for 0"):
        lm.session().feed("abc", pins=True)


def test_the_last_token_fed_can_be_pinned():
    lm = make_lm()
    session = lm.session(pins=3)
    session.feed([9, 8, 7], pins=[range(2, 3)])
    first = session.generate(SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
    assert session.pinned == (2,)
    session.feed(lm.tokenizer.encode(TEXT, bos=False))
    assert session.view.pinned == 1
    written = session.generate(SamplingParams(**GREEDY))
    ids = [9, 8, 7, *first.token_ids, *lm.tokenizer.encode(TEXT, bos=False)]
    assert list(written.token_ids) == expected(lm, ids, [range(2, 3)], 8)


def test_an_audit_tells_of_every_sentence_and_of_marked_parts():
    lm = make_lm()
    done = lm.generate(TEXT, audit=True, **GREEDY)
    n_prompt = len(lm.tokenizer.encode(TEXT))
    assert done.audit is not None
    first, last = done.audit
    assert (first.position, last.position) == (n_prompt, n_prompt + 7)
    assert first.parts[0].name == "“Answer in rhymes.”"
    assert (first.parts[0].verdict, first.parts[-1].verdict) == ("out", "mixed")
    pinned = lm.generate(TEXT, pins="text:Answer in rhymes.", pin_budget=20, audit=["text:Answer in rhymes."], **GREEDY)
    assert [part.verdict for one in pinned.audit for part in one.parts] == ["direct", "direct"]
    chat = lm.chat(CHAT, audit=True, **GREEDY)
    assert [part.name for part in chat.audit[0].parts][:2] == [
        "system: “Be brief.”",
        "user: “How many dogs sleep in the yard, and how many foxes jump?”",
    ]
    assert lm.generate(TEXT, **GREEDY).audit is None


def test_the_view_with_flagged_pins_is_what_the_cone_counts():
    config = small_config([AttentionPattern(window=6), AttentionPattern(window=4)]).with_window(None, 4, pin_by="flag")
    for length in (1, 3, 9, 30):
        pinned = [0, 7, 8, 12]
        counts = cone(config.patterns, length, pinned_positions=[at for at in pinned if at < length]).counts()
        view = View.of(config, length, pinned)
        assert (view.direct, view.pinned) == (counts["direct"], counts["pinned"])
        assert (view.relayed, view.out_of_reach) == (counts["relay"], counts["out"])
