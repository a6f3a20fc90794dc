"""Summaries of what left the window, against means written out, on both networks, for any chunks and company."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.errors import ConfigError, UsageError
from sash.lm import LM
from sash.network import rope
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder
from sash.network.hierarchy import Hierarchy
from sash.network.packed import Network
from sash.network.summaries import RowSummaries
from sash.sampling import SamplingParams
from sash.text.tokenizer import Tokenizer
from tests.conftest import small_config, small_decoder
from tests.network.test_fused import config_of as fused_config
from tests.network.test_fused import decoder_of, parts_of

WINDOW, BLOCK = 12, 4
SMALL = Hierarchy(block=BLOCK, per_level=2, levels=3)


def config_of(
    window: int = WINDOW, hierarchy: Hierarchy | None = SMALL, pins: int = 0, **changes: object
) -> ModelConfig:
    pattern = AttentionPattern(window=window, pins=pins)
    return small_config([pattern] * 3, vocab_size=259, **changes).with_hierarchy(hierarchy)


def read(network: Network, cache: KVCache, ids: list[int], sizes: list[int], row: int | None = None) -> torch.Tensor:
    """Hidden states of `ids`, in steps of the sizes, over and over."""
    row = cache.allocate() if row is None else row
    found, at, step = [], 0, 0
    with torch.inference_mode():
        while at < len(ids):
            size = sizes[step % len(sizes)]
            found.append(network(Batch.pack([ids[at : at + size]], [at], [row]), cache).float())
            at, step = at + size, step + 1
    return torch.cat(found)


def random_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 259, (count,), generator=generator).tolist()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_summaries_stay_few_and_stand_for_every_token_once(block: int, per_level: int, levels: int, n_blocks: int):
    hierarchy = Hierarchy(block=block, per_level=per_level, levels=levels)
    steps: list[int] = []
    sizes: list[int] = []
    for count in range(1, n_blocks + 1):
        sizes.append(1)
        for at in hierarchy.merges(steps):
            sizes[at : at + 2] = [sizes[at] + sizes[at + 1]]
        assert len(sizes) == len(steps) <= hierarchy.bound(count) <= hierarchy.n_slots
    assert sum(sizes) == n_blocks
    assert steps == sorted(steps, reverse=True)
    assert all(size == 2**level for size, level in zip(sizes, steps, strict=True) if level < levels - 1)
    assert hierarchy.bound(n_blocks) <= per_level * (math.log2(n_blocks / per_level + 1) + 1 if n_blocks else 0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_token_that_left_is_in_one_summary(data: st.DataObject):
    window = data.draw(st.integers(BLOCK, 14))
    pins = data.draw(st.integers(0, 3))
    length = data.draw(st.integers(1, 90))
    config = config_of(window, pins=pins)
    cache = KVCache(config)
    row = cache.allocate()
    assert cache.summaries is not None
    decoder = DECODERS.setdefault((window, pins), small_decoder(config))
    read(decoder, cache, random_ids(length), [data.draw(st.integers(1, 30))], row)
    last = (length - 1) // BLOCK * BLOCK  # summaries moved last before this position
    (own,) = cache.summaries.of(row)
    end = max(0, last + BLOCK - window)
    assert own.end == end
    assert sum(own.counts) == max(0, end - pins)
    assert end > length - 1 - window  # all that the last token's window lost
    middle = sum(count * at for count, at in zip(own.counts, own.middles, strict=True))
    assert middle == pytest.approx(sum(range(pins, end)))
    annexed = [store.annex for store in cache.stores.values() if store.annex is not None]
    assert [annex.count(row) for annex in annexed] == [len(own.counts)]
    assert len(own.counts) <= SMALL.bound(-(-end // BLOCK))
    weights = annexed[0].log_weights(row)
    if own.counts:
        assert weights[: len(own.counts)].exp().tolist() == pytest.approx(own.counts)


DECODERS: dict[tuple[int, int], Decoder] = {}


def test_a_summary_is_the_mean_of_keys_and_values_turned_to_their_middle():
    config, ids = forced_config(context=10_000), random_ids(40)
    decoder, cache = small_decoder(config), KVCache(config)
    row = cache.allocate()
    read(decoder, cache, ids, [7], row)
    (store,), (own,) = cache.summaries._stores, cache.summaries.of(row)
    full = small_decoder(config.with_hierarchy(None).with_window("full"))
    whole = KVCache(full.config)
    read(full, whole, ids[:WINDOW], [WINDOW])  # as long as nothing has left, any window computes the same
    held = whole.stores[AttentionPattern()]
    keys = held.view(1, 0, held.whole(0, WINDOW, 0)[0])
    frequencies, factor = rope.frequencies(config.layers[1].rope, config.head_dim)
    back = rope.angles(frequencies, factor, -torch.arange(4), torch.float32)
    plain = rope.rotate(keys[0][:, :4].transpose(0, 1), *back, config.layers[1].rope.layout).mean(0)
    first = read_until(config, decoder, ids, WINDOW + 1)
    assert torch.allclose(first.vectors[0, 0, :, 0], plain, atol=1e-5)
    assert torch.allclose(first.vectors[1, 0, :, 0], keys[1][:, :4].mean(1), atol=1e-5)
    turned = rope.angles(frequencies, factor, torch.tensor(own.middles), torch.float32)
    laid = rope.rotate(own.vectors[0, 0].transpose(0, 1), *turned, config.layers[1].rope.layout).transpose(0, 1)
    assert torch.allclose(store.annex.slots(row)[0, 0, :, : len(own.counts)].numbers, laid, atol=1e-5)


def read_until(config: ModelConfig, decoder: Decoder, ids: list[int], length: int) -> RowSummaries:
    cache = KVCache(config)
    row = cache.allocate()
    read(decoder, cache, ids[:length], [length], row)
    return cache.summaries.of(row)[0]


def forced_config(**changes: object) -> ModelConfig:
    return small_config([AttentionPattern()] * 3, vocab_size=259, **changes).with_window(WINDOW).with_hierarchy(SMALL)


def test_layers_that_were_trained_to_see_all_have_summaries_before_others():
    patterns = [AttentionPattern(window=20), AttentionPattern(), AttentionPattern(window=20), AttentionPattern()]
    forced = small_config(patterns).with_window(WINDOW).with_window(WINDOW, 2).with_hierarchy(SMALL)
    assert forced.trained_windows == (20, None, 20, None)
    assert [pattern.annex > 0 for pattern in forced.patterns] == [False, True, False, True]
    assert [pattern.annex > 0 for pattern in small_config(patterns).with_hierarchy(SMALL).patterns] == [False] * 2 + [
        True,
        False,
    ]


def test_far_middles_count_as_no_farther_than_was_trained():
    config = forced_config(context=24)
    cache = KVCache(config)
    row = cache.allocate()
    read(small_decoder(config), cache, random_ids(60), [60], row)
    (own,) = cache.summaries.of(row)
    (store,) = cache.summaries._stores
    frequencies, factor = rope.frequencies(config.layers[1].rope, config.head_dim)
    nearest = torch.tensor(own.middles, dtype=torch.float64).clamp_min(56 - (24 - BLOCK))
    assert nearest[0] > own.middles[0]
    laid = rope.rotate(
        own.vectors[0, 1].transpose(0, 1),
        *rope.angles(frequencies, factor, nearest, torch.float32),
        config.layers[1].rope.layout,
    )
    assert torch.allclose(store.annex.slots(row)[0, 1, :, : len(own.counts)].numbers.transpose(0, 1), laid, atol=1e-5)


@pytest.mark.parametrize("sizes", [[1], [3], [BLOCK], [WINDOW - 1], [WINDOW], [50], [5, 1, 17]])
def test_chunks_change_nothing_in_torch(sizes: list[int]):
    config = config_of(pins=2)
    decoder, ids = small_decoder(config), random_ids(70)
    expected = read(decoder, KVCache(config), ids, [70])
    assert torch.allclose(read(decoder, KVCache(config), ids, sizes), expected, atol=2e-5)


def test_until_something_leaves_and_when_it_is_off_nothing_changes():
    config = config_of()
    decoder, ids = small_decoder(config), random_ids(70)
    plain = small_decoder(config_of(hierarchy=None))
    expected, found = read(plain, KVCache(plain.config), ids, [70]), read(decoder, KVCache(config), ids, [70])
    assert torch.allclose(found[:WINDOW], expected[:WINDOW], atol=1e-5)
    assert not torch.allclose(found[WINDOW:], expected[WINDOW:], atol=1e-3)
    off = config.with_hierarchy(None)
    assert off == plain.config
    assert KVCache(off).summaries is None


def test_company_copies_and_wiped_rows():
    config = config_of()
    decoder, cache = small_decoder(config), KVCache(config, 3)
    texts = [random_ids(50, seed) for seed in (1, 2)]
    alone = [read(decoder, KVCache(config), ids, [50]) for ids in texts]
    rows = [cache.allocate(), cache.allocate()]
    with torch.inference_mode():
        parts = [
            decoder(Batch.pack([ids[a:b] for ids in texts], [a, a], rows), cache)
            for a, b in ((0, 23), (23, 24), (24, 40))
        ]
        both = [torch.cat([part.view(2, -1, config.dim)[at] for part in parts]) for at in (0, 1)]
        twin = cache.allocate()
        cache.copy_row(twin, cache, rows[1])
        tail = decoder(Batch.pack([texts[1][40:], texts[0][40:]], [40, 40], [twin, rows[0]]), cache)
    for found, expected in zip(both, alone, strict=True):
        assert torch.allclose(found, expected[:40], atol=2e-5)
    assert torch.allclose(tail, torch.cat((alone[1][40:], alone[0][40:])), atol=2e-5)
    cache.wipe(twin)
    assert torch.allclose(read(decoder, cache, texts[0], [50], twin), alone[0], atol=2e-5)


def native_config() -> ModelConfig:
    return fused_config(n_layers=3).with_window(WINDOW, 1)


@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_natively_every_bit_is_the_same_for_any_chunks(kv: str):
    eager = decoder_of(native_config())
    config = native_config().with_hierarchy(SMALL)
    network = FusedDecoder(config, parts_of(eager))
    ids = random_ids(90)
    expected = read(network, KVCache(network.config, 1, torch.bfloat16, kv=kv), ids, [90])
    for sizes in ([1], [3], [WINDOW], [11, 1, 30]):
        cache = KVCache(network.config, 1, torch.bfloat16, kv=kv)
        assert torch.equal(read(network, cache, ids, sizes), expected)
    torch_network = eager.with_config(config)
    in_torch = read(torch_network, KVCache(config, 1, torch.float32, kv="bf16" if kv == "auto" else kv), ids, [90])
    assert (in_torch - expected).abs().max() < 0.05 * in_torch.abs().max()
    plain = network.with_config(network.config.with_hierarchy(None))
    rolled = read(plain, KVCache(plain.config, 1, torch.bfloat16, kv=kv), ids, [90])
    assert torch.equal(rolled[:WINDOW], expected[:WINDOW])
    assert not torch.equal(rolled[WINDOW:], expected[WINDOW:])


def test_a_model_with_summaries_generates_scores_and_refuses(byte_tokenizer: Tokenizer):
    lm = LM(small_decoder(small_config([AttentionPattern()] * 3, vocab_size=259)), byte_tokenizer, chunk=5)
    windowed = lm.with_window(WINDOW, 1)
    summed = windowed.with_hierarchy(per_level=2, block=BLOCK)
    prompts = [random_ids(n, n) for n in (5, 40, 41)]
    alone = [summed.generate(ids, max_tokens=12, temperature=0, ignore_eos=True) for ids in prompts]
    together = summed.generate(prompts, max_tokens=12, temperature=0, ignore_eos=True)
    assert [done.token_ids for done in together] == [done.token_ids for done in alone]
    session = summed.session()
    session.feed(prompts[1])
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    assert session.fork().generate(params).token_ids == alone[1].token_ids
    assert session.generate(params).token_ids == alone[1].token_ids
    logged = summed.session(log=True)
    logged.feed(prompts[1])
    assert logged.return_to(prompts[1][:30]) == 0  # nothing brings summaries back, so it is read again
    logged.feed(prompts[1])
    assert logged.generate(params).token_ids == alone[1].token_ids
    with pytest.raises(UsageError, match="choose one"):
        windowed.with_recall(block=BLOCK).with_overlap(3)
    with pytest.raises(UsageError, match="choose one"):
        summed.with_recall(block=BLOCK)
    with pytest.raises(UsageError, match="cannot be kept"):
        logged.state()
    assert summed.score(prompts[2], 7).tolist() == pytest.approx(summed.score(prompts[2], None).tolist(), abs=1e-4)
    assert summed.score(prompts[2]).tolist() != pytest.approx(windowed.score(prompts[2]).tolist(), abs=1e-3)
    with pytest.raises(ConfigError, match="--window N"):
        lm.with_hierarchy()
    with pytest.raises(ConfigError, match="do not fit"):
        windowed.with_hierarchy(block=WINDOW + 1)
    with pytest.raises(UsageError, match="choose one"):
        summed.with_overlap(3)
    with pytest.raises(UsageError, match="choose one"):
        windowed.with_overlap(3).with_hierarchy(block=BLOCK)
    with pytest.raises(UsageError, match="leave the guessing out"):
        summed.with_speculation("lookup")
    cache = KVCache(summed.config)
    state = cache.capture(cache.allocate())
    with pytest.raises(UsageError, match="read its text again"):
        cache.restore(0, state)
