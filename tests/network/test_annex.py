"""Slots beside the ring: what is brought there is seen by every later query, in both networks, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.errors import ConfigError, UsageError
from sash.kernels import isa, native
from sash.kernels.activations import rotate as mix
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig, RopeConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder
from sash.network.ring_store import RingStore
from sash.network.sizing import kv_bytes, kv_slots
from sash.network.slots import Vectors
from tests.conftest import small_config, small_decoder
from tests.native_parts import parts_of_state

W, LENGTH = 16, 60
IDS = torch.randint(0, 61, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()


def store_of(cache: KVCache) -> RingStore:
    (store,) = cache.stores.values()
    assert isinstance(store, RingStore)
    return store


def test_the_predicate_sees_what_is_annexed_and_no_text_is():
    pattern = AttentionPattern(window=3, pins=1, annex=8)
    far = [pattern.allows(TokenMeta(position=9), TokenMeta(position=j, annexed=j == 2)) for j in range(10)]
    assert [j for j, seen in enumerate(far) if seen] == [0, 2, 7, 8, 9]
    assert [bool(pattern.is_pin(TokenMeta(position=0, annexed=annexed))) for annexed in (False, True)] == [True, False]
    plain = AttentionPattern(window=3, pins=1)
    assert not plain.allows(TokenMeta(position=9), TokenMeta(position=2, annexed=True))
    assert pattern.capacity() == 3 + 1 + 8 == kv_slots(pattern, 10**6)
    for wrong in ({"window": None}, {"window": 3, "causal": False}):
        with pytest.raises(ConfigError, match="annex"):
            AttentionPattern(annex=4, **wrong)


@pytest.mark.parametrize("pins", [0, 3])
@torch.inference_mode()
def test_with_all_that_left_the_window_it_is_full_attention(pins):
    """At distances W - 1 (the ring's last) and W (the annex's first) too: nothing is seen twice, nothing is missed."""
    full = small_decoder(small_config([AttentionPattern()] * 3))
    windowed = full.with_config(full.config.with_window(W).with_annex(LENGTH))
    wanted = full(Batch.pack([IDS]))
    cache = KVCache(windowed.config)
    row, store = cache.allocate(), store_of(cache)
    for at, token in enumerate(IDS):
        if at >= W:  # the oldest of the ring, before it is written over
            slots = store.slots(row, "ring")[:, :, :, at % W : at % W + 1]
            store.annex.fill(row, at - W, slots[0], slots[1])
            store.annex.show(row, at - W + 1)
        out = windowed(Batch.pack([[token]], [at], [row]), cache)
        assert torch.allclose(out[0], wanted[at], atol=2e-4), at


def native_pair(n_layers: int = 2, pins: int = 0, **sizes: int) -> tuple[FusedDecoder, Decoder]:
    pattern = AttentionPattern(window=W, pins=pins, annex=80)
    shape = {"vocab_size": 64, "dim": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "hidden_dim": 64} | sizes
    layer = LayerConfig(pattern=pattern, rope=RopeConfig(theta=1e4))
    config = ModelConfig(architecture="small", layers=(layer,) * n_layers, **shape)
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        parameter.data = (torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1)).bfloat16().float()
    return FusedDecoder(config, parts_of_state(decoder.state_dict())), decoder


def contents(config: ModelConfig, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, config.n_layers, config.n_kv_heads, count, config.head_dim)
    return (2 * torch.randn(shape, generator=generator)).bfloat16().float()


def kept_by(cache: KVCache, count: int, seed: int) -> list[Vectors]:
    keys, values = contents(cache.config, count, seed)
    return [Vectors.of(part, cache.numbers) for part in (mix(keys, cache.mixing), values)]


def read(network, sizes, counts=(70, 5), kv="auto", weights=None, dtype=torch.bfloat16) -> torch.Tensor:
    """Two rows with annexes of their own beside an empty one, the rows' chunks cut at `sizes`."""
    cache = KVCache(network.config, 3, dtype, kv=kv)
    store, rows, outs = store_of(cache), [cache.allocate() for _ in range(3)], []
    at = 0
    for index, size in enumerate(sizes):
        if index == 1:
            for row, count in enumerate(counts):
                keys, values = kept_by(cache, count, row)
                for layer in range(network.config.n_layers):
                    store.annex.fill(row, 0, keys[layer], values[layer], layer=layer)
                store.annex.show(row, count, None if weights is None else weights[:count])
        steps = [(IDS if row != 1 else IDS[::-1])[at : at + size] for row in rows]
        outs.append(network(Batch.pack(steps, [at] * 3, rows), cache).view(3, size, -1))
        at += size
    return torch.cat(outs, 1)


def apart(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)


needs_native = pytest.mark.skipif(not native.available(), reason="native kernels do not serve here: torch does")
KINDS = {
    "grouped": {},
    "odd sizes": {"n_heads": 3, "n_kv_heads": 1, "head_dim": 48},
    "pins": {"pins": 3},
    "many heads": {"n_heads": 20, "n_kv_heads": 1, "head_dim": 16},
}


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@torch.inference_mode()
def test_the_native_network_sees_it_as_the_eager_one(kind, weighted):
    network, decoder = native_pair(**KINDS[kind])
    weights = torch.arange(1, 81) ** 1.5 if weighted else None
    sizes = [2, 30, 1, 1, 25, 1]
    wanted = read(decoder, sizes, weights=weights, dtype=torch.float32)
    got = read(network, sizes, weights=weights)
    assert apart(got, wanted).max() < 0.05
    without = read(decoder, sizes, counts=(0, 0), dtype=torch.float32)
    assert apart(without, wanted)[:2, 2:].median() > 0.2  # it is no small thing
    assert torch.equal(without[2], wanted[2])
    assert torch.equal(without[:, :2], wanted[:, :2])
    for other in ([2] + [1] * 58, [2, 58], [2, 15, 17, 26]):
        assert torch.equal(read(network, other, weights=weights), got), other


@needs_native
@torch.inference_mode()
def test_int8_slots_and_weights_that_count_a_key_twice():
    network, _ = native_pair()
    sizes = [2, 40, 1, 1, 16]
    exact, rounded = read(network, sizes), read(network, sizes, kv="int8")
    assert 0 < apart(rounded, exact).median() < 0.03
    for kv in ("auto", "int8"):
        cache = KVCache(network.config, 2, torch.bfloat16, kv=kv)
        store, rows = store_of(cache), [cache.allocate(), cache.allocate()]
        keys, values = kept_by(cache, 40, 0)
        for row in rows:
            store.annex.fill(row, 0, keys, values)
        store.annex.fill(1, 40, keys, values)
        store.annex.show(0, 40, torch.full((40,), 2))
        store.annex.show(1, 80)
        for at in (0, 30, 31):
            steps = [IDS[at : at + (30 if at == 0 else 1)]] * 2
            twice, each = network(Batch.pack(steps, [at] * 2, rows), cache).chunk(2)
            assert apart(twice, each).max() < 0.01


@torch.inference_mode()
def test_a_row_shows_nothing_of_another_and_a_fork_shows_the_same():
    decoder = small_decoder(small_config([AttentionPattern(window=W, annex=8)] * 2))
    cache, other = KVCache(decoder.config, 2), KVCache(decoder.config)
    store, row = store_of(cache), cache.allocate()
    empty = cache.nbytes
    keys, values = kept_by(cache, 6, 0)
    store.annex.fill(row, 1, keys, values)
    store.annex.show(row, 7, torch.arange(1, 8))
    assert cache.nbytes - empty == 2 * 2 * 2 * 8 * 8 * 4
    assert cache.bytes_of(1) == kv_bytes(decoder.config, 1, 4) == 2 * 2 * (W + 8) * 2 * 8 * 4
    decoder(Batch.pack([IDS[:20]], [0], [row]), cache)
    other.copy_row(other.allocate(), cache, row)
    following = [decoder(Batch.pack([[5]], [20], [0]), one) for one in (cache, other)]
    assert torch.equal(*following)
    with pytest.raises(UsageError, match="not in an annex of 8"):
        store.annex.fill(row, 3, keys, values)
    with pytest.raises(UsageError, match="cannot show 9"):
        store.annex.show(row, 9)
    cache.wipe(row)
    assert cache.nbytes == empty
    assert store.annex.count(row) == 0
    assert store.annex.log_weights(row) is None
    assert not store.slots(row, "annex").numbers.any()
    fresh = KVCache(decoder.config)
    again = decoder(Batch.pack([IDS[:20]], [0], [row]), cache)
    assert torch.equal(again, decoder(Batch.pack([IDS[:20]], [0], [fresh.allocate()]), fresh))


@needs_native
def test_the_kernels_without_tiles_see_it():
    """The best instruction set serves the tests above; the plainest shares its code with all but that one."""
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, here],
        env=os.environ | {"SASH_ISA": isa.available_isas()[-1], "PYTHONPATH": str(here.parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1


@torch.inference_mode()
def farthest() -> float:
    """How far apart both networks are, in bfloat16 and int8."""
    torch.set_num_threads(1)
    network, decoder = native_pair(pins=2)
    weights, sizes = torch.arange(1, 81), [2, 30, 1, 1, 25, 1]
    wanted = read(decoder, sizes, weights=weights, dtype=torch.float32)
    kinds = [read(network, sizes, weights=weights, kv=kv) for kv in ("auto", "int8")]
    return max(float(apart(got, wanted).max()) for got in kinds)


if __name__ == "__main__":
    sys.stdout.write(str(farthest()))
