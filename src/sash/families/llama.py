"""Llama 2 and 3, and every GGUF file of that architecture: Mistral and Mixtral are converted to it too.

GGUF: q and k are permuted so that rotary embedding turns neighbours. llama.cpp knows no window in this architecture,
and its converter writes none for Mistral 7B v0.1, so such a file reads with full attention here as there;
`llama.attention.sliding_window` is respected where a file has it, and `--window 4096` restores what is lost.
"""

from __future__ import annotations

from sash.attention.pattern import AttentionPattern
from sash.families import gguf, names
from sash.families.description import Description, Source
from sash.families.huggingface import INERT, context_length, decoder, n_layers
from sash.families.reading import MAX_POSITIONS, ConfigReader
from sash.families.rope import huggingface_rope, with_frequency_divisors
from sash.network.config import LayerConfig

FREQUENCY_DIVISORS = "rope_freqs.weight"
UNNEEDED = (r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd(\.weight)?")
"""Read into the configuration, or tables of angles that old converters stored."""


def from_huggingface(source: Source) -> Description:
    """Read a Hugging Face folder.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
    """
    keys = ConfigReader(source.config)
    keys.fixed("hidden_act", "silu")
    count, context = n_layers(keys), context_length(keys)
    layer = LayerConfig(rope=huggingface_rope(keys, 10_000.0, context))
    config = decoder(keys, source.names, architecture="llama", layers=(layer,) * count, context=context)
    keys.finish(INERT)
    return names.huggingface(config, source.names)


def from_gguf(source: Source) -> Description:
    """Read a GGUF file.

    Raises:
        ConfigError: a value out of range, or one that is not understood.
        CheckpointError: a tensor is missing.
        UsageError: the file has frequency divisors, and there is no way to read them.
    """
    keys = gguf.reader(source, "llama")
    keys.raw("tensor_data_layout")  # names the permutation that every file of this architecture has
    window = keys.integer("attention.sliding_window", 0, low=0, high=MAX_POSITIONS) or None
    rope = gguf.rope(keys, 10_000.0, layout="interleaved")
    if FREQUENCY_DIVISORS in source.names:
        rope = with_frequency_divisors(rope, source.read_vector, FREQUENCY_DIVISORS, gguf.head_dim(keys))
    moe = gguf.moe(keys)
    layer = LayerConfig(pattern=AttentionPattern(window=window), rope=rope, moe=moe)
    config = gguf.decoder(
        keys,
        source,
        architecture="mixtral" if moe else "llama",
        layers=(layer,) * gguf.n_layers(keys),
        attention_scale=keys.number("attention.scale", 0.0, above=-1e-9) or None,
    )
    keys.finish()
    return names.gguf(config, source.names, UNNEEDED)
