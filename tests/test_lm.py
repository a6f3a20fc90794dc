"""The object a user holds, on a small random model: numbers, text, sessions, conversations."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.completion import View
from sash.errors import EmptyPromptError, UsageError
from sash.explain.reach import cone
from sash.lm import LM
from sash.network.sizing import kv_bytes
from sash.sampling import SamplingParams
from tests.conftest import ByteTokenizer, small_config, small_decoder

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 3
GREEDY = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


def make_lm(*patterns: AttentionPattern, chunk: int = 16) -> LM:
    layers = list(patterns) or [AttentionPattern(window=9, pins=2), AttentionPattern(window=5), AttentionPattern()]
    config = small_config(layers, vocab_size=259)
    return LM(small_decoder(config, seed=3), ByteTokenizer(), name="small", chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_logits_and_scores_do_not_depend_on_the_chunk(chunk: int) -> None:
    lm = make_lm()
    ids = lm.tokenizer.encode(TEXT)
    whole = lm.logits(ids, chunk=None)
    assert whole.shape == (len(ids), 259)
    assert whole.dtype == torch.float32
    assert (lm.logits(ids, chunk) - whole).abs().max() < 1e-4
    expected = whole.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
    scores = lm.score(ids, chunk)
    assert scores.shape == (len(ids) - 1,)
    assert (scores - expected).abs().max() < 1e-4


def test_the_first_token_alone_has_no_score() -> None:
    assert make_lm().score([5]).shape == (0,)


def test_greedy_generation_follows_the_logits() -> None:
    lm = make_lm()
    ids = lm.tokenizer.encode(TEXT)
    completion = lm.generate(TEXT, **GREEDY, logprobs=2)
    expected = list(ids)
    for _ in range(12):
        expected.append(int(lm.logits(expected, chunk=None)[-1].argmax()))
    assert list(completion.token_ids) == expected[len(ids) :]
    assert completion.finish_reason == "length"
    assert completion.logprobs is not None
    logprobs = lm.logits(expected, chunk=None).log_softmax(-1)
    for index, token in enumerate(completion.logprobs):
        row = logprobs[len(ids) + index - 1]
        assert token.logprob == pytest.approx(row[token.token_id].item(), abs=1e-3)
        assert token.top[0][0] == token.token_id


def test_company_changes_nothing() -> None:
    lm = make_lm()
    prompts = [TEXT, "Short.", TEXT[5:60], "x"]
    sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 11, "max_tokens": 20, "ignore_eos": True}
    together = lm.generate(prompts, **sampling)
    for prompt, completion in zip(prompts, together, strict=True):
        assert lm.generate(prompt, **sampling).token_ids == completion.token_ids
    assert lm.generate(prompts[0], **{**sampling, "seed": 12}).token_ids != together[0].token_ids


def test_more_prompts_than_rows_wait_their_turn() -> None:
    lm = make_lm(AttentionPattern(window=5))
    prompts = [TEXT[index : index + 9] for index in range(20)]
    completions = lm.generate(prompts, **GREEDY)
    assert [c.token_ids for c in completions] == [lm.generate(p, **GREEDY).token_ids for p in prompts]


def test_stream_pieces_add_up_and_a_stop_string_never_shows() -> None:
    lm = make_lm()
    stream = lm.stream(TEXT, **GREEDY)
    text = "".join(stream)
    assert text == stream.completion.text == lm.generate(TEXT, **GREEDY).text
    assert len(text) > 3
    stop = text[2:4]
    stopped = lm.stream(TEXT, **GREEDY, stop=stop)
    assert "".join(stopped) == stopped.completion.text == text[: text.index(stop)]
    assert stopped.completion.finish_reason == "stop"


def test_a_closed_stream_keeps_what_was_written() -> None:
    stream = make_lm().stream(TEXT, **GREEDY)
    first = next(iter(stream))
    stream.close()
    assert stream.completion.text == first
    assert stream.completion.finish_reason == "cancelled"


def test_a_session_fed_in_pieces_is_one_text() -> None:
    lm = make_lm()
    ids = lm.tokenizer.encode(TEXT)
    session = lm.session()
    for start in range(0, len(ids), 23):
        session.feed(ids[start : start + 23])
    params = SamplingParams(**GREEDY)
    first = session.generate(params)
    assert first.token_ids == lm.generate(ids, **GREEDY).token_ids
    more = session.generate(params)
    assert more.token_ids == lm.generate([*ids, *first.token_ids], **GREEDY).token_ids
    assert session.tokens == len(ids) + 24


def test_a_fork_goes_its_own_way() -> None:
    lm = make_lm()
    session = lm.session()
    session.feed(TEXT)
    twin = session.fork()
    twin.feed([40, 41, 42])
    params = SamplingParams(**GREEDY)
    ids = lm.tokenizer.encode(TEXT)
    assert session.generate(params).token_ids == lm.generate(ids, **GREEDY).token_ids
    assert twin.generate(params).token_ids == lm.generate([*ids, 40, 41, 42], **GREEDY).token_ids


def test_a_windowed_session_stays_as_small_as_its_window() -> None:
    lm = make_lm(AttentionPattern(window=8), AttentionPattern(window=4, pins=1))
    session = lm.session()
    sizes = set()
    for _ in range(40):
        session.feed(TEXT)
        sizes.add(session.nbytes)
    assert sizes == {kv_bytes(lm.config, 0, 4)}


@pytest.mark.parametrize(("kv", "of_a_head"), [("int8", 8 + 4), ("bf16", 2 * 8)])
def test_a_cache_that_rounds_is_kept_wherever_the_model_goes(kv: str, of_a_head: int) -> None:
    plain = make_lm()
    lm = LM(plain.decoder, plain.tokenizer, chunk=16, kv=kv)
    assert lm.cache().nbytes == lm.with_window().cache().nbytes == lm.session().fork().nbytes
    assert lm.cache().nbytes == 2 * ((9 + 2) + 5) * 2 * of_a_head
    assert lm.cache(kv="auto").nbytes == plain.cache().nbytes == lm.cache(kv="int8").nbytes // (8 + 4) * 4 * 8
    stats = lm.generate(TEXT, **GREEDY).stats
    assert stats.kv_dtype == {"int8": "int8", "bf16": "bfloat16"}[kv]
    assert stats.kv_bytes == kv_bytes(lm.config, stats.view.length, *lm.cache().number_bytes)
    ids = lm.tokenizer.encode(TEXT)
    exact, whole = plain.logits(ids), lm.logits(ids, chunk=None)
    assert (whole - exact).abs().max() > 1e-3
    for chunk in (1, 7):
        # A float that differs in its last bit may round to the next number, so that a few logits differ a little.
        apart = (lm.logits(ids, chunk) - whole).abs()
        assert apart.mean() < 0.1 * (whole - exact).abs().mean()


def test_what_is_kept_is_one_of_three() -> None:
    plain = make_lm()
    with pytest.raises(UsageError, match="kv 'fp8' is not known"):
        LM(plain.decoder, plain.tokenizer, kv="fp8")


def test_a_conversation_reads_only_what_is_new() -> None:
    lm = make_lm()
    chat = lm.conversation("Be brief.")
    params = SamplingParams(temperature=0.0, max_tokens=8)
    first = "".join(chat.say("Hello there.", params))
    assert chat.messages[-1] == {"role": "assistant", "content": first}
    whole = chat.read_anew
    "".join(chat.say("And now?", params))
    assert chat.read_anew <= len(lm.tokenizer.encode_chat([{"role": "user", "content": "And now?"}])) < whole
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_undo_and_another_system_prompt_read_again_and_answer_the_same() -> None:
    lm = make_lm()
    chat = lm.conversation()
    params = SamplingParams(temperature=0.0, max_tokens=8)
    once = "".join(chat.say("Hello there.", params))
    assert chat.undo() == "Hello there."
    assert chat.messages == []
    assert "".join(chat.say("Hello there.", params)) == once
    chat.set_system("Shout.")
    assert chat.messages[0] == {"role": "system", "content": "Shout."}
    with pytest.raises(UsageError, match="no turn"):
        lm.conversation().undo()


def test_statistics_say_what_was_seen() -> None:
    lm = make_lm(AttentionPattern(window=9, pins=2), AttentionPattern(window=5, pins=2))
    completion = lm.generate(TEXT, **GREEDY)
    stats = completion.stats
    length = len(lm.tokenizer.encode(TEXT)) + 12
    assert stats.prompt_tokens + stats.completion_tokens == length
    assert stats.view == View(
        length=length, direct=9, pinned=2, relayed=4, out_of_reach=length - 15, windowed_layers=2, window=9, held=2
    )
    assert stats.kv_bytes == 2 * (11 + 7) * 2 * 8 * 4
    assert stats.kv_bytes_full == 2 * 2 * length * 2 * 8 * 4


@settings(max_examples=100, deadline=None)
@given(
    windows=st.lists(st.one_of(st.none(), st.integers(1, 12)), min_size=1, max_size=5),
    pins=st.integers(0, 4),
    length=st.integers(1, 90),
)
def test_the_view_counts_what_the_cone_of_reach_shows(windows: list[int | None], pins: int, length: int) -> None:
    """`View` is arithmetic, the cone a walk through the layers: they must agree token by token."""
    pins = min([pins, *(window for window in windows if window is not None)])
    layers = [AttentionPattern(window=window, pins=pins if window else 0) for window in windows]
    view = View.of(small_config(layers), length)
    seen = Counter(cone(tuple(layers), length).classify(position).kind for position in range(length))
    assert (view.direct, view.pinned, view.relayed, view.out_of_reach) == (
        seen["direct"],
        seen["pinned"],
        seen["relay"],
        seen["out"],
    )


def test_bad_input_is_refused_by_name() -> None:
    lm = make_lm()
    with pytest.raises(EmptyPromptError):
        lm.generate("")
    with pytest.raises(EmptyPromptError):
        lm.generate([[]])
    with pytest.raises(EmptyPromptError):
        lm.session().generate()
    with pytest.raises(UsageError, match="token id 259"):
        lm.generate([1, 259])
    with pytest.raises(UsageError, match="'temprature' is not a sampling field"):
        lm.generate("x", temprature=1)
    with pytest.raises(UsageError, match="chunk"):
        lm.logits([1, 2], chunk=0)


def test_a_row_of_nan_ends_its_request_and_nobody_elses() -> None:
    lm = make_lm(AttentionPattern(window=5))
    good = lm.generate("abc", **GREEDY).token_ids
    head = lm.decoder.logits

    def poisoned(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        if len(logits) > 1:
            logits[1] = torch.nan
        return logits

    lm.decoder.logits = poisoned  # type: ignore[method-assign]
    from sash.engine.engine import Engine
    from sash.engine.request import Request

    engine = Engine(lm.decoder, lm.cache(2), chunk=16)
    params = SamplingParams(**GREEDY)
    one, two = (engine.submit(Request(prompt_ids=tuple(lm.tokenizer.encode("abc")), params=params)) for _ in range(2))
    while not engine.idle:
        engine.step()
    assert two.finish_reason == "error"
    assert one.finish_reason == "length"
    assert tuple(one.output_ids) == good
