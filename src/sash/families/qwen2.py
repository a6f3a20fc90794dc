"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v.

Its window is off unless `use_sliding_window` says otherwise, and then only layers from `max_window_layers` on have it.
"""

from __future__ import annotations

from sash.families import gguf, names
from sash.families.description import Description, Source
from sash.families.huggingface import INERT, context_length, decoder, layers_of, n_layers, windowed_layers
from sash.families.reading import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from sash.families.rope import huggingface_rope
from sash.network.config import LayerConfig


def from_huggingface(source: Source) -> Description:
    """Read a Hugging Face folder.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = ConfigReader(source.config)
    keys.fixed("hidden_act", "silu")
    keys.fixed("use_mrope", False)
    count, context = n_layers(keys), context_length(keys)
    rope = huggingface_rope(keys, 10_000.0, context)
    config = decoder(
        keys,
        source.names,
        architecture="qwen2",
        layers=layers_of(_windows(keys, count), rope, rope),
        context=context,
        qkv_bias=True,
    )
    keys.finish(INERT)
    return names.huggingface(config, source.names)


def from_gguf(source: Source) -> Description:
    """Read a GGUF file; llama.cpp knows no window in this architecture.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = gguf.reader(source, "qwen2")
    layer = LayerConfig(rope=gguf.rope(keys, 10_000.0, layout="half"))
    layers = (layer,) * gguf.n_layers(keys)
    config = gguf.decoder(keys, source, architecture="qwen2", layers=layers, qkv_bias=True)
    keys.finish()
    return names.gguf(config, source.names)


def _windows(keys: ConfigReader, count: int) -> tuple[int | None, ...]:
    """The window of each layer; `layer_types` decides where it is written, as in transformers."""
    used = keys.flag("use_sliding_window", False)
    window = keys.integer("sliding_window", 4096, high=MAX_POSITIONS)
    first = keys.integer("max_window_layers", 28, low=0, high=MAX_LAYERS)
    windowed = windowed_layers(keys, count)
    if not used or keys.says_null("sliding_window"):
        if windowed is not None and any(windowed):
            raise keys.refusal(
                "sliding_window", "a number, and use_sliding_window true, as layer_types has windowed layers"
            )
        return (None,) * count
    if windowed is None:
        windowed = tuple(index >= first for index in range(count))
    return tuple(window if has else None for has in windowed)
