"""Mixtral: a mixture of experts in every layer, and no window.

The first config.json of Mixtral 8x7B said `sliding_window: 4096`; the model was trained with full attention on 32K
positions, and the file was corrected. A window in such a file is therefore set aside, and that is logged; forcing one
is an ablation like any other.
"""

from __future__ import annotations

from sash.families import names
from sash.families.description import Description, Source, logger
from sash.families.huggingface import INERT, context_length, decoder, n_layers
from sash.families.reading import MAX_EXPERTS, MAX_POSITIONS, ConfigReader
from sash.families.rope import huggingface_rope
from sash.network.config import LayerConfig, MoEConfig


def from_huggingface(source: Source) -> Description:
    """Read a Hugging Face folder.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = ConfigReader(source.config)
    keys.fixed("hidden_act", "silu")
    count, context = n_layers(keys), context_length(keys)
    window = keys.integer("sliding_window", None, high=MAX_POSITIONS)
    if window is not None:
        logger.warning(
            "config.json of this Mixtral says sliding_window %d, a known mistake: Mixtral has none. "
            "Reading with full attention; --window %d forces the window",
            window,
            window,
        )
    experts = keys.integer("num_local_experts", 8, high=MAX_EXPERTS)
    moe = MoEConfig(n_experts=experts, top_k=keys.integer("num_experts_per_tok", 2, high=experts))
    layer = LayerConfig(rope=huggingface_rope(keys, 1_000_000.0, context), moe=moe)
    config = decoder(
        keys,
        source.names,
        architecture="mixtral",
        layers=(layer,) * count,
        context=context,
        norm_eps=keys.number("rms_norm_eps", 1e-5, high=1.0),
    )
    keys.finish(INERT)
    return names.huggingface(config, source.names)
