"""The network as a whole: chunks, ragged batches and windows do what the pattern says, whatever the schedule."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention import reference
from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.segment import Mask
from sash.network import rope
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, MoEConfig, RopeConfig
from sash.network.decoder import Decoder
from tests.conftest import small_config, small_decoder

CASES = int(os.environ.get("SASH_PROPERTY_CASES", "120"))
"""Schedules that are tried; `make test-properties`, which CI runs, tries 2,000."""


@st.composite
def patterns(draw: st.DrawFn) -> list[AttentionPattern]:
    """One to three layers, each windowed (maybe dilated, maybe pinned) or full, interleaved at random."""
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 3)) == 0:
            layers.append(AttentionPattern())
            continue
        window = draw(st.integers(1, 9))
        dilation = draw(st.sampled_from([1, 1, 1, 2, 3]))
        pins = draw(st.integers(0, min(window, 4)))
        far = (window - 1) * dilation + draw(st.integers(1, 20)) if pins and draw(st.booleans()) else None
        layers.append(AttentionPattern(window=window, pins=pins, dilation=dilation, pin_reach=far))
    return layers


@st.composite
def schedules(draw: st.DrawFn, longest: int) -> list[list[int]]:
    """Chunk sizes of one to three sequences, each read to its own length."""
    sequences = []
    for _ in range(draw(st.integers(1, 3))):
        left = draw(st.integers(2, longest))
        chunks = []
        while left:
            chunk = min(left, draw(st.sampled_from([1, 1, 2, 3, 5, 8, 13, 30])))
            chunks.append(chunk)
            left -= chunk
        sequences.append(chunks)
    return sequences


@pytest.mark.parametrize("groups", [1, 2, 4])
@settings(max_examples=-(-CASES // 3), deadline=None)
@given(
    layers=patterns(),
    schedule=schedules(44),
    seed=st.integers(0, 9),
    order=st.randoms(use_true_random=False),
)
def test_chunked_equals_one_forward(groups, layers, schedule, seed, order) -> None:  # type: ignore[no-untyped-def]
    """Random windows, dilation, pins, GQA ratio, chunks and company: the same logits as without a cache."""
    config = small_config(layers, n_kv_heads=groups, dim=16, head_dim=4, hidden_dim=16)
    decoder = small_decoder(config, seed)
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 61, (sum(chunks),), generator=generator) for chunks in schedule]
    cache = KVCache(config, len(texts))
    rows = [cache.allocate() for _ in texts]
    parts: list[list[torch.Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    left = [list(chunks) for chunks in schedule]
    with torch.no_grad():
        while any(left):
            waiting = [index for index, chunks in enumerate(left) if chunks]
            now = order.sample(waiting, order.randint(1, len(waiting)))
            sizes = [left[index].pop(0) for index in now]
            runs = [texts[i][done[i] : done[i] + size] for i, size in zip(now, sizes, strict=True)]
            batch = Batch.pack(runs, [done[i] for i in now], [rows[i] for i in now])
            for i, part in zip(now, decoder.logits(decoder(batch, cache)).split(sizes), strict=True):
                parts[i].append(part)
                done[i] += len(part)
        for text, pieces in zip(texts, parts, strict=True):
            whole = decoder.logits(decoder(Batch.pack([text])))
            assert (torch.cat(pieces) - whole).abs().max() <= 1e-4


@settings(max_examples=60, deadline=None)
@given(layers=patterns(), seed=st.integers(0, 9))
def test_attention_of_a_step_equals_the_oracle(layers: list[AttentionPattern], seed: int) -> None:
    """A layer's attention, rotation and clamped pins included, against the definition."""
    pattern = layers[0]
    config = small_config([pattern])
    layer = config.layers[0]
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(50, heads, 8, generator=generator) for heads in (4, 2, 2))
    from sash.attention.torch_backend import attend_segment
    from sash.network.step import Step

    step = Step(config, Batch.pack([list(range(50))]), None, attend_segment, torch.float32)
    got = step.attend(0, layer, q, k, v, 0.4)

    def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        frequencies, factor = rope.frequencies(layer.rope, 8)
        return rope.rotate(x, *rope.angles(frequencies, factor, positions, torch.float32), layer.rope.layout)

    meta = TokenMeta(position=torch.arange(50), pinned=torch.zeros(50, dtype=torch.bool))
    expected = reference.attention(q, k, v, pattern, meta, meta, 0.4, rotate)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 40])
def test_window_probe(backend: str, chunk: int | None) -> None:
    """One layer, window W: the token at distance W-1 changes the output, the one at distance W does not."""
    from sash.attention.dispatch import BACKENDS

    window, last = 7, 29
    config = small_config([AttentionPattern(window=window)])
    decoder = small_decoder(config)
    decoder.backend = BACKENDS[backend]
    ids = torch.randint(0, 61, (last + 1,), generator=torch.Generator().manual_seed(1))

    def final(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if chunk is None:
                return decoder.logits(decoder(Batch.pack([tokens])))[-1]
            cache = KVCache(config)
            row = cache.allocate()
            for start in range(0, len(tokens), chunk):
                hidden = decoder(Batch.pack([tokens[start : start + chunk]], [start], [row]), cache)
            return decoder.logits(hidden)[-1]

    def changed(distance: int) -> float:
        tokens = ids.clone()
        tokens[last - distance] = (tokens[last - distance] + 1) % 61
        return float((final(tokens) - final(ids)).abs().max())

    assert changed(window - 1) > 1e-4
    assert changed(window) == 0.0


def test_gradients_flow_through_every_segment() -> None:
    """Training is the forward without a cache: its gradients are those of the definition."""
    from sash.attention.dispatch import BACKENDS

    patterns = [AttentionPattern(window=5, pins=2), AttentionPattern(), AttentionPattern(window=3, dilation=2)]
    gradients = []
    for name in ("torch", "reference"):
        decoder = small_decoder(small_config(patterns))
        decoder.backend = BACKENDS[name]
        decoder.requires_grad_(True)
        ids = torch.randint(0, 61, (300,), generator=torch.Generator().manual_seed(5))
        logits = decoder.logits(decoder(Batch.pack([ids[:290], ids[290:]])))
        torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).backward()
        gradients.append([parameter.grad for parameter in decoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert float(other.abs().max()) > 0
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_ten_million_is_a_position_like_any_other() -> None:
    """Rotary attention depends on distances alone, so far out it must give what it gives at home."""
    config = small_config([AttentionPattern(window=5)] * 2)
    decoder = small_decoder(config)
    ids = torch.randint(0, 61, (23,)).tolist()
    far = 10_000_000
    with torch.no_grad():
        home = decoder(Batch.pack([ids]))
        away = decoder(Batch.pack([ids], positions=[far]))
        assert (home - away).abs().max() < 1e-4
        cache = KVCache(config)
        row = cache.allocate()
        cache.lengths[row] = far
        assert (decoder(Batch.pack([ids], [far], [row]), cache) - home).abs().max() < 1e-4


def test_packed_documents_do_not_see_each_other() -> None:
    decoder = small_decoder(small_config([AttentionPattern(window=4), AttentionPattern()]))
    one, two = list(range(20)), list(range(30, 41))
    with torch.no_grad():
        together = decoder(Batch.pack([one, two]))
        apart = torch.cat([decoder(Batch.pack([one])), decoder(Batch.pack([two]))])
    assert (together - apart).abs().max() < 1e-5


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rope_turns_pairs_by_position_times_frequency(layout: str) -> None:
    frequencies, factor = rope.frequencies(RopeConfig(theta=100.0, layout=layout), 4)  # type: ignore[arg-type]
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    turned = rope.rotate(x, *rope.angles(frequencies, factor, torch.tensor([3]), torch.float32), layout)[0, 0]
    pairs = [(0, 2), (1, 3)] if layout == "half" else [(0, 1), (2, 3)]
    for (a, b), frequency in zip(pairs, [1.0, 0.1], strict=True):
        number = complex(x[0, 0, a], x[0, 0, b]) * torch.polar(torch.tensor(1.0), torch.tensor(3 * frequency)).item()
        assert turned[a].item() == pytest.approx(number.real, abs=1e-5)
        assert turned[b].item() == pytest.approx(number.imag, abs=1e-5)


def moe_decoder(moe: MoEConfig) -> Decoder:
    return small_decoder(small_config([AttentionPattern(window=5)] * 2, moe=moe))


def test_a_mixture_is_the_weighted_sum_of_its_chosen_experts() -> None:
    mixture = moe_decoder(MoEConfig(n_experts=5, top_k=2)).mixtures()[1]
    x = torch.randn(33, 32)
    with torch.no_grad():
        out = mixture(x)
        logits = mixture.gate(x)
        for token in range(33):
            best = logits[token].topk(2)
            gates = best.values.softmax(0)
            expected = sum(g * mixture.experts[int(e)](x[token]) for g, e in zip(gates, best.indices, strict=True))
            assert (out[token] - expected).abs().max() < 1e-4


def test_only_chosen_experts_are_computed_and_the_router_can_be_read() -> None:
    mixture = moe_decoder(MoEConfig(n_experts=8, top_k=2)).mixtures()[0]
    rows: list[int] = []
    for expert in mixture.experts:
        expert.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    with torch.no_grad():
        mixture(torch.randn(50, 32))
    assert sum(rows) == 100
    assert int(mixture.expert_tokens_E.sum()) == 100
    assert sorted(rows) == sorted(n for n in mixture.expert_tokens_E.tolist() if n)
    assert mixture.last_choice_Tk is not None
    assert mixture.last_choice_Tk.shape == (50, 2)
    mixture.reset_statistics()
    assert int(mixture.expert_tokens_E.sum()) == 0


def test_an_expert_may_be_a_mixture() -> None:
    moe = MoEConfig(n_experts=3, top_k=1, expert=MoEConfig(n_experts=2, top_k=2))
    decoder = moe_decoder(moe)
    assert "layers.0.feed_forward.experts.2.experts.1.w3.weight" in dict(decoder.named_parameters())
    ids = list(range(25))
    with torch.no_grad():
        whole = decoder(Batch.pack([ids]))
        cache = KVCache(decoder.config)
        row = cache.allocate()
        parts = [decoder(Batch.pack([ids[s : s + 4]], [s], [row]), cache) for s in range(0, 25, 4)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-4


def test_layers_may_differ_in_everything_a_layer_config_says() -> None:
    layers = (
        LayerConfig(pattern=AttentionPattern(window=3), rope=RopeConfig(theta=100.0, layout="interleaved")),
        LayerConfig(rope=RopeConfig(theta=1e6), moe=MoEConfig(n_experts=2, top_k=1)),
    )
    config = small_config([], layers=layers, qk_norm=True, post_norms=True, qkv_bias=True, tied_embeddings=True)
    decoder = small_decoder(config)
    ids = list(range(30))
    with torch.no_grad():
        cache = KVCache(config)
        row = cache.allocate()
        parts = [decoder(Batch.pack([ids[s : s + 7]], [s], [row]), cache) for s in range(0, 30, 7)]
        assert (torch.cat(parts) - decoder(Batch.pack([ids]))).abs().max() < 1e-4


@pytest.mark.parametrize("cached", [False, True])
def test_no_mask_or_score_grows_with_the_square_of_the_length(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    make = Mask.of

    def watched(allowed_TS: torch.Tensor, dtype: torch.dtype) -> Mask | None:
        sizes.append(allowed_TS.numel())
        return make(allowed_TS, dtype)

    monkeypatch.setattr(Mask, "of", staticmethod(watched))
    window, pins = 64, 2
    config = small_config([AttentionPattern(window=window, pins=pins)])
    decoder = small_decoder(config)
    for n in (1000, 4000):
        sizes.clear()
        cache = KVCache(config, 1) if cached else None
        batch = Batch.pack([[at % 61 for at in range(n)]], [0], [0 if cache is None else cache.allocate()])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            decoder(batch, cache)
        assert max(sizes) <= 256 * (256 + window)
        assert sum(sizes) <= n * (256 + window + pins)
        assert max(event.self_cpu_memory_usage for event in profile.events()) < 2**21  # 4,000 x 4,000 scores take 2**26
