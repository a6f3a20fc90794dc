"""Caches that keep bfloat16 or int8, against an oracle without a cache that rounds every token by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention import reference
from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.torch_backend import attend_segment
from sash.errors import UsageError
from sash.kernels import activations
from sash.network import rope
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import RopeConfig
from sash.network.growing_store import GrowingStore
from sash.network.ring_store import RingStore
from sash.network.sizing import KV_BYTES, kv_bytes
from sash.network.step import Step
from tests.conftest import small_config, small_decoder

HEADS, GROUPS, DIM, SCALE = 4, 2, 8, 0.4


def rounded(x: torch.Tensor, kv: str) -> torch.Tensor:
    """Each vector of [T, G, K] by itself, written down a second time."""
    if kv == "bf16":
        return x.bfloat16().float()
    out = np.zeros(x.shape, np.float32)
    for token, heads in enumerate(x.numpy()):
        for head, vector in enumerate(heads):
            largest = np.float32(max(abs(number) for number in vector))
            for index, number in enumerate(vector):
                q = np.rint(np.float32(number) * (np.float32(127) / largest)) if largest else np.float32(0)
                out[token, head, index] = q * (largest / np.float32(127))
    return torch.from_numpy(out)


def hadamard(size: int) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / size**0.5


def kept_keys(turned: torch.Tensor, kv: str) -> torch.Tensor:
    """Rotated keys as the cache keeps them, turned back: int8 ones are rounded with their components mixed."""
    if kv == "bf16":
        return rounded(turned, kv)
    return rounded(activations.rotate(turned, DIM), kv) @ hadamard(DIM)


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    frequencies, factor = rope.frequencies(RopeConfig(), DIM)
    return rope.rotate(x, *rope.angles(frequencies, factor, positions, torch.float32), "half")


class Text:
    """Queries, keys and values of one sequence before rotation, and flags."""

    def __init__(self, n_tokens: int, pattern: AttentionPattern, generator: torch.Generator) -> None:
        self.q, self.k, self.v = (
            torch.randn(n_tokens, heads, DIM, generator=generator) for heads in (HEADS, GROUPS, GROUPS)
        )
        chosen = torch.randperm(n_tokens, generator=generator)
        self.pinned = torch.zeros(n_tokens, dtype=torch.bool)
        self.is_global = torch.zeros(n_tokens, dtype=torch.bool)
        if pattern.pin_by == "flag":
            self.pinned[chosen[: pattern.pins]] = True
        if pattern.global_tokens:
            self.is_global[chosen[:2]] = True

    def oracle(self, pattern: AttentionPattern, kv: str) -> torch.Tensor:
        """One forward without a cache whose keys, once rotated, and values are rounded token by token."""

        def rounds_keys(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            turned = rotate(x, positions)
            return kept_keys(turned, kv) if x.shape[1] == GROUPS else turned

        positions = torch.arange(len(self.q))
        meta = TokenMeta(position=positions, pinned=self.pinned, is_global=self.is_global)
        return reference.attention(self.q, self.k, rounded(self.v, kv), pattern, meta, meta, SCALE, rounds_keys)


@st.composite
def patterns(draw: st.DrawFn) -> AttentionPattern:
    kind = draw(st.sampled_from(["window", "window", "dilated", "flagged", "global", "full"]))
    if kind == "full":
        return AttentionPattern()
    window = draw(st.integers(1, 9))
    if kind == "global":
        return AttentionPattern(window=window, global_tokens=True)
    pins = draw(st.integers(0, min(window, 4)))
    if kind == "flagged":
        return AttentionPattern(window=window, pins=pins, pin_by="flag")
    return AttentionPattern(window=window, pins=pins, dilation=draw(st.integers(2, 3)) if kind == "dilated" else 1)


@settings(max_examples=100, deadline=None)
@given(
    pattern=patterns(),
    kv=st.sampled_from(["int8", "int8", "bf16"]),
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=3),
    seed=st.integers(0, 9),
    order=st.randoms(use_true_random=False),
)
def test_attention_through_a_rounded_cache_equals_the_oracle(pattern, kv, lengths, seed, order) -> None:  # type: ignore[no-untyped-def]
    """Any chunks, windows, pins, wraps and company: a token's numbers are the same in its chunk as in its slot."""
    config = small_config([pattern])
    generator = torch.Generator().manual_seed(seed)
    texts = [Text(length, pattern, generator) for length in lengths]
    cache = KVCache(config, len(texts), kv=kv)
    rows = [cache.allocate() for _ in texts]
    done, parts = [0] * len(texts), [[] for _ in texts]
    while any(at < length for at, length in zip(done, lengths, strict=True)):
        waiting = [index for index, length in enumerate(lengths) if done[index] < length]
        now = order.sample(waiting, order.randint(1, len(waiting)))
        sizes = [min(lengths[i] - done[i], order.choice([1, 1, 2, 3, 8, 13])) for i in now]
        inside = [slice(done[i], done[i] + size) for i, size in zip(now, sizes, strict=True)]
        batch = Batch.pack(
            [torch.zeros(size, dtype=torch.int64) for size in sizes], [done[i] for i in now], [rows[i] for i in now],
            pinned=[texts[i].pinned[s].tolist() for i, s in zip(now, inside, strict=True)],
            is_global=[texts[i].is_global[s].tolist() for i, s in zip(now, inside, strict=True)],
        )  # fmt: skip
        q, k, v = (torch.cat([getattr(texts[i], name)[s] for i, s in zip(now, inside, strict=True)]) for name in "qkv")
        step = Step(config, batch, cache, attend_segment, torch.float32)
        out = step.attend(0, config.layers[0], q, k, v, SCALE)
        step.finish()
        for i, part in zip(now, out.split(sizes), strict=True):
            parts[i].append(part)
            done[i] += len(part)
    for text, pieces in zip(texts, parts, strict=True):
        assert (torch.cat(pieces) - text.oracle(pattern, kv)).abs().max() < 1e-5


def test_mixed_components_leave_every_product_as_it_was_and_spread_what_stands_out() -> None:
    q, k = torch.randn(30, 96), torch.randn(30, 96)
    k[:, 5] *= 30
    mixing = KVCache(small_config([AttentionPattern(window=6)], head_dim=96), kv="int8").mixing
    assert mixing == 96
    mixed = activations.rotate(k, mixing)
    assert torch.allclose(activations.rotate(mixed, mixing), k, atol=1e-4)
    assert torch.allclose(activations.rotate(q, mixing) @ mixed.T, q @ k.T, atol=1e-3)
    assert mixed.abs().amax(1).mean() < k.abs().amax(1).mean() / 3


def test_rounding_is_seen_at_all() -> None:
    """The oracle of int8 is far enough from the plain one for the comparison above to mean something."""
    text = Text(40, AttentionPattern(window=9), torch.Generator().manual_seed(0))
    pattern = AttentionPattern(window=9)
    meta = TokenMeta(position=torch.arange(40))
    plain = reference.attention(text.q, text.k, text.v, pattern, meta, meta, SCALE, rotate)
    assert 1e-3 < (text.oracle(pattern, "int8") - plain).abs().max() < 5e-2


@pytest.mark.parametrize("kv", ["int8", "bf16"])
def test_bfloat16_networks_meet_what_is_kept(kv: str) -> None:
    pattern = AttentionPattern(window=7, pins=2)
    config, text = small_config([pattern]), Text(30, pattern, torch.Generator().manual_seed(3))
    cache = KVCache(config, 1, torch.bfloat16, kv=kv)
    row, parts = cache.allocate(), []
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 30)):
        step = Step(
            config, Batch.pack([[0] * (stop - start)], [start], [row]), cache, attend_segment, torch.bfloat16
        )  # fmt: skip
        q, k, v = (x[start:stop].bfloat16() for x in (text.q, text.k, text.v))
        parts.append(step.attend(0, config.layers[0], q, k, v, SCALE))
        step.finish()
    assert torch.cat(parts).dtype == torch.bfloat16
    assert (torch.cat(parts).float() - text.oracle(pattern, kv)).abs().max() < 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nbytes_is_the_formula_to_the_byte(dtype: torch.dtype) -> None:
    config = small_config([AttentionPattern(window=6, pins=2)] * 5)
    cache = KVCache(config, 3, dtype, kv="int8")
    assert cache.nbytes == 3 * 2 * 5 * (6 + 2) * GROUPS * (DIM + 4)
    assert cache.nbytes == 3 * kv_bytes(config, 10**7, *KV_BYTES["int8"]) == 3 * cache.bytes_of(10**7)
    assert KVCache(config, 3, dtype, kv="bf16").nbytes == 3 * 2 * 5 * (6 + 2) * GROUPS * DIM * 2
    assert KVCache(config, 3, dtype).nbytes == 3 * kv_bytes(config, 1, dtype.itemsize)


def read(decoder, cache: KVCache, row: int, count: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    start = cache.lengths[row]
    ids = [(7 * position) % 61 for position in range(start, start + count)]
    with torch.no_grad():
        return decoder(Batch.pack([ids], [start], [row]), cache)


def test_int8_slots_are_laid_out_like_all_others_with_a_scale_each() -> None:
    config = small_config([AttentionPattern(window=6, pins=2), AttentionPattern(window=6, pins=2), AttentionPattern()])
    cache = KVCache(config, 2, kv="int8")
    decoder, row = small_decoder(config), cache.allocate()
    read(decoder, cache, row, 1100)
    ring, growing = cache.stores.values()
    assert isinstance(ring, RingStore)
    assert isinstance(growing, GrowingStore)
    held = [(ring.ring, (2, 2, 2, GROUPS, 6)), (ring.pins, (2, 2, 2, GROUPS, 2))]
    held += [(block.slots, (2, 1, GROUPS, 1024)) for block in growing.rows.blocks[row] if block]
    for vectors, shape in held:
        assert vectors.numbers.dtype == torch.int8
        assert vectors.numbers.shape == (*shape, DIM)
        assert vectors.numbers.is_contiguous()
        assert vectors.scales is not None
        assert vectors.scales.dtype == torch.float32
        assert vectors.scales.shape == shape
        assert vectors.scales.is_contiguous()
    assert cache.nbytes == kv_bytes(config, 1100, 1, 4) + kv_bytes(
        small_config([AttentionPattern(window=6, pins=2)] * 2), 0, 1, 4
    )
    assert bool(ring.ring.numbers[:, :, row].any())
    cache.release(row)
    for vectors in (ring.ring, ring.pins):
        assert not bool(vectors.numbers.any())
        assert vectors.scales is not None
        assert not bool(vectors.scales.any())
    assert growing.rows.blocks[row] == []


def test_a_forked_row_goes_its_own_way_and_caches_of_other_numbers_are_refused() -> None:
    config = small_config([AttentionPattern(window=6, pins=2), AttentionPattern()])
    decoder = small_decoder(config)
    one, two = KVCache(config, kv="int8"), KVCache(config, kv="int8")
    row, twin = one.allocate(), two.allocate()
    read(decoder, one, row, 15)
    two.copy_row(twin, one, row)
    with torch.no_grad():
        decoder(Batch.pack([[9] * 8], [15], [twin]), two)
    expected = KVCache(config, kv="int8")
    read(decoder, expected, expected.allocate(), 15)
    assert torch.equal(read(decoder, one, row, 3), read(decoder, expected, 0, 3))
    with pytest.raises(UsageError, match="the same numbers"):
        KVCache(config).copy_row(0, one, row)


def test_what_a_cache_keeps_is_one_of_three() -> None:
    with pytest.raises(UsageError, match="kv 'int4' is not known: use auto, bf16 or int8"):
        KVCache(small_config([AttentionPattern(window=6)]), kv="int4")
