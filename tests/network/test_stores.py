"""What lies where: runs of slots in plain integers, against the positions in the slots and what was written there."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.network.batch import Batch
from sash.network.growing_store import GrowingStore
from sash.network.ring_store import RingStore
from sash.network.slots import HeldRun, Layout, Vectors
from sash.network.stores import Store

HEADS, DIM = 2, 4


def layout(n_rows: int = 1, numbers: torch.dtype = torch.float32) -> Layout:
    return Layout(1, n_rows, HEADS, DIM, numbers, torch.float32, torch.device("cpu"))


def vectors(positions: range) -> torch.Tensor:
    """Keys [G, T, K] that say whose they are: position + 1000 head + 1e-3 component."""
    position, head = torch.tensor(positions).view(1, -1, 1), torch.arange(HEADS).view(-1, 1, 1)
    return position + 1000.0 * head + 1e-3 * torch.arange(DIM)


def read(store: Store, row: int, start: int, count: int, pinned: list[bool] | None = None) -> None:
    batch = Batch.pack([[0] * count], [start], [row], pinned=None if pinned is None else [pinned])
    placement = store.place(batch, batch.spans[0])
    keys = Vectors(vectors(range(start, start + count)))
    store.write(0, row, placement, keys, Vectors(-keys.numbers))
    store.mark(row, placement)


def positions_of(runs: list[HeldRun]) -> list[int]:
    return [run.first_position + offset for run in runs for offset in range(run.size)]


@settings(max_examples=150, deadline=None)
@given(
    window=st.integers(1, 9),
    n_pins=st.integers(0, 4),
    by_flag=st.booleans(),
    chunks=st.lists(st.sampled_from([1, 1, 1, 2, 3, 5, 8, 21]), min_size=1, max_size=12),
    begin=st.sampled_from([0, 0, 3, 10_000_000]),
    flags=st.randoms(use_true_random=False),
)
def test_held_runs_are_the_positions_in_the_slots(window, n_pins, by_flag, chunks, begin, flags) -> None:  # type: ignore[no-untyped-def]
    n_pins = min(n_pins, window)
    pattern = AttentionPattern(window=window, pins=n_pins, pin_by="flag" if by_flag else "first")
    store = RingStore(pattern, layout(n_rows=2))
    end, pins = begin, []
    for count in chunks:
        flagged = [by_flag and len(pins) < n_pins and flags.random() < 0.2 and pins.append(p) is None
                   for p in range(end, end + count)]  # fmt: skip
        read(store, 1, end, count, flagged)
        end += count
    if not by_flag:
        pins = list(range(begin, min(n_pins, end)))
    held = store.held(1, end, end - window)
    visible = [p for p in range(begin, end) if p in pins or p > end - 1 - window]
    assert positions_of(held) == visible
    assert store.last_pin(1) == max(pins, default=-1)
    for run in held:
        slots = store.ring if run.source == "ring" else store.pins
        found = slots[0, 0, 1, :, run.start : run.start + run.size]
        assert torch.equal(found.numbers, vectors(range(run.first_position, run.first_position + run.size)))
        if run.source == "ring":
            recorded = store.positions[1][run.start : run.start + run.size]
            assert recorded == list(range(run.first_position, run.first_position + run.size))
            assert run.start == run.first_position % window
    rings = [run for run in held if run.source == "ring"]
    gaps = sum(1 for pin in pins if pin > end - window)
    assert len(rings) <= 2 + gaps
    assert store.held(0, 0, 0) == []
    for oldest in (end - 1, end):
        tail = store.held(1, end, oldest)
        assert positions_of(tail) == [p for p in visible if p in pins or p >= oldest]


@settings(max_examples=60, deadline=None)
@given(window=st.integers(1, 7), pins=st.integers(0, 3), chunks=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_runs_and_whole_are_the_same_keys(window: int, pins: int, chunks: list[int]) -> None:
    store = RingStore(AttentionPattern(window=window, pins=min(pins, window)), layout())
    end = 0
    for count in chunks:
        read(store, 0, end, count)
        end += count
        runs = list(store.runs(0, end, end - window))
        assert tuple(run for run, _ in runs) == store.whole(0, end, end - window)
        for run, meta in runs:
            keys, values = store.view(0, 0, run)
            assert isinstance(meta, TokenMeta)
            assert torch.equal(keys[0, :, 0], meta.position.float())
            assert torch.equal(values, -keys)
            assert run.clamped is (run.source == "pins")


def test_a_ring_that_wraps_is_two_runs_and_a_pin_inside_makes_a_gap() -> None:
    store = RingStore(AttentionPattern(window=4), layout())
    read(store, 0, 0, 6)
    assert store.held(0, 6, 3) == [HeldRun(3, 1, "ring", 3), HeldRun(4, 2, "ring", 0)]
    flagged = RingStore(AttentionPattern(window=8, pins=2, pin_by="flag"), layout())
    read(flagged, 0, 0, 7, [index == 3 for index in range(7)])
    expected = [HeldRun(1, 2, "ring", 1), HeldRun(3, 1, "pins", 0), HeldRun(4, 3, "ring", 4)]
    assert flagged.held(0, 7, 1) == expected
    read(flagged, 0, 7, 1, [True])
    assert flagged.held(0, 8, 4) == [HeldRun(3, 1, "pins", 0), HeldRun(4, 3, "ring", 4), HeldRun(7, 1, "pins", 1)]
    assert [(run.source, run.start, run.stop) for run in flagged.whole(0, 8, 4)] == [("ring", 4, 7), ("pins", 0, 2)]


def test_growing_blocks_are_one_run_each() -> None:
    store = GrowingStore(AttentionPattern(), layout())
    assert store.held(0, 0, 0) == []
    read(store, 0, 0, 1000)
    read(store, 0, 1000, 1)
    read(store, 0, 1001, 2000)
    assert store.held(0, 3001, 0) == [
        HeldRun(0, 1024, "block", 0, 0), HeldRun(1024, 1024, "block", 0, 1), HeldRun(2048, 953, "block", 0, 2)
    ]  # fmt: skip
    for run in store.whole(0, 3001, 0):
        keys, _ = store.view(0, 0, run)
        first = (0, 1024, 2048)[run.block]
        assert torch.equal(keys, vectors(range(first, first + run.stop)))


def test_int8_slots_hold_one_scale_a_vector() -> None:
    """Within half a step of the vector's own scale, whatever its neighbours are; zeros and tiny numbers stay finite."""
    x = torch.randn(3, 50, 64) * torch.logspace(-3, 3, 50).view(1, -1, 1)
    x[:, 7] = 0
    x[:, 9] *= 1e-42
    kept = Vectors.of(x, torch.int8)
    assert kept.numbers.dtype == torch.int8
    assert kept.scales is not None
    assert kept.scales.shape == (3, 50)
    assert kept.scales.dtype == torch.float32
    assert int(kept.numbers.abs().max()) == 127
    assert torch.allclose(kept.scales, x.abs().amax(-1) / 127, rtol=1e-6, atol=0)
    error = (kept.to(torch.float32) - x).abs().amax(-1)
    assert bool((error <= 0.5001 * kept.scales + 1e-36).all())
    assert torch.equal(kept.to(torch.float32)[:, 7], torch.zeros(3, 64))
    for token in (0, 13, 49):
        alone = Vectors.of(x[:, token : token + 1], torch.int8)
        assert torch.equal(alone.numbers, kept.numbers[:, token : token + 1])
        assert alone.scales is not None
        assert torch.equal(alone.scales, kept.scales[:, token : token + 1])


def test_what_is_not_finite_stays_so() -> None:
    x = torch.ones(1, 3, 8)
    x[0, 0, 2], x[0, 1, 5] = torch.nan, torch.inf
    back = Vectors.of(x, torch.int8).to(torch.float32)
    assert not back[0, 0].isfinite().any()
    assert not back[0, 1].isfinite().any()
    assert torch.allclose(back[0, 2], x[0, 2])
