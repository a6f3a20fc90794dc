"""Every backend against the oracle, the merge against one softmax; keys are read in place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention import dispatch, reference, torch_backend
from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import QUERY_BLOCK, own_runs, own_segment
from sash.attention.segment import Backend, Mask, Segment, attend, merge
from sash.errors import UnsupportedError, UsageError

BACKENDS = {
    "reference": reference.attend_segment,
    "flash": torch_backend.attend_flash_cpu,
    "explicit": torch_backend.attend_explicit,
}


def heads(n: int, count: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, count, dim, generator=torch.Generator().manual_seed(seed + 7 * count + n))


def meta(n: int, globals_at: tuple[int, ...] = ()) -> TokenMeta:
    flags = torch.zeros(n, dtype=torch.bool)
    flags[list(globals_at)] = True
    return TokenMeta(position=torch.arange(n), sequence=0, pinned=torch.zeros(n, dtype=torch.bool), is_global=flags)


def same(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return x


def attend_sequence(
    q_THK: torch.Tensor,
    k_TGK: torch.Tensor,
    v_TGK: torch.Tensor,
    pattern: AttentionPattern,
    tokens: TokenMeta,
    scale: float,
    backend: Backend,
) -> torch.Tensor:
    """Attention within one whole sequence, block of queries by block, as a step does it; without pins."""
    out_THK = torch.empty_like(q_THK)
    k_GTK, v_GTK = k_TGK.transpose(0, 1), v_TGK.transpose(0, 1)
    for start in range(0, q_THK.shape[0], QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, q_THK.shape[0])
        segments = [own_segment(run, k_GTK, v_GTK) for run in own_runs(pattern, tokens, start, stop, 0, q_THK.dtype)]
        out_THK[start:stop] = attend(q_THK[start:stop], None, segments, scale, backend)
    return out_THK


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "pattern",
    [
        AttentionPattern(),
        AttentionPattern(window=1),
        AttentionPattern(window=5),
        AttentionPattern(window=4, dilation=3),
        AttentionPattern(window=5, causal=False),
        AttentionPattern(window=5, causal=False, dilation=2),
        AttentionPattern(causal=False),
        AttentionPattern(window=3, global_tokens=True),
        AttentionPattern(window=3, causal=False, global_tokens=True),
    ],
    ids=str,
)
def test_a_whole_sequence_equals_the_oracle(backend: str, groups: int, pattern: AttentionPattern) -> None:
    n = 601  # more than two blocks of queries
    q, k, v = heads(n, 4), heads(n, groups, seed=1), heads(n, groups, seed=2)
    tokens = meta(n, (0, 3, 300, 599))
    expected = reference.attention(q, k, v, pattern, tokens, tokens, 0.35, same)
    got = attend_sequence(q, k, v, pattern, tokens, 0.35, BACKENDS[backend])
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_window_counts_keys_its_own_included(backend: str, dtype: torch.dtype) -> None:
    window, n = 7, 40
    pattern = AttentionPattern(window=window)
    q, k, v = (heads(n, 2, seed=seed).to(dtype) for seed in range(3))
    before = attend_sequence(q, k, v, pattern, meta(n), 1.0, BACKENDS[backend])
    changed = v.clone()
    changed[20] += 10.0
    after = attend_sequence(q, k, changed, pattern, meta(n), 1.0, BACKENDS[backend])
    moved = (after != before).flatten(1).any(1)
    assert moved.nonzero().flatten().tolist() == list(range(20, 20 + window))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_segments_merge_into_one_softmax(data: st.DataObject) -> None:
    n_keys = data.draw(st.integers(2, 40))
    cuts = sorted(data.draw(st.sets(st.integers(1, n_keys - 1), max_size=4)))
    seed = data.draw(st.integers(0, 1000))
    q, k, v = heads(5, 4, seed=seed), heads(n_keys, 2, seed=seed + 1), heads(n_keys, 2, seed=seed + 2)
    allowed = torch.rand(5, n_keys, generator=torch.Generator().manual_seed(seed)) < 0.5
    allowed[:, data.draw(st.integers(0, n_keys - 1))] = True
    keys, values = k.transpose(0, 1), v.transpose(0, 1)
    whole, _ = reference.attend_segment(q, Segment(keys, values, Mask.of(allowed, q.dtype)), 0.5)
    for backend in BACKENDS.values():
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, n_keys], strict=True):
            mask = Mask.of(allowed[:, start:stop], q.dtype)
            parts.append(backend(q, Segment(keys[:, start:stop], values[:, start:stop], mask), 0.5))
        assert (merge(parts) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_that_sees_nothing_weighs_nothing(backend: str) -> None:
    q, k, v = heads(3, 2), heads(4, 2, seed=1).transpose(0, 1), heads(4, 2, seed=2).transpose(0, 1)
    allowed = torch.tensor([[True] * 4, [False] * 4, [False, True, False, False]])
    out, lse = BACKENDS[backend](q, Segment(k, v, Mask.of(allowed, q.dtype)), 1.0)
    assert lse[1].tolist() == [-math.inf, -math.inf]
    assert torch.isfinite(lse[[0, 2]]).all()
    assert torch.isfinite(out).all()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = heads(3, 2) * 1e4, heads(9, 2, seed=1).transpose(0, 1), heads(9, 2, seed=2).transpose(0, 1)
    for backend in BACKENDS.values():
        out, _ = backend(q, Segment(k, v), 1.0)
        assert torch.isfinite(out).all()


def test_keys_are_read_in_place() -> None:
    """Grouped heads share keys by a stride of zero: nothing of the size of the repeated keys is allocated."""
    keys = heads(50_000, 1, 16, seed=1).transpose(0, 1)
    q = heads(1, 8, 16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch_backend.attend_flash_cpu(q, Segment(keys, keys), 1.0)
    allocated = sum(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert allocated < keys.nbytes


def test_dispatch_refuses_what_it_cannot_do() -> None:
    cpu = torch.device("cpu")
    assert dispatch.resolve("auto", cpu, torch.float32) is torch_backend.attend_segment
    with pytest.raises(UsageError, match="'flux'"):
        dispatch.resolve("flux", cpu, torch.float32)
    with pytest.raises(UnsupportedError, match="float32"):
        dispatch.resolve("reference", cpu, torch.bfloat16)
