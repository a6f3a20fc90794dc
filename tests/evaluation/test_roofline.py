"""What a step must read and compute at least: counted here by hand, for models small enough to count."""

from __future__ import annotations

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.evaluation.footprint import footprints
from sash.evaluation.limits import Limits, measure_limits
from sash.evaluation.random_weights import RandomCheckpoint, random_model, random_part
from sash.evaluation.roofline import Work, key_bytes_of, kinds_of, reading, weight_bytes, writing
from sash.evaluation.speed import Bench, Plan
from sash.kernels.packed import PackedForm, PackedWeight, dequantize
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import MoEConfig
from sash.network.parts import Part
from sash.network.shapes import parameter_shapes
from tests.conftest import small_config, small_decoder

WINDOWED, FULL = AttentionPattern(window=4), AttentionPattern()
LINEAR = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 40)  # wq and wo; wk and wv; w1, w2 and w3
ONES = Limits(threads=1, memory_read=1.0, matrix={"float32": 1.0, "bf16": 1.0, "int8": 1.0}, sources={})


def test_reading_counts_products_weights_and_visible_pairs():
    work = reading(small_decoder(small_config([WINDOWED, FULL])), 6)
    pairs = (1 + 2 + 3 + 4 + 4 + 4) + (1 + 2 + 3 + 4 + 5 + 6)
    assert work.attention == 4 * 4 * 8 * pairs
    norms = 2 * (4 * 32 + 32)
    assert work.linear == 6 * (2 * LINEAR + norms) + 2 * 61 * 32


def test_writing_counts_weights_once_a_step_and_keys_once_a_stream():
    decoder = small_decoder(small_config([WINDOWED, FULL]))
    work = writing(decoder, depth=5, n_streams=3, n_tokens=2, key_bytes=10.0)
    assert work.n_tokens == 6
    assert work.n_bytes == 2 * weight_bytes(decoder, 3) + 3 * 10.0 * ((4 + 4) + (6 + 7))
    assert work.attention == 3 * 4 * 4 * 8 * ((4 + 4) + (6 + 7))


@pytest.mark.parametrize("tied", [False, True])
def test_the_embedding_is_read_only_where_it_is_the_head(tied: bool):
    decoder = small_decoder(small_config([FULL], tied_embeddings=tied))
    values = LINEAR // 2 + 3 * 32 + 61 * 32
    assert weight_bytes(decoder, 1) == 4 * values


def test_experts_count_as_far_as_tokens_meet_them():
    config = small_config([FULL], moe=MoEConfig(n_experts=4, top_k=1))
    decoder = small_decoder(config)
    experts = 4 * 4 * 3 * 32 * 40
    rest = weight_bytes(decoder, 10**6) - experts
    assert weight_bytes(decoder, 1) - rest == pytest.approx(experts / 4)
    assert weight_bytes(decoder, 2) - rest == pytest.approx(experts * (1 - (3 / 4) ** 2))


@pytest.mark.parametrize("patterns", [[WINDOWED], [FULL], [WINDOWED, FULL]])
def test_bytes_of_a_key(patterns: list[AttentionPattern]):
    decoder = small_decoder(small_config(patterns))
    cache = KVCache(decoder.config, 2, torch.float32)
    for row in (cache.allocate(), cache.allocate()):
        decoder(Batch.pack([[1, 2, 3]], [0], [row]), cache)
    assert key_bytes_of(cache) == 2 * 2 * 8 * 4


def test_the_slower_of_memory_and_matrix_units_is_the_bound():
    limits = Limits(threads=1, memory_read=100.0, matrix={"int8": 10.0, "bf16": 5.0}, sources={})
    work = Work(n_tokens=4, n_bytes=1000.0, linear=20.0, attention=10.0)
    assert work.tokens_per_second(limits, "int8", "bf16") == (pytest.approx(4 / 10), "memory")
    work = Work(n_tokens=4, n_bytes=100.0, linear=20.0, attention=10.0)
    assert work.tokens_per_second(limits, "int8", "bf16") == (pytest.approx(4 / 4), "matrix")


def test_a_machine_reads_and_multiplies():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sash.evaluation.limits.BUFFER_BYTES", 2**16)
        patch.setattr("sash.evaluation.limits.SECONDS", 0.001)
        patch.setattr("sash.evaluation.limits.SHAPES", ((32, 64, 64),))
        found = measure_limits(["int8", "bf16", "int8"])
    assert found.memory_read > 1e6
    assert list(found.matrix) == ["int8", "bf16"]
    assert min(found.matrix.values()) > 1e6
    assert set(found.sources) == {"memory", "int8", "bf16"}


def test_the_better_of_two_measurements_counts():
    faster = Limits(threads=1, memory_read=3.0, matrix={"bf16": 1.0}, sources={})
    slower = Limits(threads=1, memory_read=2.0, matrix={"bf16": 4.0}, sources={})
    best = Limits(threads=1, memory_read=3.0, matrix={"bf16": 4.0}, sources={})
    assert faster.best_of(slower) == slower.best_of(faster) == best


def test_random_weights_are_the_same_at_each_reading():
    config = small_config([WINDOWED])
    one, two = RandomCheckpoint(config), RandomCheckpoint(config)
    assert one.names() == set(parameter_shapes(config))
    for name, shape in parameter_shapes(config).items():
        tensor = one.read(name)
        assert (tensor.shape, tensor.dtype) == (shape, torch.bfloat16)
        assert torch.equal(tensor, two.read(name))
        assert torch.equal(tensor.float(), one.read(name, torch.float32))
    assert not torch.equal(one.read("layers.0.feed_forward.w1.weight"), one.read("layers.0.feed_forward.w3.weight"))
    assert float(one.read("output.weight", torch.float32).std()) == pytest.approx(0.02, rel=0.1)


def test_a_random_tensor_may_be_longer_than_what_was_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sash.evaluation.random_weights.PERIOD", 100)
    tensor = RandomCheckpoint(small_config([WINDOWED])).read("output.weight")
    values = tensor.flatten()
    assert torch.equal(values[:100].sort().values, values[100:200].sort().values)
    assert len(values[:100].unique()) > 50


@pytest.mark.parametrize("form", [
    PackedForm(kind="bf16", n=40, k=96),
    PackedForm(kind="int8", n=40, k=96, rotation=32),
    PackedForm(kind="int4", n=40, k=96, group=32),
    PackedForm(kind="int4m", n=40, k=96, group=32, rotation=32),
])  # fmt: skip
def test_random_parts_have_the_usual_spread(form: PackedForm):
    weight = random_part(Part(sources=("one",), rows=(40,), k=96, join="rows"), form)
    assert isinstance(weight, PackedWeight)
    assert float(dequantize(weight).std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("weights", "kind", "bits"), [("bf16", "bf16", 16), ("int8", "int8", 8), ("int4", "int8", 4)])
def test_packed_models_are_counted_as_they_are_stored(weights: str, kind: str, bits: int):
    config = small_config([WINDOWED], dim=64, head_dim=16, hidden_dim=128, vocab_size=64)
    lm = random_model(config, name="random", weights=weights)
    assert kinds_of(lm.decoder) == (kind, "bf16")
    linear = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
    head = 64 * 64 * max(bits, 8) // 8  # int4 keeps the head at 8 bits
    least = linear * bits // 8 + head
    assert least <= weight_bytes(lm.decoder, 1) <= 1.15 * least + 4 * 3 * 64 + 4 * 1000
    (line,) = Bench(lm).run(Plan(prompts=(5,), n_write=0, depths=(0,), batches=(1,), rounds=1))
    assert line.kinds == (kind, "bf16")


def test_every_round_writes_from_the_same_depth():
    lm = random_model(small_config([WINDOWED, FULL]), name="random", dtype="float32", chunk=4)
    plan = Plan(prompts=(3, 9), n_write=5, depths=(10, 0), batches=(2,), rounds=2)
    counted: list[int] = []
    lines = list(Bench(lm, progress=counted.append).run(plan))
    assert [(line.task, line.n_tokens, line.depth, line.n_streams, len(line.seconds)) for line in lines] == [
        ("read", 3, 0, 1, 2), ("read", 9, 0, 1, 2), ("write", 5, 0, 2, 2), ("write", 5, 10, 2, 2),
    ]  # fmt: skip
    assert sum(counted) == plan.n_tokens == 2 * (3 + 9) + 10 + 2 * 2 * 2 * 5
    shallow, deep = lines[2:]
    assert shallow.limit(ONES) > deep.limit(ONES)


def test_a_cancelled_line_keeps_its_finished_rounds():
    lm = random_model(small_config([WINDOWED]), name="random", dtype="float32", chunk=4)
    steps = iter(range(1000))
    # The warm-up takes 3 + 1 steps (16 tokens by 4, then 2 written), a round of reading 8 tokens takes 2.
    plan = Plan(prompts=(8,), n_write=0, depths=(0,), batches=(1,), rounds=5)
    lines = list(Bench(lm, cancelled=lambda: next(steps) >= 6 + 2 * 2 + 1).run(plan))
    assert [len(line.seconds) for line in lines] == [2]


def test_footprints_ascend():
    lm = random_model(small_config([WINDOWED]), name="random", chunk=4)
    with pytest.raises(UsageError, match="ascend"):
        list(footprints(lm, (8, 4)))
    assert [one.n_tokens for one in footprints(lm, (4, 9))] == [0, 4, 9]
    assert [one.n_tokens for one in footprints(lm, (4, 9), cancelled=lambda: True)] == [0]
