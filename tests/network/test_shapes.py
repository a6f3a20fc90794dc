"""Names and counts of parameters."""

from sash.network.config import LayerConfig, ModelConfig, MoEConfig
from sash.network.shapes import n_active_parameters, n_parameters, parameter_shapes


def decoder(moe: MoEConfig | None = None, **changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "architecture": "test",
        "vocab_size": 11,
        "dim": 6,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "hidden_dim": 10,
        "layers": (LayerConfig(moe=moe),) * 2,
    }
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_plain_decoder() -> None:
    shapes = parameter_shapes(decoder())
    assert list(shapes)[:3] == [
        "tok_embeddings.weight",
        "layers.0.attention_norm.weight",
        "layers.0.attention.wq.weight",
    ]
    assert list(shapes)[-2:] == ["norm.weight", "output.weight"]
    assert shapes["layers.1.attention.wq.weight"] == (32, 6)
    assert shapes["layers.1.attention.wk.weight"] == shapes["layers.1.attention.wv.weight"] == (16, 6)
    assert shapes["layers.1.attention.wo.weight"] == (6, 32)
    assert shapes["layers.1.feed_forward.w1.weight"] == shapes["layers.1.feed_forward.w3.weight"] == (10, 6)
    assert shapes["layers.1.feed_forward.w2.weight"] == (6, 10)
    assert len(shapes) == 3 + 2 * 9
    assert n_parameters(decoder()) == n_active_parameters(decoder()) == 2 * 66 + 6 + 2 * (12 + 2 * 192 + 2 * 96 + 180)


def test_what_a_decoder_may_have_besides() -> None:
    plain = set(parameter_shapes(decoder()))
    assert set(parameter_shapes(decoder(tied_embeddings=True))) == plain - {"output.weight"}
    more = {name for name in parameter_shapes(decoder(qkv_bias=True)) if name not in plain}
    assert more == {f"layers.{i}.attention.w{x}.bias" for i in range(2) for x in "qkv"}
    more = {name for name in parameter_shapes(decoder(qk_norm=True)) if name not in plain}
    assert more == {f"layers.{i}.attention.{x}_norm.weight" for i in range(2) for x in "qk"}
    more = {name for name in parameter_shapes(decoder(post_norms=True)) if name not in plain}
    assert more == {f"layers.{i}.{x}_post_norm.weight" for i in range(2) for x in ("attention", "ffn")}


def test_mixture_and_mixture_of_mixtures() -> None:
    flat = decoder(MoEConfig(n_experts=3, top_k=2))
    assert parameter_shapes(flat)["layers.0.feed_forward.gate.weight"] == (3, 6)
    assert parameter_shapes(flat)["layers.0.feed_forward.experts.2.w2.weight"] == (6, 10)
    assert n_parameters(flat) - n_active_parameters(flat) == 2 * 180

    deep = decoder(MoEConfig(n_experts=3, top_k=1, expert=MoEConfig(n_experts=4, top_k=2)))
    assert parameter_shapes(deep)["layers.1.feed_forward.experts.2.gate.weight"] == (4, 6)
    assert parameter_shapes(deep)["layers.1.feed_forward.experts.2.experts.3.w1.weight"] == (10, 6)
    inner = 4 * 6 + 4 * 180
    assert n_parameters(deep) - n_active_parameters(deep) == 2 * (3 * inner - (4 * 6 + 2 * 180))
