"""Rows captured anywhere and gone on from elsewhere: bit for bit as if nobody had ever stopped."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern
from sash.errors import CheckpointError, UsageError
from sash.kernels import native
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig, RopeConfig
from sash.network.fingerprint import fingerprint
from sash.network.fused import FusedDecoder
from sash.network.growing_store import GrowingStore
from sash.network.packed import Network
from sash.network.ring_store import RingStore
from sash.network.sizing import block_sizes
from sash.network.snapshot import RowState
from tests.conftest import small_config, small_decoder
from tests.native_parts import random_native

W = 9
CONFIGS = {
    "window": [AttentionPattern(window=W)] * 2,
    "pins": [AttentionPattern(window=W, pins=3)] * 2,
    "flagged pins": [AttentionPattern(window=W, pins=4, pin_by="flag")] * 2,
    "dilated": [AttentionPattern(window=5, dilation=2)] * 2,
    "interleaved": [AttentionPattern(window=W), AttentionPattern(), AttentionPattern(window=W)],
    "full": [AttentionPattern()] * 2,
    "global": [AttentionPattern(window=W, global_tokens=True), AttentionPattern(window=W)],
}
LENGTH = 70


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8, 8, 16, 16 ... slots, so that texts of some tokens fill several."""
    monkeypatch.setattr("sash.network.sizing.FIRST_BLOCK", 8)
    monkeypatch.setattr("sash.network.sizing.LARGEST_BLOCK", 16)
    assert block_sizes(33) == (8, 8, 16, 16)


NATIVE = {"native window": (0, False), "native pins": (3, True)} if native.available() else {}
NAMES = [*CONFIGS, *NATIVE]


@lru_cache
def network_of(name: str) -> Network:
    return fused(*NATIVE[name]) if name in NATIVE else small_decoder(small_config(CONFIGS[name]))


@pytest.fixture(autouse=True, scope="module")
def _forget_networks() -> Iterator[None]:
    yield
    network_of.cache_clear()


def fused(pins: int, mixed: bool) -> FusedDecoder:
    """A native decoder of three layers with random weights, Gemma-like where it is mixed."""
    windowed, full = AttentionPattern(window=W, pins=pins), AttentionPattern()
    layers = tuple(
        LayerConfig(pattern=full if mixed and i == 1 else windowed, rope=RopeConfig(theta=1e6 if i == 1 else 1e4))
        for i in range(3)
    )
    config = ModelConfig(
        architecture="small", vocab_size=61, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96,
        layers=layers, qk_norm=mixed, post_norms=mixed, tied_embeddings=mixed,
    )  # fmt: skip
    return random_native(config, seed=3)


def kvs(name: str) -> list[str]:
    return ["auto", "int8"] if name.startswith("native") else ["auto", "bf16", "int8"]


def cache_of(network: Network, rows: int = 1, kv: str = "auto") -> KVCache:
    return KVCache(network.config, rows, network.dtype, kv=kv)


class Text:
    """Token ids, flags, and how they are read: sizes of steps. One text is always cut at the same places."""

    def __init__(self, seed: int, length: int = LENGTH, cuts: list[int] | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 61, (length,), generator=generator).tolist()
        chosen = torch.randperm(length, generator=generator).tolist()
        self.pinned = [i in chosen[:4] for i in range(length)]
        self.is_global = [i in chosen[4:7] for i in range(length)]
        self.bounds = [0, *sorted(set(cuts or range(1, length))), length]

    def flags(self, network: Network, start: int, stop: int) -> dict[str, list[list[bool]]]:
        patterns = network.config.patterns
        flags = {}
        if any(pattern.pin_by == "flag" for pattern in patterns):
            flags["pinned"] = [self.pinned[start:stop]]
        if any(pattern.global_tokens for pattern in patterns):
            flags["is_global"] = [self.is_global[start:stop]]
        return flags

    @torch.inference_mode()
    def read(self, network: Network, cache: KVCache, row: int, stop: int) -> Iterator[torch.Tensor]:
        """Read on up to the cut at `stop`, step by step."""
        for a, b in zip(self.bounds, self.bounds[1:], strict=False):
            if a >= cache.lengths[row] and b <= stop:
                yield network(Batch.pack([self.ids[a:b]], [a], [row], **self.flags(network, a, b)), cache)

    def whole(self, network: Network, kv: str) -> torch.Tensor:
        cache = cache_of(network, 1, kv)
        return torch.cat(list(self.read(network, cache, cache.allocate(), len(self.ids))))


def through_json(state: RowState) -> RowState:
    """What a file would give back."""
    return RowState.rebuild(json.loads(json.dumps(state.describe())), [t.clone() for t in state.tensors()])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    kv=st.integers(0, 2),
    cuts=st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=9, unique=True),
    schedule=st.randoms(use_true_random=False),
)
def test_going_on_from_a_snapshot_is_never_having_stopped(name, seed, kv, cuts, schedule) -> None:  # type: ignore[no-untyped-def]
    """Rows read, are captured, released and restored elsewhere; every number is that of one row that reads alone."""
    network = network_of(name)
    kv = kvs(name)[kv % len(kvs(name))]
    text = Text(seed, cuts=cuts)
    whole = text.whole(network, kv)
    cache = cache_of(network, 3, kv)
    rows = [cache.allocate() for _ in range(3)]
    states: list[RowState] = []
    for _ in range(12):
        row = schedule.choice(rows)
        if states and schedule.random() < 0.5:
            state = schedule.choice(states)
            cache.restore(row, through_json(state) if schedule.random() < 0.3 else state)
            assert cache.lengths[row] == state.length
        elif schedule.random() < 0.2:
            cache.wipe(row)
        at = cache.lengths[row]
        stop = schedule.choice([bound for bound in text.bounds if bound >= at])
        got = list(text.read(network, cache, row, stop))
        if got:
            assert torch.equal(torch.cat(got), whole[at:stop])
        if cache.lengths[row]:
            states.append(cache.capture(row))
            assert states[-1].length == cache.lengths[row]


@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_last_token_can_be_restored_and_it_be_read_again(name) -> None:  # type: ignore[no-untyped-def]
    network = network_of(name)
    lengths = (2, 3, 4, W - 1, W, W + 1, 17, 33, LENGTH - 1)
    text = Text(5, cuts=sorted({*lengths, *(length - 1 for length in lengths)}))
    for kv in kvs(name):
        whole = text.whole(network, kv)
        cache = cache_of(network, 2, kv)
        row, other = cache.allocate(), cache.allocate()
        for length in lengths:
            list(text.read(network, cache, row, length))
            cache.restore(other, cache.capture(row), length - 1)
            stop = next(bound for bound in text.bounds if bound > length)
            got = torch.cat(list(text.read(network, cache, other, stop)))
            assert torch.equal(got, whole[length - 1 : stop]), (kv, length)


@pytest.mark.parametrize("distance", [W - 1, W])
def test_window_probe_through_a_snapshot(distance: int) -> None:
    """The key at distance W - 1 comes back with the ring and matters; the one at W does not."""
    network = small_decoder(small_config([AttentionPattern(window=W)]))
    last, outs = 40, []
    for change in (0, 1):
        text = Text(1, last + 1)
        text.ids[last - distance] = (text.ids[last - distance] + change) % 61
        cache = cache_of(network, 2)
        row, other = cache.allocate(), cache.allocate()
        list(text.read(network, cache, row, last))
        state = cache.capture(row)
        cache.release(row)
        cache.restore(other, through_json(state))
        outs += list(text.read(network, cache, other, last + 1))
    assert torch.equal(*outs) is (distance == W)


def test_nothing_that_happens_to_rows_changes_a_snapshot() -> None:
    network, text, other = network_of("interleaved"), Text(1), Text(2)
    cache = cache_of(network, 2)
    row, twin = cache.allocate(), cache.allocate()
    list(text.read(network, cache, row, 30))
    state = cache.capture(row)
    before = [tensor.clone() for tensor in state.tensors()]
    list(text.read(network, cache, row, LENGTH))
    cache.release(row)
    for store in cache.stores.values():
        if isinstance(store, RingStore):
            store.ring.numbers.fill_(torch.nan)
    cache.wipe(twin)
    cache.restore(twin, state)
    other.ids[:30] = text.ids[:30]
    list(other.read(network, cache, twin, LENGTH))
    cache.wipe(twin)
    assert all(torch.equal(a, b) for a, b in zip(before, state.tensors(), strict=True))


def blocks(cache: KVCache, row: int) -> list[object]:
    (store,) = (store for store in cache.stores.values() if isinstance(store, GrowingStore))
    return list(store.rows.blocks[row])


def test_complete_blocks_are_shared_and_the_one_that_is_written_is_copied_once() -> None:
    network, text = network_of("interleaved"), Text(1)
    cache = cache_of(network, 3)
    first, second, third = (cache.allocate() for _ in range(3))
    list(text.read(network, cache, first, 29))  # 8 + 8 + 13 of 16 slots
    size = sum(store.nbytes for store in cache.stores.values())
    state = cache.capture(first)
    for row in (second, third):
        cache.restore(row, state)
        assert blocks(cache, row) == blocks(cache, first)
    assert sum(store.nbytes for store in cache.stores.values()) == size
    list(text.read(network, cache, second, 30))  # goes on in the shared block
    assert blocks(cache, second) == blocks(cache, first)
    list(text.read(network, cache, third, 30))  # another has gone on there: this one copies
    list(text.read(network, cache, first, 30))
    assert blocks(cache, third)[:2] == blocks(cache, first)[:2] == blocks(cache, second)[:2]
    assert len({id(blocks(cache, row)[2]) for row in (first, second, third)}) == 3


def test_bytes_of_shared_blocks_count_once() -> None:
    network, text = network_of("full"), Text(1)
    cache = cache_of(network)
    row = cache.allocate()
    list(text.read(network, cache, row, 29))
    one = cache.capture(row)
    list(text.read(network, cache, row, 31))
    two = cache.capture(row)
    slot = 2 * 2 * 2 * 8 * 4
    assert one.nbytes == two.nbytes == 32 * slot
    assert one.storages() == two.storages()
    cache.wipe(row)
    list(text.read(network, cache, row, 20))  # 4 of the last 16 slots: those are copied, the idle ones are not held
    assert cache.capture(row).nbytes == 20 * slot
    cache.wipe(row)
    gc.collect()
    assert sum(store.nbytes for store in cache.stores.values()) == 0


def test_blocks_follow_a_cache_to_its_device() -> None:
    network, text = network_of("global"), Text(1)
    cache = cache_of(network, kv="int8")
    list(text.read(network, cache, cache.allocate(), 30))
    (store,) = (store for store in cache.stores.values() if isinstance(store, GrowingStore))
    block = store.rows.block(0, -1)
    assert block.on(torch.device("cpu")) is block
    moved = block.on(torch.device("meta"))
    assert moved.used == block.used
    for tensor, other in zip([*moved.slots.tensors(), moved.flags], [*block.slots.tensors(), block.flags], strict=True):
        assert tensor is not None
        assert other is not None
        assert tensor.device.type == "meta"
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)


def test_rings_are_copied_as_far_as_they_hold_something() -> None:
    network, text = network_of("pins"), Text(1)
    cache = cache_of(network, 4)
    row = cache.allocate()
    slot = 2 * 2 * 2 * 8 * 4
    for length, n_pins, n_ring in ((2, 2, 2), (5, 3, 5), (W + 20, 3, W)):
        list(text.read(network, cache, row, length))
        assert cache.capture(row).nbytes == (n_pins + n_ring) * slot


def test_what_does_not_fit_is_refused_and_leaves_the_row_alone() -> None:
    network, text = network_of("interleaved"), Text(1)
    cache, other = cache_of(network), cache_of(network, kv="int8")
    windowed = cache_of(network_of("window"))
    for one in (cache, other, windowed):
        one.allocate()
    list(text.read(network, cache, 0, 30))
    state = cache.capture(0)
    for stranger in (other, windowed):
        with pytest.raises(UsageError, match="its own model"):
            stranger.restore(0, state)
        assert stranger.lengths == [0]
    for length in (-1, 28, 31):
        with pytest.raises(UsageError, match="30 tokens"):
            cache.restore(0, state, length)
    assert cache.lengths == [30]


def damaged(described: dict, tensors: list[torch.Tensor]) -> Iterator[tuple[dict, list[torch.Tensor]]]:
    """Descriptions and tensors that cannot be, each in one way."""

    def changed(**changes: object) -> dict:
        return {**described, **changes}

    def store(index: int, **changes: object) -> dict:
        stores = [dict(one) for one in described["stores"]]
        stores[index] |= changes
        return changed(stores=stores)

    yield changed(length=described["length"] + 1), tensors
    yield changed(length=-1), tensors
    yield changed(length="30"), tensors
    yield changed(kinds=described["kinds"][:1]), tensors
    yield changed(kinds=["other", *described["kinds"][1:]]), tensors
    yield changed(stores=described["stores"][:1]), tensors
    yield described, tensors[:-1]
    yield described, [*tensors, tensors[0]]
    yield described, tensors[::-1]
    yield store(0, pinned=[[0, 3], [2, 1]]), tensors
    yield store(0, pinned=[[0, 400]]), tensors
    yield store(0, pinned=[[900, 3]]), tensors
    yield store(0, begin=31), tensors
    yield store(0, begin=-1), tensors
    yield store(0, begin=22), tensors
    yield store(0, starts=[22]), tensors
    yield store(0, starts=[23]), tensors
    yield store(0, starts=[20]), tensors
    yield store(0, starts=[]), tensors
    yield store(0, reach=None), tensors
    yield store(0, reach=1), tensors
    yield store(0, pins=False), tensors
    yield store(1, starts=[0, 8]), tensors
    yield store(1, starts=[0, 16, 8]), tensors
    yield store(1, starts=[1, 8, 16]), tensors
    yield store(1, reach=8), tensors
    yield store(1, begin=1), tensors
    yield store(1, pinned=[[0, 1]]), tensors
    yield store(1, flags=True), tensors
    for index, tensor in enumerate(tensors):
        yield described, [*tensors[:index], tensor[..., :-1], *tensors[index + 1 :]]
        yield described, [*tensors[:index], tensor.to(torch.float16), *tensors[index + 1 :]]


def test_descriptions_that_cannot_be_are_refused() -> None:
    network = small_decoder(small_config([AttentionPattern(window=W, pins=3), AttentionPattern()]))
    cache, text = cache_of(network, 2), Text(1)
    row, other = cache.allocate(), cache.allocate()
    list(text.read(network, cache, row, 30))
    state = cache.capture(row)
    described, tensors = json.loads(json.dumps(state.describe())), list(state.tensors())
    cache.restore(other, RowState.rebuild(described, tensors))
    cache.wipe(other)
    count = 0
    for one, many in damaged(described, tensors):
        with pytest.raises((CheckpointError, UsageError)):
            cache.restore(other, RowState.rebuild(one, many))
        assert cache.lengths[other] == 0
        count += 1
    assert count > 25


def test_a_step_that_failed_and_is_repeated_reads_the_same() -> None:
    """Slots that a failed step had claimed are not written a second time: the block is copied."""
    network, text = network_of("full"), Text(1)
    whole = text.whole(network, "auto")
    cache = cache_of(network)
    row = cache.allocate()
    list(text.read(network, cache, row, 20))
    state = cache.capture(row)
    (store,) = cache.stores.values()
    store.place(Batch.pack([[1, 2]], [20], [row]), Batch.pack([[1, 2]], [20], [row]).spans[0])
    assert torch.equal(torch.cat(list(text.read(network, cache, row, LENGTH))), whole[20:])
    cache.restore(row, state)
    assert torch.equal(torch.cat(list(text.read(network, cache, row, LENGTH))), whole[20:])


def test_fingerprints_tell_networks_apart() -> None:
    one, same = small_decoder(small_config(CONFIGS["window"])), small_decoder(small_config(CONFIGS["window"]))
    assert fingerprint(one, "auto") == fingerprint(same, "auto")
    others = {
        fingerprint(one, "int8"),
        fingerprint(small_decoder(small_config(CONFIGS["window"]), seed=1), "auto"),
        fingerprint(small_decoder(small_config(CONFIGS["pins"])), "auto"),
        fingerprint(small_decoder(small_config(CONFIGS["window"])).to(torch.bfloat16), "auto"),
        *(fingerprint(network_of(name), "auto") for name in NATIVE),
    }
    assert len(others) == 4 + len(NATIVE)
    assert fingerprint(one, "auto") not in others
