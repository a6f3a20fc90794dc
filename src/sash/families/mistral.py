"""Mistral: v0.1 (window 4096), v0.2, v0.3 and Nemo (none), Ministral (some layers), in both of their layouts.

Hugging Face: `sliding_window` is a number, null, or a list that is repeated over the layers; `layer_types`, where
there, says which layers have the window, under `model_type` "mistral" as under "ministral".
Mistral's own layout (params.json): names of values and tensors are ours; rotary embedding turns neighbours; a mixture
is a Mixtral.
"""

from __future__ import annotations

from sash.families import names
from sash.families.description import Description, Source, logger
from sash.families.huggingface import INERT, context_length, decoder, layers_of, n_layers, windowed_layers
from sash.families.reading import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    MAX_VOCABULARY,
    ConfigReader,
)
from sash.families.rope import MIN_THETA, huggingface_rope, mistral_yarn
from sash.network.config import LayerConfig, ModelConfig, MoEConfig, RopeConfig

HUGGINGFACE_WINDOW = 4096
"""What transformers takes for a configuration that lacks `sliding_window`; null says that there is none."""

NATIVE_INERT = frozenset(("max_batch_size", "model_type", "dtype", "torch_dtype"))


def from_huggingface(source: Source) -> Description:
    """Read a Hugging Face folder.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = ConfigReader(source.config)
    keys.fixed("hidden_act", "silu")
    count, context = n_layers(keys), context_length(keys)
    windows = _windows(keys, "sliding_window", count, missing=HUGGINGFACE_WINDOW)
    windowed = windowed_layers(keys, count)
    if windowed is not None:
        windows = tuple(window if has else None for window, has in zip(windows, windowed, strict=True))
        if any(has and window is None for window, has in zip(windows, windowed, strict=True)):
            raise keys.refusal("sliding_window", "there, as layer_types has windowed layers")
    rope = huggingface_rope(keys, 10_000.0, context)
    layers = layers_of(windows, rope, rope)
    config = decoder(keys, source.names, architecture="mistral", layers=layers, context=context)
    keys.finish(INERT)
    return names.huggingface(config, source.names)


def from_mistral(source: Source) -> Description:
    """Read a folder in Mistral's own layout, dense or a mixture.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = ConfigReader(source.config, "params.json")
    keys.fixed("model_type", "transformer")
    keys.fixed("use_biases", False)
    keys.fixed("causal", True)
    count = keys.integer("n_layers", high=MAX_LAYERS)
    windows = _native_windows(keys, count)
    moe = _native_moe(keys)
    context = keys.integer("max_seq_len", 0, high=MAX_POSITIONS)
    context = keys.integer("max_position_embeddings", context, high=MAX_POSITIONS)
    rope = RopeConfig(
        theta=_native_theta(keys, windows), layout="interleaved", scaling=mistral_yarn(keys.reader("yarn"))
    )
    dim, heads = keys.integer("dim"), keys.integer("n_heads", high=MAX_HEADS)
    config = ModelConfig(
        architecture="mixtral" if moe else "mistral",
        vocab_size=keys.integer("vocab_size", high=MAX_VOCABULARY),
        dim=dim,
        n_heads=heads,
        n_kv_heads=keys.integer("n_kv_heads", heads, high=MAX_HEADS),
        head_dim=keys.integer("head_dim", max(1, dim // heads)),
        hidden_dim=keys.integer("hidden_dim"),
        layers=tuple(
            LayerConfig(pattern=layer.pattern, rope=rope, moe=moe) for layer in layers_of(windows, rope, rope)
        ),
        norm_eps=keys.number("norm_eps", high=1.0),
        context=context,
        tied_embeddings=keys.flag("tied_embeddings", False),
    )
    keys.finish(NATIVE_INERT)
    return names.mistral(config, source.names)


def _windows(keys: ConfigReader, key: str, count: int, missing: int | None = None) -> tuple[int | None, ...]:
    """The window of each layer from a number, null, or a list of these that is repeated over the layers."""
    value = keys.raw(key)
    if value is None:
        if missing is not None and not keys.says_null(key):
            logger.info("no %s in %s: taking the default of transformers, %d", key, keys.source, missing)
            return (missing,) * count
        return (None,) * count
    cycle = value if isinstance(value, list | tuple) else (value,)
    if not cycle or count % len(cycle) or not all(entry is None or _is_window(entry) for entry in cycle):
        raise keys.refusal(key, f"1 or more keys, null, or a list of these whose length divides {count} layers")
    return tuple(cycle) * (count // len(cycle))


def _is_window(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_POSITIONS


def _native_windows(keys: ConfigReader, count: int) -> tuple[int | None, ...]:
    """`sliding_window`, or `_sliding_window` as it is spelt where other readers should not see it."""
    if "sliding_window" in keys and "_sliding_window" in keys:
        raise keys.refusal("_sliding_window", "absent where sliding_window is given")
    return _windows(keys, "sliding_window" if "sliding_window" in keys else "_sliding_window", count)


def _native_theta(keys: ConfigReader, windows: tuple[int | None, ...]) -> float:
    """The base; first releases did not write it: v0.1, the one with a window, has 10,000, later ones a million."""
    inferred = 1_000_000.0 if all(window is None for window in windows) else 10_000.0
    if "rope_theta" not in keys:
        logger.info("no rope_theta in params.json: taking %g, as its release did", inferred)
    return keys.number("rope_theta", inferred, above=MIN_THETA)


def _native_moe(keys: ConfigReader) -> MoEConfig | None:
    moe = keys.reader("moe")
    if moe is None:
        return None
    experts = moe.integer("num_experts", high=MAX_EXPERTS)
    config = MoEConfig(n_experts=experts, top_k=moe.integer("num_experts_per_tok", high=experts))
    moe.finish()
    return config
