"""The native decoder against the eager one, and its promise: a row's bits depend on nobody else's."""

from __future__ import annotations

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import UnsupportedError, UsageError
from sash.kernels import native
from sash.kernels.packed import PackedWeight
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig, MoEConfig, RopeConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder, why_not
from tests.native_parts import parts_of_state

pytestmark = pytest.mark.skipif(not native.available(), reason="native kernels do not serve here: torch does")

W = 16
LENGTH = 100


def config_of(
    *, mixed: bool = False, pins: int = 0, moe: MoEConfig | None = None, n_layers: int = 4, **changes
) -> ModelConfig:
    windowed, full = AttentionPattern(window=W, pins=pins), AttentionPattern()
    layers = tuple(
        LayerConfig(
            pattern=full if mixed and index % 2 else windowed,
            moe=moe,
            rope=RopeConfig(theta=1e6 if mixed and index % 2 else 1e4, layout=changes.get("layout", "half")),
        )
        for index in range(n_layers)
    )
    changes.pop("layout", None)
    sizes = {"vocab_size": 300, "dim": 128, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "hidden_dim": 192}
    return ModelConfig(architecture="mistral", layers=layers, **(sizes | changes))


CONFIGS = {
    "window": config_of(),
    "pins": config_of(pins=3),
    "interleaved windows": config_of(mixed=True),
    "experts": config_of(moe=MoEConfig(n_experts=4, top_k=2), n_layers=1),
    "experts of experts": config_of(
        moe=MoEConfig(n_experts=3, top_k=2, expert=MoEConfig(n_experts=2, top_k=1)), n_layers=1
    ),
    "gemma": config_of(
        mixed=True,
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        activation="gelu_tanh",
        embedding_scale=11.3,
        tied_embeddings=True,
    ),
    "bias": config_of(qkv_bias=True),
    "odd sizes": config_of(dim=72, n_heads=3, n_kv_heads=1, head_dim=48, hidden_dim=100, layout="interleaved"),
}


def decoder_of(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        around = 1.0 if parameter.dim() == 1 and not config.norm_offset else 0.0
        parameter.data = (torch.randn_like(parameter) * 0.1 + around).bfloat16().float()
    return decoder


def parts_of(decoder: Decoder) -> dict[str, PackedWeight | torch.Tensor]:
    return parts_of_state({name: value.detach() for name, value in decoder.state_dict().items()})


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "_"))
def fused(request) -> FusedDecoder:
    decoder = decoder_of(CONFIGS[request.param])
    network = FusedDecoder(decoder.config, parts_of(decoder))
    network.eager = decoder  # type: ignore[attr-defined]
    return network


IDS = torch.randint(0, 300, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.inference_mode()
def read(network: FusedDecoder, sizes: list[int], kv: str = "auto") -> torch.Tensor:
    cache = KVCache(network.config, 2, torch.bfloat16, kv=kv)
    cache.allocate()
    row, at, outs = cache.allocate(), 0, []
    for size in sizes:
        outs.append(network(Batch.pack([IDS[at : at + size]], [at], [row]), cache))
        at += size
    return torch.cat(outs)


@torch.inference_mode()
def test_it_answers_as_the_eager_network_does(fused):
    eager = fused.eager
    wanted = eager.logits(eager(Batch.pack([IDS])))
    got = fused.logits(fused(Batch.pack([IDS])))
    # bfloat16 activations against float32; a mixture may send a token near the border to another expert.
    apart_T = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert apart_T.median() < 0.02
    assert (apart_T < 0.05).float().mean() > (0.9 if fused.mixtures() else 0.99)


@torch.inference_mode()
def test_int8_keys_and_values_answer_nearly_the_same(fused):
    exact, rounded = read(fused, [LENGTH]), read(fused, [LENGTH], "int8")
    apart_T = (exact - rounded).norm(dim=1) / exact.norm(dim=1)
    assert 0 < apart_T.median() < 0.03


@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_chunks_do_not_change_a_bit(fused, kv):
    whole = read(fused, [LENGTH], kv)
    for sizes in ([1] * LENGTH, [7, 1, 1, 30, 61], [W] * 6 + [4], [W + 1] * 5 + [15], [W - 1] * 6 + [10]):
        assert torch.equal(read(fused, sizes, kv), whole), sizes


@pytest.mark.parametrize("head_dim", [32, 48, 80])
@pytest.mark.parametrize("pins", [63, 64, 80])
@pytest.mark.parametrize("kv", ["auto", "int8"])
def test_many_pins_read_before_anything_else_change_nothing(pins, head_dim, kv):
    """A query among the first pins sees pins only: what comes after them is all in its future."""
    pattern = AttentionPattern(window=82, pins=pins)
    config = config_of(dim=96, n_heads=2, n_kv_heads=1, head_dim=head_dim, n_layers=1)
    fields = {field: getattr(config, field) for field in config.__dataclass_fields__}
    config = ModelConfig(**{**fields, "layers": (LayerConfig(pattern=pattern, rope=config.layers[0].rope),)})
    decoder = decoder_of(config)
    network = FusedDecoder(config, parts_of(decoder))
    whole = read(network, [LENGTH], kv)
    for sizes in ([1] * LENGTH, [4] * 25, [30, 1, 1, 40, 28]):
        assert torch.equal(read(network, sizes, kv), whole), sizes
    if kv == "auto":
        with torch.inference_mode():
            wanted = decoder(Batch.pack([IDS]))
        apart_T = (whole - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert apart_T.max() < 0.05


def flagged(pins: list[int], room: int, *, mixed: bool, **changes) -> tuple[FusedDecoder, Decoder]:
    config = config_of(mixed=mixed, **changes).with_window(None, room, pin_by="flag")
    decoder = decoder_of(config)
    return FusedDecoder(config, parts_of(decoder)), decoder


@torch.inference_mode()
def read_flagged(network: FusedDecoder, pins: list[int], sizes: list[int], kv: str = "auto") -> torch.Tensor:
    cache = KVCache(network.config, 2, torch.bfloat16, kv=kv)
    cache.allocate()
    row, at, outs = cache.allocate(), 0, []
    for size in sizes:
        flags = [[position in pins for position in range(at, at + size)]]
        outs.append(network(Batch.pack([IDS[at : at + size]], [at], [row], pinned=flags), cache))
        at += size
    return torch.cat(outs)


@pytest.mark.parametrize("pins", [[0], [5, 6, 7, 8], [3, 17, 18, 40, 41, 42, 90], [31, 32, 33, 63, 64], [99]])
@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("mixed", [False, True])
def test_pins_by_flag_in_any_chunk_as_the_eager_network_holds_them(pins, kv, mixed):
    network, decoder = flagged(pins, 8, mixed=mixed)
    whole = read_flagged(network, pins, [LENGTH], kv)
    for sizes in ([1] * LENGTH, [7, 1, 1, 30, 61], [W] * 6 + [4], [41, 1, 58]):
        assert torch.equal(read_flagged(network, pins, sizes, kv), whole), sizes
    if kv == "auto":
        flags = [[position in pins for position in range(LENGTH)]]
        with torch.inference_mode():
            wanted = decoder(Batch.pack([IDS], pinned=flags))
            assert torch.equal(network(Batch.pack([IDS], pinned=flags)), whole)
        apart_T = (whole - wanted).norm(dim=1) / wanted.norm(dim=1)
        assert apart_T.max() < 0.05


def test_the_first_pinned_by_flag_are_the_first_pins():
    network, _ = flagged([0, 1, 2], 3, mixed=False)
    first = FusedDecoder(CONFIGS["pins"], network.parts)
    sizes = [7, 1, 1, 30, 61]
    assert torch.equal(read_flagged(network, [0, 1, 2], sizes), read(first, sizes))


def test_many_flags_in_a_long_text_and_wide_heads():
    pins = list(range(2, 62, 4))
    network, decoder = flagged(pins, 16, mixed=False, dim=96, n_heads=2, n_kv_heads=1, head_dim=48, n_layers=2)
    whole = read_flagged(network, pins, [LENGTH])
    assert torch.equal(read_flagged(network, pins, [13] * 7 + [9]), whole)
    with torch.inference_mode():
        wanted = decoder(Batch.pack([IDS], pinned=[[position in pins for position in range(LENGTH)]]))
    assert ((whole - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 0.05


@torch.inference_mode()
def test_no_cache_and_a_cache_agree_bit_for_bit(fused):
    assert torch.equal(fused(Batch.pack([IDS])), read(fused, [40, 60]))


@pytest.mark.parametrize("kv", ["auto", "int8"])
@torch.inference_mode()
def test_company_does_not_change_a_bit(fused, kv):
    alone = read(fused, [LENGTH], kv)
    cache = KVCache(fused.config, 8, torch.bfloat16, kv=kv)
    rows, outs = [cache.allocate() for _ in range(8)], []
    for at in range(60):
        others = [[IDS[(at * step) % LENGTH]] for step in range(2, 9)]
        hidden = fused(Batch.pack([*others[:3], [IDS[at]], *others[3:]], [at] * 8, rows), cache)
        outs.append(hidden[3:4])
    assert torch.equal(torch.cat(outs), alone[:60])


@torch.inference_mode()
def test_threads_do_not_change_a_bit(fused):
    before, whole = native.threads(), read(fused, [64, 36])
    try:
        for count in (1, 2, 3, 4):
            native.set_threads(count)
            assert torch.equal(read(fused, [64, 36]), whole), count
    finally:
        native.set_threads(before)


@torch.inference_mode()
def test_window_probe():
    """Of one layer, the key at distance W - 1 matters, the one at W does not."""
    config = config_of(n_kv_heads=1, n_layers=1)
    decoder = decoder_of(config)
    network = FusedDecoder(config, parts_of(decoder))
    last = 3 * W
    base = network(Batch.pack([IDS[: last + 1]]))[-1]
    for distance, matters in ((W - 1, True), (W, False)):
        ids = list(IDS[: last + 1])
        ids[last - distance] = (ids[last - distance] + 1) % 300
        assert torch.equal(network(Batch.pack([ids]))[-1], base) is not matters
        cache = KVCache(config, 1, torch.bfloat16)
        row = cache.allocate()
        steps = [network(Batch.pack([[token]], [at], [row]), cache) for at, token in enumerate(ids)]
        assert torch.equal(steps[-1][0], base) is not matters


@torch.inference_mode()
def test_mixtures_count_the_tokens_of_their_experts():
    decoder = decoder_of(CONFIGS["experts"])
    network = FusedDecoder(decoder.config, parts_of(decoder))
    network(Batch.pack([IDS]))
    assert all(int(mixture.expert_tokens_E.sum()) == 2 * LENGTH for mixture in network.mixtures().values())
    network.mixtures()[0].reset_statistics()
    assert int(network.mixtures()[0].expert_tokens_E.sum()) == 0


def test_what_it_cannot_run_is_refused_with_the_reason():
    dilated = LayerConfig(pattern=AttentionPattern(window=8, dilation=2))
    config = config_of()
    fields = {field: getattr(config, field) for field in config.__dataclass_fields__}
    config = ModelConfig(**{**fields, "layers": (dilated,)})
    assert "dilation" in (why_not(config) or "")
    with pytest.raises(UnsupportedError, match="dilation"):
        FusedDecoder(config, {})
    assert "multiple of 16" in (why_not(config_of(head_dim=24)) or "")


@torch.inference_mode()
def test_a_step_that_does_not_follow_on_is_refused():
    decoder = decoder_of(CONFIGS["window"])
    network, cache = FusedDecoder(decoder.config, parts_of(decoder)), KVCache(decoder.config, 1, torch.bfloat16)
    row = cache.allocate()
    with pytest.raises(UsageError, match="is not its next position"):
        network(Batch.pack([[1]], [5], [row]), cache)
    with pytest.raises(UnsupportedError, match="bfloat16 or int8"):
        network(Batch.pack([[1]], [0], [0]), KVCache(decoder.config, 1, torch.float32))
