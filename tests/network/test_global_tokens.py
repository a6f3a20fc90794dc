"""Global tokens in a rolling buffer: seen by all, and seeing all that the log behind the ring keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sash.attention import reference
from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.errors import ConfigError, PinsError
from sash.kernels import native
from sash.network import rope
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder
from sash.network.global_steps import steps_of
from sash.network.packed import Network
from sash.network.ring_store import RingStore
from tests.conftest import small_config, small_decoder
from tests.network.test_fused import config_of, decoder_of, parts_of

W, LENGTH = 7, 90
IDS = torch.randint(0, 61, (LENGTH,), generator=torch.Generator().manual_seed(4)).tolist()
needs_kernels = pytest.mark.skipif(not native.available(), reason="native kernels do not serve here: torch does")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 slots in logs, so that a text has several."""
    monkeypatch.setattr("sash.network.sizing.LOG_BLOCK", 16)


def pattern_of(**changes: object) -> AttentionPattern:
    return AttentionPattern(**{"window": W, "pins": 6, "pin_by": "flag", "global_tokens": True, **changes})  # type: ignore[arg-type]


def flags(at: Collection[int], first: int, count: int) -> list[list[bool]]:
    return [[position in at for position in range(first, first + count)]]


@torch.inference_mode()
def read(
    network: Network,
    sizes: list[int],
    seers: Collection[int],
    pins: Collection[int] = (),
    *,
    ids: list[int] = IDS,
    kv: str = "auto",
    log: bool | int = False,
) -> Tensor:
    """Hidden states of the text, read in chunks of these sizes beside a row that is never used."""
    cache = KVCache(network.config, 2, network.dtype, kv=kv, log=log)
    cache.allocate()
    row, at, outs = cache.allocate(), 0, []
    for size in sizes:
        batch = Batch.pack(
            [ids[at : at + size]], [at], [row], pinned=flags(pins, at, size), is_global=flags(seers, at, size)
        )
        outs.append(network(batch, cache))
        at += size
    return torch.cat(outs)


@torch.inference_mode()
def whole(network: Network, seers: Collection[int], pins: Collection[int] = (), ids: list[int] = IDS) -> Tensor:
    """The same in one forward without a cache."""
    n = len(ids)
    return network(Batch.pack([ids], pinned=flags(pins, 0, n), is_global=flags(seers, 0, n)))


@pytest.mark.parametrize(
    "pattern",
    [pattern_of(), pattern_of(global_reach=23), pattern_of(dilation=2, global_reach=40), pattern_of(window=40)],
    ids=["all", "a reach", "dilation", "wide"],
)
@pytest.mark.parametrize("seers", [[50], [0, 1, 60, 61], [3, 40, 89]])
def test_one_layer_is_the_oracles(pattern: AttentionPattern, seers: list[int]):
    """The predicate over all keys, pins and global keys at the clamped distance, all others at the true one."""
    config = small_config([pattern])
    decoder = small_decoder(config)
    pins = [7, 8]
    with torch.inference_mode():
        layer = decoder.layers[0].attention
        x_TD = decoder.layers[0].attention_norm(decoder.tok_embeddings(torch.tensor(IDS)))
        q, k, v = (one(x_TD).view(LENGTH, -1, config.head_dim) for one in (layer.wq, layer.wk, layer.wv))
        where = torch.arange(LENGTH)
        tokens = TokenMeta(
            position=where,
            sequence=0,
            pinned=torch.isin(where, torch.tensor(pins)),
            is_global=torch.isin(where, torch.tensor(seers)),
        )

        def rotate(x_NHK: Tensor, positions_N: Tensor) -> Tensor:
            own = config.layers[0].rope
            frequencies, factor = rope.frequencies(own, config.head_dim)
            return rope.rotate(x_NHK, *rope.angles(frequencies, factor, positions_N, torch.float32), own.layout)

        expected = reference.attention(q, k, v, pattern, tokens, tokens, config.head_dim**-0.5, rotate)
        seen: list[Tensor] = []
        layer.wo.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
        for sizes in ([1] * LENGTH, [LENGTH], [20, 1, 33, 36]):
            seen.clear()
            read(decoder, sizes, seers, pins)
            assert (torch.cat(seen) - expected.flatten(1)).abs().max() < 1e-4, sizes


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 3, 6, 7, 8, 15, 30]), min_size=4, max_size=30),
    seers=st.sets(st.integers(0, LENGTH - 1), max_size=4),
    pins=st.sets(st.integers(0, LENGTH - 1), max_size=2),
    reach=st.sampled_from([None, W, W + 1, 20, 64, 200]),
    full=st.booleans(),
)
def test_any_chunks_are_one_forward(
    sizes: list[int], seers: set[int], pins: set[int], reach: int | None, full: bool
) -> None:
    patterns = [pattern_of(global_reach=reach), AttentionPattern() if full else AttentionPattern(window=W)]
    decoder = small_decoder(small_config([*patterns, pattern_of(global_reach=reach)]))
    ids = IDS[: min(sum(sizes), LENGTH)]
    kept = [size for at, size in enumerate(sizes) if sum(sizes[: at + 1]) <= len(ids)]
    ids = ids[: sum(kept)]
    expected = whole(decoder, seers, pins, ids)
    assert (read(decoder, kept, seers, pins, ids=ids) - expected).abs().max() < 2e-4


def influences(read_all: Callable[[list[int]], Tensor], key: int) -> list[int]:
    """Positions whose outputs change with the token at `key`."""
    changed = [(token + 1) % 61 if at == key else token for at, token in enumerate(IDS)]
    moved = (read_all(changed) != read_all(IDS)).any(1)
    return torch.nonzero(moved).flatten().tolist()


@pytest.mark.parametrize("kind", ["torch", pytest.param("native", marks=needs_kernels)])
def test_a_window_less_one_and_a_window_away(kind: str):
    """One layer: the token that has just left the window is seen by nobody but the global query."""
    network = network_of(kind, pattern_of())
    for key in (20, 21):
        seen = influences(lambda ids: read(network, [13] * 6 + [12], [60], ids=ids), key)
        assert seen == [*range(key, key + W), 60]
    assert influences(lambda ids: read(network, [13] * 6 + [12], [60], ids=ids), 60) == list(range(60, LENGTH))


@pytest.mark.parametrize("kind", ["torch", pytest.param("native", marks=needs_kernels)])
@pytest.mark.parametrize("reach", [39, 40, 41])
def test_a_reach_ends_where_it_says(kind: str, reach: int):
    network = network_of(kind, pattern_of(global_reach=reach))
    seen = influences(lambda ids: read(network, [30, 1, 59], [60], ids=ids), 20)
    assert seen == [*range(20, 20 + W), *([60] if reach > 40 else [])]


@pytest.mark.parametrize("kind", ["torch", pytest.param("native", marks=needs_kernels)])
def test_without_a_log_a_global_token_is_a_pin(kind: str):
    """Where a budget has dropped the log, a global query sees what pins by flag show it, and no more."""
    network, plain = network_of(kind, pattern_of()), network_of(kind, pattern_of(global_tokens=False))
    seers = [2, 78]
    sees_log, sees_none = read(network, [1] * LENGTH, seers), read(network, [1] * LENGTH, seers, log=0)
    pinned = read(plain, [1] * LENGTH, [], seers)
    # A log of no bytes keeps the block that is being written.
    kept = influences(lambda ids: read(network, [1] * LENGTH, [78], ids=ids, log=0), 66)
    assert kept == [*range(66, 66 + W), 78]
    assert influences(lambda ids: read(network, [1] * LENGTH, [78], ids=ids, log=0), 40) == list(range(40, 40 + W))
    assert torch.equal(sees_log[:78], sees_none[:78])
    assert torch.equal(pinned[:78], sees_none[:78])
    assert not torch.equal(sees_log[78], sees_none[78])


def network_of(kind: str, pattern: AttentionPattern) -> Network:
    if kind == "torch":
        return small_decoder(small_config([pattern]))
    config = one_layer(pattern)
    return FusedDecoder(config, parts_of(decoder_of(config)))


def one_layer(*patterns: AttentionPattern) -> ModelConfig:
    config = config_of()
    layer = config.layers[0]
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    layers = tuple(type(layer)(pattern=pattern, rope=layer.rope) for pattern in patterns)
    return ModelConfig(**{**fields, "layers": layers})


@needs_kernels
@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("seers", [[0], [30, 31, 32], [5, 40, 41, 88]])
def test_native_numbers_do_not_depend_on_chunks(kv: str, seers: list[int]):
    config = one_layer(pattern_of(), AttentionPattern(), pattern_of(global_reach=50), AttentionPattern(window=W))
    decoder = decoder_of(config)
    network = FusedDecoder(config, parts_of(decoder))
    first = read(network, [LENGTH], seers, [11, 12], kv=kv)
    for sizes in ([1] * LENGTH, [7, 1, 1, 30, 51], [W] * 12 + [6], [31, 1, 58]):
        assert torch.equal(read(network, sizes, seers, [11, 12], kv=kv), first), sizes
    if kv == "auto":
        assert torch.equal(whole(network, seers, [11, 12]), first)
        expected = whole(decoder, seers, [11, 12])
        assert ((first - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.05


@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("kind", ["torch", pytest.param("native", marks=needs_kernels)])
def test_company_changes_nothing(kind: str, kv: str):
    patterns = [pattern_of(), AttentionPattern()]
    config = small_config(patterns) if kind == "torch" else one_layer(*patterns)
    network: Network = small_decoder(config) if kind == "torch" else FusedDecoder(config, parts_of(decoder_of(config)))
    alone = {row: read(network, [30, 30, 30], seers, kv=kv) for row, seers in enumerate(([4, 70], [], [61, 62, 63]))}
    cache = KVCache(config, 3, network.dtype, kv=kv)
    rows, outs = [cache.allocate() for _ in range(3)], []
    for at in (0, 30, 60):
        seen = [flags(seers, at, 30)[0] for seers in ([4, 70], [], [61, 62, 63])]
        with torch.inference_mode():
            outs.append(network(Batch.pack([IDS[at : at + 30]] * 3, [at] * 3, rows, is_global=seen), cache))
    for row in rows:
        got = torch.cat([out[30 * row : 30 * row + 30] for out in outs])
        assert torch.equal(got, alone[row]) if network.independent else (got - alone[row]).abs().max() < 1e-4


def test_a_step_is_cut_where_global_tokens_stand():
    seen = [[False, True, True, False], [True], [False, False]]
    batch = Batch.pack([IDS[:4], [9], [8, 7]], [10, 40, 0], [2, 0, 1], is_global=seen)
    steps = list(steps_of(batch))
    assert [index.tolist() for _, index in steps] == [[0, 5, 6], [1, 2, 4], [3]]
    assert [[(span.position, span.row, len(span)) for span in step.spans] for step, _ in steps] == [
        [(10, 2, 1), (0, 1, 2)], [(11, 2, 2), (40, 0, 1)], [(13, 2, 1)],
    ]  # fmt: skip
    assert [step.global_T is None for step, _ in steps] == [True, False, True]
    assert torch.equal(
        torch.cat([step.tokens_T for step, _ in steps])[torch.tensor([0, 3, 4, 6, 5, 1, 2])], batch.tokens_T
    )


def test_memory_is_that_of_window_and_pins_and_the_logs():
    config = small_config([pattern_of()])
    cache = KVCache(config, 1)
    (store,) = cache.stores.values()
    assert isinstance(store, RingStore)
    before = cache.nbytes
    decoder = small_decoder(config)
    row = cache.allocate()
    with torch.inference_mode():
        decoder(Batch.pack([IDS], [0], [row], is_global=flags([5], 0, LENGTH)), cache)
    assert cache.nbytes == before
    assert store.log is not None
    assert (store.log.first(row), store.log.end(row)) == (0, LENGTH)
    assert cache.bytes_of(LENGTH) == before + sum(block.nbytes for block in store.log.held_blocks())


def test_a_rewound_row_is_one_that_was_never_there():
    config = small_config([pattern_of(), pattern_of(global_reach=30)])
    decoder = small_decoder(config)
    expected = read(decoder, [50, 40], [3, 80])
    cache = KVCache(config, 1)
    row = cache.allocate()
    with torch.inference_mode():
        decoder(Batch.pack([IDS[:70]], [0], [row], is_global=flags([3, 60], 0, 70)), cache)
        cache.rewind(row, 50)
        again = decoder(Batch.pack([IDS[50:]], [50], [row], is_global=flags([3, 80], 50, 40)), cache)
    assert (again - expected[50:]).abs().max() < 1e-4


def test_room_for_global_tokens():
    config = small_config([AttentionPattern(window=W), AttentionPattern()], context=64).with_global(4)
    assert config.patterns == (pattern_of(pins=4, global_reach=64), AttentionPattern())
    assert config.with_window(None, 2).patterns[0] == AttentionPattern(window=W, pins=2)
    assert small_config([AttentionPattern(window=W)], context=3).with_global(1).patterns[0].global_reach == W
    assert small_config([AttentionPattern(window=W)]).with_global(1).patterns[0].global_reach is None
    with pytest.raises(PinsError, match="no window"):
        small_config([AttentionPattern()]).with_global(1)
    with pytest.raises(PinsError, match="1 slot or more"):
        config.with_global(0)
    with pytest.raises(ConfigError, match="annex"):
        small_config([AttentionPattern(window=W, annex=3)]).with_global(1)
    decoder = small_decoder(config)
    with pytest.raises(PinsError, match="5 tokens are pinned, and there is room for 4"):
        read(decoder, [LENGTH], [1, 2, 3, 4], [50])
    assert isinstance(decoder, Decoder)
