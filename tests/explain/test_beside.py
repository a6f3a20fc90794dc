"""What annexes show, in audits: summaries, against a search of the layer graph and real decoders; recall, as it ran."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.completion import View
from sash.explain.audit import RECALLS, Audit, audit, draw_audit
from sash.explain.reach import cone
from sash.explain.spans import Spans
from sash.explain.visible_keys import Beside
from sash.lm import LM
from sash.network.hierarchy import Hierarchy
from sash.sampling import SamplingParams
from tests.conftest import ByteTokenizer, small_config, small_decoder
from tests.explain.test_audit import as_set, last_logits

N_STACKS = 300
FAR = 10_000


def random_stack(rng: random.Random, n: int, block: int) -> tuple[list[AttentionPattern], list[int], list[Spans]]:
    """Windows with and without an annex, pins by flag, full layers; and what each layer has brought back."""
    pinned = sorted(rng.sample(range(n), rng.randint(0, 2)))
    layers, recalled = [], []
    for _ in range(rng.randint(1, 4)):
        recalled.append(Spans.points(rng.sample(range(n), rng.choice([0, 0, 1, 3]))))
        if rng.random() < 0.1:
            layers.append(AttentionPattern())
            continue
        annex = rng.choice([0, 0, 4])
        window = rng.randint(block if annex else 2, block + 4)
        layers.append(AttentionPattern(window=window, pins=len(pinned), pin_by="flag", annex=annex))
    return layers, pinned, recalled


def brute_force(
    layers: list[AttentionPattern], n: int, pinned: list[int], block: int, recalled: list[Spans]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What some layer shows the last position, and why; and the fewest moves from each position, FAR without a path."""
    where = np.arange(n)
    tokens = TokenMeta(position=where, pinned=np.isin(where, pinned))
    shown = {kind: np.zeros(n, bool) for kind in ("by allows", "recalled", "summarised")}
    moves = np.full(n, FAR)
    moves[n - 1] = 0
    for layer, back in reversed(list(zip(layers, recalled, strict=True))):
        allowed = np.asarray(layer.allows(tokens.reshape(-1, 1), tokens.reshape(1, -1)))
        summed = np.zeros((n, n), bool)
        if layer.annex:
            for query in where:  # all that some token of its block does not see any more was summed up before the block
                last_of_block = (query // block + 1) * block - 1
                summed[query] = last_of_block - where >= layer.window
        brought = np.zeros((n, n), bool)
        brought[n - 1] = as_set(back, n)
        shown["by allows"] |= allowed[n - 1]
        shown["recalled"] |= brought[n - 1]
        shown["summarised"] |= summed[n - 1]
        edges = allowed | summed | brought
        cost = np.where(edges, moves[:, None] + (where[:, None] != where[None, :]), FAR)
        moves = cost.min(axis=0)
    return shown, moves


def test_random_stacks_agree_with_brute_force_everywhere():
    rng = random.Random(6)
    met = dict.fromkeys(("direct", "pinned", "recalled", "summarised", "relay", "out"), 0)
    for _ in range(N_STACKS):
        n, block = rng.randint(10, 22), rng.choice([2, 3, 4])
        layers, pinned, recalled = random_stack(rng, n, block)
        shown, moves = brute_force(layers, n, pinned, block, recalled)
        beside = Beside(hierarchy=Hierarchy(block=block), recalled=recalled)
        seen = cone(layers, n, pinned_positions=pinned, beside=beside)
        for at in range(n):
            sight = seen.classify(at)
            assert sight.hops == (None if moves[at] >= FAR else moves[at])
            wanted = next((kind for kind in shown if shown[kind][at]), "relay" if moves[at] < FAR else "out")
            assert sight.kind == wanted or (wanted == "by allows" and sight.kind in ("direct", "pinned"))
            met[sight.kind] += 1
        parts = audit(layers, n, [("", range(at, at + 1)) for at in range(n)], pinned_positions=pinned, beside=beside)
        kinds = [seen.classify(at).kind.replace("pinned", "direct") for at in range(n)]
        assert [part.verdict for part in parts.parts] == kinds
        assert Audit.of_json(parts.to_json()) == parts
    assert min(met.values()) > 40


@pytest.mark.parametrize("chunk", [1, 24])
def test_nothing_is_out_where_there_are_summaries_and_all_of_it_has_influence(chunk: int):
    config = small_config([AttentionPattern(window=4)] * 3).with_hierarchy(Hierarchy(block=4, per_level=2))
    decoder = small_decoder(config, seed=3)
    n = 24
    ids = torch.randint(0, config.vocab_size, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    before = last_logits(decoder, config, ids, [], chunk)
    found = audit(config.patterns, n, [(str(at), range(at, at + 1)) for at in range(n)], beside=Beside.of(config)).parts
    assert [part.verdict for part in found] == ["summarised"] * 20 + ["direct"] * 4
    assert found[0].words(3) == "in summaries only"
    for at in range(n):
        after = last_logits(decoder, config, [*ids[:at], (ids[at] + 7) % config.vocab_size, *ids[at + 1 :]], [], chunk)
        assert not torch.equal(before, after), at
    view = View.of(config, n)
    assert (view.direct, view.summarised, view.relayed, view.out_of_reach) == (4, 20, 0, 0)


@pytest.mark.parametrize("forced", [False, True])
def test_what_recall_has_brought_back_is_told_by_whoever_ran(forced):
    config = small_config([AttentionPattern(window=None if forced else 16)] * 2, context=200)
    lm = LM(small_decoder(config), ByteTokenizer(), chunk=16).with_window(16)
    lm = lm.with_recall(16, block=8, piece=8, question=4)
    assert {pattern.pin_reach for pattern in lm.config.patterns} == {192 if forced else None}
    session = lm.session()
    session.feed([(7 * at + at * at) % 50 for at in range(90)])
    parts = [(str(at), range(at, at + 8)) for at in range(8, 72, 8)]
    assert not any(part.recalled for part in session.audit(parts).parts)  # the last token has not asked yet
    session.generate(SamplingParams(temperature=0.0, max_tokens=1))
    told = session.audit(parts, 90)
    held = {store.pattern: store.annex.tags[0] for store in session.cache.stores.values()}
    wanted = {8 * int(block) for tags in held.values() for block in tags.flatten() & 0xFFFFFFFF}
    assert {part.span.start for part in told.parts if part.verdict == "recalled"} == wanted
    assert 0 < len(wanted) < len(parts)
    assert next(part for part in told.parts if part.verdict == "recalled").words(2) == "brought back"
    assert draw_audit(told, told).splitlines()[-1] == RECALLS
    # What an earlier token was shown is not known any more; of a model that did not run, nothing is.
    assert not any(part.recalled for part in session.audit(parts, 80).parts)
    assert not any(part.recalled for part in audit(lm.config.patterns, 90, parts, beside=Beside.of(lm.config)).parts)


def test_what_is_fed_ends_with_a_question_as_a_prompt_does():
    lm = LM(small_decoder(small_config([AttentionPattern(window=16)] * 2)), ByteTokenizer(), chunk=16)
    lm = lm.with_recall(16, block=8, piece=16, question=8)
    ids = [(7 * at + at * at) % 50 for at in range(90)]
    session = lm.session()
    session.feed(ids)
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0)
    told, wanted = session.generate(params), lm.generate(ids, temperature=0.0, max_tokens=6, logprobs=0)
    assert told.token_ids == wanted.token_ids
    assert [one.logprob for one in told.logprobs] == pytest.approx([one.logprob for one in wanted.logprobs], abs=1e-5)


def test_answers_are_audited_with_what_was_brought_back_for_them():
    plain = LM(small_decoder(small_config([AttentionPattern(window=16)] * 2)), ByteTokenizer(), chunk=16)
    lm = plain.with_recall(16, block=8, piece=8, question=4, stride=2)
    prompts = [[(7 * at + at * at) % 50 for at in range(n)] for n in (90, 75)]
    parts = [range(at, at + 8) for at in range(0, 64, 8)]
    asked = {"audit": parts, "temperature": 0.0, "max_tokens": 7, "ignore_eos": True}
    together = lm.generate(prompts, **asked)
    for prompt, told in zip(prompts, together, strict=True):
        session = lm.session()
        session.feed(prompt)
        named = [(f"{part.start}:{part.stop}", part) for part in parts]
        session.generate(SamplingParams(temperature=0.0, max_tokens=7, ignore_eos=True))
        first = session.audit(named, len(prompt))
        assert [part.counts for part in told.audit[0].parts] == [part.counts for part in first.parts]
        last = session.audit(named, len(prompt) + 6)
        assert [part.counts for part in told.audit[1].parts] == [part.counts for part in last.parts]
        for end in told.audit:
            assert 0 < sum(part.verdict == "recalled" for part in end.parts) < len(parts)
        stream = lm.stream(prompt, **asked)
        assert ("".join(stream), stream.completion.audit) == (told.text, told.audit)
    whole = plain.with_hierarchy(block=8, per_level=2).generate(prompts[0], **asked)
    assert [part.verdict for part in whole.audit[1].parts] == ["summarised"] * len(parts)
