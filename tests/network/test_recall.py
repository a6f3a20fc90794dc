"""What slid out of the window is brought back: all of it where there is room, else what the last queries want."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.kernels import isa, native
from sash.kernels.activations import rotate as mix
from sash.network import rope
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.clamped_keys import BLOCK, ClampedKeys
from sash.network.config import RopeConfig
from sash.network.recall import recalling
from sash.network.recall_points import RecallSettings
from sash.network.ring_store import RingStore
from tests.conftest import small_config, small_decoder
from tests.network.test_annex import native_pair

W, LENGTH = 16, 60
IDS = torch.randint(0, 61, (LENGTH,), generator=torch.Generator().manual_seed(2)).tolist()
EACH = RecallSettings(block=1, piece=1, question=0, stride=1)


def store_of(cache: KVCache) -> RingStore:
    return next(store for store in cache.stores.values() if isinstance(store, RingStore) and store.annex)


@torch.inference_mode()
def read(network, settings, sizes, *, kv="auto", dtype=torch.float32, natively=True, asked=None):
    cache = KVCache(network.config, 2, dtype, kv=kv, recall=settings)
    for part in cache.recall._parts if cache.recall else ():
        part._natively = part._natively and natively
    cache.allocate()
    row, at, outs = cache.allocate(), 0, []
    cache.ask(row, sum(sizes) if asked is None else asked)
    for size in sizes:
        outs.append(network(Batch.pack([IDS[at : at + size]], [at], [row]), cache))
        at += size
    return torch.cat(outs), cache


@pytest.mark.parametrize("sizes", [[1] * LENGTH, [LENGTH], [W, 1, 7, 36]])
@pytest.mark.parametrize("asked", [LENGTH, 30])
def test_with_room_for_all_it_is_full_attention(sizes, asked):
    """Ranked after each token, and from the question on within each layer."""
    full = small_decoder(small_config([AttentionPattern()] * 3))
    windowed = full.with_config(full.config.with_window(W).with_annex(LENGTH))
    got, cache = read(windowed, EACH, sizes, asked=asked)
    wanted = full(Batch.pack([IDS]))
    assert torch.allclose(got, wanted, atol=2e-4)
    assert store_of(cache).annex.count(1) == LENGTH - W  # what the last token did not see
    without, _ = read(full.with_config(full.config.with_window(W)), None, sizes)
    assert not torch.allclose(without[W:], wanted[W:], atol=0.1)
    assert torch.allclose(without[:W], wanted[:W], atol=2e-4)


@pytest.mark.parametrize("asked", [LENGTH, 30])
def test_pins_of_a_forced_window_stand_where_they_do_in_full_attention(asked):
    """So a window whose beginning is pinned is full attention too, where there is room for all the rest."""
    full = small_decoder(small_config([AttentionPattern()] * 3, context=LENGTH))
    config = recalling(full.config.with_window(W), RecallSettings(block=1), LENGTH)
    assert {(pattern.pins, pattern.pin_reach) for pattern in config.patterns} == {(1, LENGTH - 1)}
    got, _ = read(full.with_config(config), EACH, [1] * 20 + [LENGTH - 20], asked=asked)
    assert torch.allclose(got, full(Batch.pack([IDS])), atol=2e-4)
    near = replace(
        config, layers=tuple(replace(one, pattern=replace(one.pattern, pin_reach=None)) for one in config.layers)
    )
    other, _ = read(full.with_config(near), EACH, [1] * 20 + [LENGTH - 20], asked=asked)
    assert not torch.allclose(got[W + 2 :], other[W + 2 :], atol=0.01)


def check_both_ways(kv: str, **sizes: int) -> None:
    """Kernels and torch choose and bring the same, between steps and within layers."""
    network = native_pair(**sizes)[0]
    network = network.with_config(network.config.with_annex(8))
    for settings in (
        RecallSettings(block=2, piece=5, question=0, queries=2),
        RecallSettings(block=4, piece=12, question=0, queries=12),
    ):
        runs = [
            read(network, settings, [30, 1, 29], kv=kv, dtype=torch.bfloat16, natively=way) for way in (True, False)
        ]
        tags = [store_of(cache).annex.tags[1] for _, cache in runs]
        assert torch.equal(tags[0], tags[1])
        assert len(tags[0].flatten().unique()) > 8 // settings.block
        assert torch.equal(runs[0][0], runs[1][0])
        slots = [store_of(cache).slots(1, "annex") for _, cache in runs]
        assert all(torch.equal(*pair) for pair in zip(slots[0].tensors(), slots[1].tensors(), strict=True))
    for block in (1, 4):
        for context in (0, 40):
            check_lookups(
                kv, RecallSettings(block=block, piece=9, question=5, candidates=3, shared=2, stride=4), context, **sizes
            )


@torch.inference_mode()
def check_lookups(kv: str, settings: RecallSettings, context: int, **sizes: int) -> None:
    """What kernels look up is what torch would choose for the same queries, and lies in the annex as torch puts it."""
    network = native_pair(**sizes)[0]
    config = replace(network.config.with_annex(8), context=context)
    config = replace(config, trained_windows=(None,) * len(config.layers))
    network = network.with_config(config)
    _, cache = read(network, settings, [LENGTH - 20], kv=kv, dtype=torch.bfloat16, asked=LENGTH - 15)
    (part,), store, points = cache.recall._parts, store_of(cache), cache.recall._points_of(1)
    assert part._natively
    changes, past = set(), torch.zeros(1, dtype=torch.int64)
    for at in range(LENGTH - 20, LENGTH):
        network(Batch.pack([[IDS[at]]], [at], [1]), cache)
        found, tags_LGC, every = part._lookups[1], store.annex.tags[1].clone(), points.ranks_all(at)
        assert (found.length, found.ranks_all) == (at, every)
        told = replace(found, candidates_LGM=torch.full_like(found.candidates_LGM, -1)) if every else found
        most_S = torch.bincount(past.flatten()).sort(descending=True, stable=True).indices[:2]
        assert torch.equal(found.shared_S[: len(most_S)], most_S) or every
        for layer in range(store.layout.n_layers):
            stretches = [stretch.of_layer(layer) for stretch in found.stretches]
            worth_GMB = part._worth(store.tap.of(1)[layer : layer + 1, -1:], stretches)[0] * part._scale
            chosen_GC = told.choose(layer, worth_GMB)
            assert torch.equal((tags_LGC[layer] & BLOCK).sort(-1).values - found.first, chosen_GC)
        past = (tags_LGC & BLOCK) - found.first if every else past
        assert torch.equal(told.candidates_LGM, found.candidates_LGM)
        changes.add((every, tuple(tags_LGC.flatten().tolist())))
        natively = store.slots(1, "annex")[:].to(torch.float32)
        blocks_LGC, places = tags_LGC & BLOCK, torch.ones_like(tags_LGC, dtype=torch.bool).nonzero()
        part._copy(1, places.tolist(), (blocks_LGC - found.first).flatten().tolist(), found.stretches)
        if part._clamped.touches(at, found.first):
            shifts_LGC, wanted_LGC = part._clamped.shifts(blocks_LGC, at)
            assert torch.equal(wanted_LGC, tags_LGC)
            part._clamped.turn(1, places, shifts_LGC.flatten())
            assert context
        of_torch = store.slots(1, "annex")[:].to(torch.float32)
        assert torch.allclose(natively, of_torch, atol=0.03 if context else 0, rtol=0.02 if context else 0)
    assert len(changes) > 10
    assert {every for every, _ in changes} == {True, False}


needs_native = pytest.mark.skipif(not native.available(), reason="native kernels do not serve here: torch does")


@needs_native
@pytest.mark.parametrize("name", isa.available_isas()[-2:])
def test_every_instruction_set_chooses_the_same(name):
    """Heads of 32 and of 48 components, 2 to 24 queries a head at once."""
    here = Path(__file__)
    path = os.pathsep.join(str(here.parents[2] / part) for part in (".", "src"))
    done = subprocess.run(
        [sys.executable, here], env=os.environ | {"SASH_ISA": name, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_native
def test_the_best_instruction_set_chooses_the_same():
    check_both_ways("int8", head_dim=48)
    check_both_ways("auto", head_dim=48)


@needs_native
@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_the_native_network_brings_back_the_same(kv):
    network, decoder = native_pair()
    for asked in (LENGTH, 30):
        wanted, _ = read(decoder, EACH, [1] * LENGTH, asked=asked)
        got, _ = read(network, EACH, [20] * 3, kv=kv, dtype=torch.bfloat16, asked=asked)
        apart_T = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert apart_T.median() < 0.05
    check_both_ways(kv)
    some = RecallSettings(block=2, piece=5, question=4, stride=2, queries=2)
    network = network.with_config(network.config.with_annex(8))
    assert not torch.equal(read(network, some, [30, 1, 29], dtype=torch.bfloat16)[0], got)


def test_what_is_brought_back_is_out_of_sight_unpinned_and_what_the_log_holds():
    config = small_config([AttentionPattern(window=W, pins=3, annex=8)] * 2)
    config = replace(config, trained_windows=(None, None))
    decoder = small_decoder(config)
    _, cache = read(decoder, RecallSettings(block=2, piece=8, question=3, queries=1), [20, 1, 1, 30])
    store, length = store_of(cache), 52
    tags_LGC = store.annex.tags[1] & BLOCK
    assert tags_LGC.shape == (2, 2, 4)
    assert store.annex.count(1) == 8
    assert int(tags_LGC.min()) >= 2
    assert 2 * int(tags_LGC.max()) + 1 <= length - W
    assert len(tags_LGC.flatten().unique()) > 4  # every layer and head has its own
    (run,) = store.log.held(1, 0, length)
    logged = store.log.slots(1, run).numbers
    slots = store.slots(1, "annex").numbers
    for layer, head, place in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4)).tolist():
        first = 2 * int(tags_LGC[layer, head, place])
        assert torch.equal(slots[:, layer, head, 2 * place : 2 * place + 2], logged[:, layer, head, first : first + 2])
        assert len(tags_LGC[layer, head].unique()) == 4


def test_the_best_key_of_a_block_speaks_for_it():
    """Against the definition: of each head's queries, the one that gives a block's best key most of all attention."""
    decoder = small_decoder(small_config([AttentionPattern(window=W, annex=6)]))
    settings = RecallSettings(block=2, piece=50, question=0, queries=2)
    _, cache = read(decoder, settings, [50], asked=60)
    store = store_of(cache)
    queries_NHK = store.tap.of(1)[0].double()
    (run,) = store.log.held(1, 0, 50)
    keys_GSK = store.log.slots(1, run).numbers[0, 0, :, : 50 - W].double()
    for group in range(2):
        products_RS = queries_NHK[:, 2 * group : 2 * group + 2].flatten(0, 1) @ keys_GSK[group].T * 8**-0.5
        best_RB = products_RS.unflatten(1, (-1, 2)).amax(-1)
        wanted = best_RB.softmax(-1).amax(0).topk(3).indices
        assert set((store.annex.tags[1][0, group] & BLOCK).tolist()) == set(wanted.tolist())


@pytest.mark.parametrize(("kv", "tolerance"), [("auto", 1e-4), ("int8", 0.04)])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_what_is_too_far_away_stands_where_the_layer_was_trained_to_see(kv, tolerance, layout):
    """Of forced windows the context is the limit, of others the window: keys are as if read at the clamped position."""
    patterns = [AttentionPattern(window=W, annex=12)] * 2
    config = replace(small_config(patterns, context=40), trained_windows=(W, None))
    layers = tuple(replace(layer, rope=RopeConfig(theta=50.0, layout=layout)) for layer in config.layers)
    decoder = small_decoder(replace(config, layers=layers))
    _, cache = read(decoder, RecallSettings(block=2, piece=8, question=3, queries=1), [20, 1, 1, 36, 1, 1], kv=kv)
    store, mixing, at = store_of(cache), cache.mixing, LENGTH - 1
    (run,) = store.log.held(1, 0, LENGTH)
    slots, logged = store.slots(1, "annex"), store.log.slots(1, run)
    n_moved = 0
    for layer, limit in enumerate((W - 1, 39)):
        stride = max(1, limit // 4)
        nearest = (at // stride + 1) * stride - limit
        assert at - nearest <= limit  # of the last query
        q_K = mix(store.tap.of(1)[layer, -1, 0].float(), mixing)
        for head, place in torch.cartesian_prod(torch.arange(2), torch.arange(6)).tolist():
            first = 2 * (int(store.annex.tags[1][layer, head, place]) & BLOCK)
            shift = nearest - first if at - first > limit else 0
            assert shift >= 0
            n_moved += shift > 0
            for place_in in range(2):
                true_K = mix(logged[0, layer, head, first + place_in].to(torch.float32), mixing)
                turns = [rope.angles(*rope.frequencies(layers[0].rope, 8), torch.tensor([position]), torch.float32)
                         for position in (-first - place_in, first + place_in + shift)]  # fmt: skip
                fresh_K = true_K[None, None]
                for cos_TF, sin_TF in turns:  # back to none, and to the clamped one
                    fresh_K = rope.rotate(fresh_K, cos_TF, sin_TF, layout)
                got_K = mix(slots[0, layer, head, 2 * place + place_in].to(torch.float32), mixing)
                assert float(q_K @ got_K) == pytest.approx(float(q_K @ fresh_K[0, 0]), abs=tolerance)
                kept = slots[1, layer, head, 2 * place + place_in], logged[1, layer, head, first + place_in]
                assert torch.equal(kept[0].numbers, kept[1].numbers)
    assert 12 < n_moved <= 24


def test_true_distances_stay_within_the_context():
    """At the limit itself nothing is turned; where no context is known nothing ever is."""
    clamped = {}
    for context in (0, 60, 59):
        config = replace(small_config([AttentionPattern(window=W, annex=4)], context=context), trained_windows=(None,))
        store = KVCache(config, recall=RecallSettings(block=2)).stores[config.patterns[0]]
        shifts_LGC, tags_LGC = ClampedKeys(config, store, 1, 2).shifts(torch.arange(4).view(1, 1, 4), 59)
        clamped[context] = shifts_LGC.flatten().tolist()
        assert [tag & BLOCK for tag in tags_LGC.flatten().tolist()] == [0, 1, 2, 3]
        assert [tag > BLOCK for tag in tags_LGC.flatten().tolist()] == [shift > 0 for shift in clamped[context]]
    assert clamped == {0: [0, 0, 0, 0], 60: [0, 0, 0, 0], 59: [12, 0, 0, 0]}  # the anchor is at 70


@torch.inference_mode()
def test_rows_forks_and_wiping():
    decoder = small_decoder(small_config([AttentionPattern(window=W, annex=6)] * 2))
    settings = RecallSettings(block=2, piece=8, question=3, queries=1)
    alone, cache = read(decoder, settings, [30, 1, 1])
    fork = KVCache(decoder.config, 1, recall=settings)
    fork.copy_row(fork.allocate(), cache, 1)
    pair = [
        decoder(Batch.pack([IDS[at : at + 1]], [at], [row]), one)
        for one, row in ((cache, 1), (fork, 0))
        for at in (32, 33)
    ]
    assert torch.equal(pair[0], pair[2])
    assert torch.equal(pair[1], pair[3])
    cache.wipe(1)
    assert store_of(cache).annex.count(1) == 0
    assert store_of(cache).annex.tags[1] is None
    both = KVCache(decoder.config, 2, recall=settings)
    rows = [both.allocate(), both.allocate()]
    both.ask(rows[0], 32)
    first = decoder(Batch.pack([IDS[:30], IDS[5:20]], [0, 0], rows), both)
    steps = [decoder(Batch.pack([[IDS[at]], [3]], [at, at - 15], rows), both)[:1] for at in (30, 31)]
    assert torch.allclose(torch.cat([first[:30], *steps]), alone, atol=1e-5)


@torch.inference_mode()
def test_a_token_of_the_question_sees_what_it_asks_for_itself():
    """In each layer what stands there is what this very token wants most; of the answer, of what was wanted last."""
    decoder = small_decoder(small_config([AttentionPattern(window=W, annex=6)] * 2))
    settings = RecallSettings(block=2, piece=50, question=3, queries=1, candidates=6, shared=0, stride=7)
    _, cache = read(decoder, settings, [50], asked=54)
    store, past = store_of(cache), []
    assert cache.recall.shown(1, 49, 50) is not None
    assert cache.recall.shown(1, 51, 50) is None  # what will be there is not known before
    for at in range(50, 58):
        decoder(Batch.pack([[IDS[at]]], [at], [1]), cache)
        assert cache.recall.shown(1, at, at + 1) is not None
        assert cache.recall.shown(1, at - 1, at + 1) is None or at < 51
        end = (at - W + 1) // 2 * 2  # what the token does not see
        (run,) = store.log.held(1, 0, end)
        best = torch.stack([
            (store.tap.of(1)[layer, -1, 2 * group : 2 * group + 2].double()
             @ store.log.slots(1, run).numbers[0, layer, group, :end].double().T * 8**-0.5)
            .unflatten(1, (-1, 2)).amax(-1)
            for layer, group in ((0, 0), (0, 1), (1, 0), (1, 1))
        ])  # fmt: skip
        got = [set(held.tolist()) for held in (store.annex.tags[1] & BLOCK).flatten(0, 1)]
        wanted = [set(of.log_softmax(-1).amax(0).topk(3).indices.tolist()) for of in best]
        if at in (51, 52, 53, 56):
            assert got == wanted, at
            past = [of.log_softmax(-1).amax(0).topk(6).indices.sort().values for of in best]
        elif at > 53:
            among = [of[:, some].log_softmax(-1).amax(0).topk(3).indices for of, some in zip(best, past, strict=True)]
            assert got == [set(some[one].tolist()) for some, one in zip(past, among, strict=True)]


@torch.inference_mode()
def test_what_is_read_after_an_answer_is_looked_up_by_the_next():
    """The annex was filled anew in between: candidates of the first answer are none of the second's."""
    decoder = small_decoder(small_config([AttentionPattern(window=W, annex=12)] * 2))
    _, cache = read(decoder, RecallSettings(block=2, piece=8, question=0, stride=16), [25, 1], asked=25)
    (part,) = cache.recall._parts
    assert part._lookups[1].n_blocks == 5 == part._lookups[1].count
    cache.ask(1, 51)
    decoder(Batch.pack([IDS[26:51]], [26], [1]), cache)
    assert not part._lookups
    assert store_of(cache).annex.tags[1].shape[-1] == 6
    decoder(Batch.pack([IDS[51:52]], [51], [1]), cache)
    assert (part._lookups[1].n_blocks, part._lookups[1].count) == ((51 - W + 1) // 2, 6)
    assert int(part._lookups[1].candidates_LGM.min()) >= 0


@needs_native
@pytest.mark.parametrize(("kv", "question"), [("auto", 9), ("int8", 1)])
@torch.inference_mode()
def test_a_row_depends_neither_on_chunks_nor_on_company(kv, question):
    """Bit for bit: rankings lie at positions, and go by the last tokens' queries however these were cut into steps."""
    network = native_pair()[0]
    network = network.with_config(network.config.with_annex(8))
    settings = RecallSettings(block=2, piece=12, question=question, stride=3, queries=3, candidates=6)
    asked = 41 + question
    alone, cache = read(network, settings, [LENGTH], kv=kv, dtype=torch.bfloat16, asked=asked)
    for sizes in ([17, 1, 26, 2, 14], [1] * LENGTH, [36, 13, 1, 10]):
        again, other = read(network, settings, sizes, kv=kv, dtype=torch.bfloat16, asked=asked)
        assert torch.equal(again, alone), sizes
        assert torch.equal(store_of(other).annex.tags[1], store_of(cache).annex.tags[1])
    company = KVCache(network.config, 8, torch.bfloat16, kv=kv, recall=settings)
    rows, outs, done = [company.allocate() for _ in range(8)], [], [0] * 8
    for row in rows:
        company.ask(row, asked + row - 5)
    for most in (7, 30, 1, 22):
        parts = [IDS[at : at + most + (row != 5)] for row, at in enumerate(done)]
        out = network(Batch.pack(parts, done, rows), company)
        outs.append(out.split([len(part) for part in parts])[5])
        done = [at + len(part) for at, part in zip(done, parts, strict=True)]
    assert torch.equal(torch.cat(outs), alone)
    other, _ = read(network, settings, [LENGTH], kv=kv, dtype=torch.bfloat16, asked=asked + 9)
    assert torch.equal(other[:41], alone[:41])
    assert not torch.equal(other, alone)


@torch.inference_mode()
@pytest.mark.parametrize("asked", [41, 90])
def test_a_row_that_was_taken_back_is_ranked_with_its_next_step(asked):
    decoder = small_decoder(small_config([AttentionPattern(window=W, annex=6)] * 2))
    _, cache = read(decoder, RecallSettings(block=2, piece=8, question=3), [40, 1])
    tags = store_of(cache).annex.tags[1].clone()
    cache.rewind(1, 38)
    assert store_of(cache).annex.count(1) == 0
    cache.ask(1, asked)
    for at in (38, 39, 40):
        decoder(Batch.pack([IDS[at : at + 1]], [at], [1]), cache)
        assert store_of(cache).annex.count(1) == 6
    if asked == 41:
        assert torch.equal(tags.sort(-1).values, store_of(cache).annex.tags[1].sort(-1).values)


def test_which_layers_recall_and_what_they_pin():
    mixed = small_config([AttentionPattern(window=8), AttentionPattern(), AttentionPattern(window=48)], context=64)
    forced = recalling(mixed.with_window(32), RecallSettings(block=8))
    assert [pattern.annex for pattern in forced.patterns] == [0, 24, 24]
    assert [pattern.pins for pattern in forced.patterns] == [0, 8, 8]
    assert [pattern.pin_reach for pattern in forced.patterns] == [None, 56, 40]  # as far as they were trained
    own = recalling(mixed, RecallSettings(block=4), budget=10, layers=[0])
    assert [(pattern.annex, pattern.pins) for pattern in own.patterns] == [(8, 4), (0, 0), (0, 4)]
    full = small_config([AttentionPattern()])
    for config, settings, budget in ((full, {}, None), (mixed, {"block": 64}, None), (mixed, {"block": 4}, 3)):
        with pytest.raises(UsageError):
            recalling(config, RecallSettings(**settings), budget)
    with pytest.raises(UsageError, match="do not divide"):
        RecallSettings(block=24)
    with pytest.raises(UsageError, match="annex"):
        KVCache(mixed, recall=RecallSettings())


def test_where_it_is_off_nothing_is_kept_for_it():
    cache = KVCache(small_config([AttentionPattern(window=W)]))
    (store,) = cache.stores.values()
    assert (cache.recall, cache.log, store.annex, store.tap) == (None, None, None, None)


if __name__ == "__main__":
    for numbers in ("auto", "int8"):
        check_both_ways(numbers)
        check_both_ways(numbers, head_dim=48)
