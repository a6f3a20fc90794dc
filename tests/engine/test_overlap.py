"""Overlapping windows: what is in a row, against the same said in one line, and what is written against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.engine.overlap import Held, Overlap
from sash.errors import PinsError, UsageError
from sash.lm import LM
from sash.sampling import SamplingParams
from sash.text.tokenizer import Tokenizer
from tests.conftest import small_config, small_decoder

WINDOW = 8


@pytest.fixture
def full(byte_tokenizer: Tokenizer) -> LM:
    return LM(small_decoder(small_config([AttentionPattern()] * 3, vocab_size=259)), byte_tokenizer, chunk=5)


def random_ids(count: int, *, bos: bool = False) -> list[int]:
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, 259, (count,), generator=generator).tolist()
    return [1, *ids[1:]] if bos else ids


def reading(length: int, window: int, stride: int, stays: set[int]) -> list[int]:
    """Positions in sight of token length - 1: rows are filled, and begun anew with the newest of them."""
    row: list[int] = []
    for at in range(length):
        if len(row) == window:
            room = max(window - stride, len(stays & set(row)))
            while len(row) > room:
                row.remove(next(one for one in row if one not in stays))
        row.append(at)
    return row


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_row_holds_what_stays_and_the_newest(data: st.DataObject):
    window = data.draw(st.integers(2, 12))
    stride, length = data.draw(st.integers(1, window)), data.draw(st.integers(1, 60))
    pins = data.draw(st.integers(0, min(3, window - 1)))
    flagged = data.draw(st.sets(st.integers(0, length - 1), max_size=window - 1 - pins))
    stays = set(range(pins)) | flagged
    overlap = Overlap(window=window, stride=stride, pins=pins)
    expected = reading(length, window, stride, stays)
    assert overlap.in_sight(length, sorted(flagged)) == expected

    held, waiting = Held(overlap), [(at, at in flagged) for at in range(length)]
    while waiting or held.again:  # any pieces and chunks
        count = data.draw(st.integers(1, len(waiting) or 1))
        part = waiting[:count]
        del waiting[:count]
        taken = held.settle(part)
        part = part[taken:]
        while held.again or part:
            done = held.read(data.draw(st.integers(1, len(held.again) + len(part))), part)
            part = part[done:]
        assert len(held.row) <= window
    assert [token.token_id for token in held.row] == expected
    assert held.n_text == length
    assert held.n_read >= len(expected)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("n_prompt", [3, WINDOW - 1, WINDOW, WINDOW + 1, 37])
def test_what_is_written_is_what_fresh_readings_say(full: LM, n_prompt: int, bos: bool):
    ids, stride = random_ids(n_prompt, bos=bos), 3
    lm = full.with_window(WINDOW).with_overlap(stride)
    done = lm.generate(ids, max_tokens=9, temperature=0, ignore_eos=True)
    text = list(ids)
    for token in done.token_ids:
        context = [text[at] for at in reading(len(text), WINDOW, stride, {0} if bos else set())]
        assert token == int(full.logits(context, None)[-1].argmax())
        text.append(token)
    assert done.stats.overlap == stride
    assert done.stats.view.direct + done.stats.view.pinned == len(
        reading(len(text), WINDOW, stride, {0} if bos else set())
    )
    assert done.stats.view.relayed == 0


def test_a_long_prompt_costs_its_last_reading(full: LM):
    lm = full.with_window(WINDOW).with_overlap(3)
    ids = random_ids(500)
    done = lm.generate(ids, max_tokens=1, temperature=0)
    assert done.stats.tokens_read == len(reading(500, WINDOW, 3, set())) <= WINDOW
    more = lm.generate(ids, max_tokens=31, temperature=0, ignore_eos=True)
    assert 80 <= more.stats.tokens_read <= 90  # a reading of 8 for every 3 of 30
    assert full.generate(ids[:20], max_tokens=5, temperature=0, ignore_eos=True).stats.tokens_read == 24


def test_sessions_batches_and_chunks_change_nothing(full: LM):
    prompts = [random_ids(n) for n in (5, 8, 9, 30, 31)]
    lm = full.with_window(WINDOW).with_overlap(3)
    alone = [lm.generate(ids, max_tokens=8, temperature=0, ignore_eos=True).token_ids for ids in prompts]
    together = lm.generate(prompts, max_tokens=8, temperature=0, ignore_eos=True)
    assert [done.token_ids for done in together] == alone
    for ids, expected in zip(prompts, alone, strict=True):
        session, seen = lm.session(), []
        for start in range(0, len(ids), 4):
            session.feed(ids[start : start + 4], seen.append)
        assert sum(seen) == len(ids) - 1
        twin = session.fork()
        for one in (session, twin):
            params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
            assert one.generate(params).token_ids == expected
            assert one.view.out_of_reach == len(ids) + 8 - len(reading(len(ids) + 8, WINDOW, 3, set()))


@pytest.mark.parametrize("first", [True, False])
def test_pins_stand_at_the_head_of_every_reading(full: LM, first: bool):
    ids = random_ids(40)
    stays = {0, 1} if first else {4, 5, 20}
    expected, text = [], list(ids)
    for _ in range(6):
        context = [text[at] for at in reading(len(text), WINDOW, 2, stays)]
        expected.append(int(full.logits(context, None)[-1].argmax()))
        text.append(expected[-1])
    windowed = full.with_window(WINDOW, 2 if first else 0)
    pins = [] if first else [range(4, 6), range(20, 21)]
    done = windowed.with_overlap(2).generate(ids, max_tokens=6, temperature=0, ignore_eos=True, pins=pins)
    assert list(done.token_ids) == expected
    assert done.stats.view.pinned == len(stays)


def test_an_audit_tells_that_nothing_is_passed_on(full: LM):
    lm = full.with_window(WINDOW).with_overlap(3)
    done = lm.generate(random_ids(40), max_tokens=2, temperature=0, ignore_eos=True, audit=[range(9), range(36, 40)])
    assert [part.verdict for part in done.audit[0].parts] == ["out", "direct"]
    rolled = full.with_window(WINDOW).generate(random_ids(40), max_tokens=2, temperature=0, audit=[range(20, 30)])
    assert rolled.audit[0].parts[0].verdict == "relay"


def test_what_cannot_be(full: LM):
    with pytest.raises(UsageError, match="--window N"):
        full.with_overlap(3)
    with pytest.raises(PinsError, match="leave no room"):
        full.with_window(WINDOW, WINDOW).with_overlap(3)
    lm = full.with_window(WINDOW).with_overlap(3)
    with pytest.raises(PinsError, match="pin fewer"):
        lm.generate(random_ids(30), pins=[range(WINDOW)], pin_budget=WINDOW, max_tokens=1)
    with pytest.raises(PinsError, match="pin fewer"):
        lm.session(pins=WINDOW).feed(random_ids(WINDOW), pins=True)
