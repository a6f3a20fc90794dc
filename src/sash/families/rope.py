"""Rotary embedding as configurations spell it: Hugging Face's old and new form, Mistral's, and GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from sash.errors import CheckpointError, ConfigError, UsageError
from sash.families.reading import MAX_POSITIONS, ConfigReader
from sash.network.config import RopeConfig, RopeScaling

MAX_FACTOR = 1e6
MIN_THETA = 1.0
KINDS = ("default", "linear", "llama3", "yarn")


def huggingface_rope(keys: ConfigReader, theta: float, context: int) -> RopeConfig:
    """One rotary embedding for all layers.

    Understands `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters` (5); as there, a scaling that is
    written the old way comes first, and the base inside of it before the base beside it.

    Args:
        keys: the configuration.
        theta: the base where none is written.
        context: positions the model was trained on, 0 if unknown: what scalings start from that don't say.

    Raises:
        ConfigError: a scaling that is not understood, or a value out of range.
    """
    keys.fixed("partial_rotary_factor", 1.0)
    theta = keys.number("rope_theta", theta, above=MIN_THETA)
    old, new = keys.reader("rope_scaling"), keys.reader("rope_parameters")
    return rope_from(old or new, theta, context)


def layered_rope(
    keys: ConfigReader, full_theta: float, windowed_theta: float, context: int
) -> tuple[RopeConfig, RopeConfig]:
    """A rotary embedding for full layers and one for windowed layers, which no old-style scaling touches.

    Raises:
        ConfigError: as `huggingface_rope`.
    """
    full_theta = keys.number("rope_theta", full_theta, above=MIN_THETA)
    windowed_theta = keys.number("rope_local_base_freq", windowed_theta, above=MIN_THETA)
    old, new = keys.reader("rope_scaling"), keys.reader("rope_parameters")
    parts = (new.reader("full_attention"), new.reader("sliding_attention")) if new is not None else (None, None)
    if new is not None:
        new.finish()
    full = rope_from(parts[0], full_theta, context)
    if old is not None:
        full = rope_from(old, full.theta, context)
    return full, rope_from(parts[1], windowed_theta, context)


def rope_from(keys: ConfigReader | None, theta: float, context: int) -> RopeConfig:
    """The object that describes one rotary embedding: `rope_type` (once `type`), `rope_theta` and a scaling's values.

    Raises:
        ConfigError: a scaling that is not understood, or a value out of range.
    """
    if keys is None:
        return RopeConfig(theta=theta)
    theta = keys.number("rope_theta", theta, above=MIN_THETA)
    old_kind = keys.text("type", KINDS, "default")
    kind = keys.text("rope_type", KINDS, old_kind)
    keys.fixed("partial_rotary_factor", 1.0)
    scaling = None
    if kind == "linear":
        scaling = RopeScaling(kind="linear", factor=_factor(keys))
    elif kind == "llama3":
        scaling = _llama3(keys, context)
    elif kind == "yarn":
        scaling = _yarn(keys, context)
    keys.finish()
    return RopeConfig(theta=theta, scaling=scaling)


def _factor(keys: ConfigReader) -> float:
    return keys.number("factor", high=MAX_FACTOR)


def _original(keys: ConfigReader, context: int) -> int:
    default = context or None
    original = keys.integer("original_max_position_embeddings", default, high=MAX_POSITIONS)
    if original is None:
        raise keys.refusal("original_max_position_embeddings", "there, as the trained context is not known")
    return original


def _llama3(keys: ConfigReader, context: int) -> RopeScaling:
    return RopeScaling(
        kind="llama3",
        factor=_factor(keys),
        original_context=_original(keys, context),
        low_freq_factor=keys.number("low_freq_factor", high=MAX_FACTOR),
        high_freq_factor=keys.number("high_freq_factor", high=MAX_FACTOR),
    )


def _yarn(keys: ConfigReader, context: int) -> RopeScaling:
    original = _original(keys, context)
    factor = keys.number("factor", None, high=MAX_FACTOR)
    if factor is None:  # as transformers: the stretch is what the contexts say
        factor = max(context, original) / original
    keys.fixed("truncate", True)
    attention = keys.number("attention_factor", None, high=MAX_FACTOR)
    mscale, all_dim = (keys.number(name, None, above=-1.0, high=MAX_FACTOR) for name in ("mscale", "mscale_all_dim"))
    if attention is None and mscale and all_dim:
        attention = _attention_factor(factor, mscale) / _attention_factor(factor, all_dim)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_context=original,
        beta_fast=keys.number("beta_fast", 32.0, high=MAX_FACTOR),
        beta_slow=keys.number("beta_slow", 1.0, high=MAX_FACTOR),
        attention_factor=attention,
    )


def _attention_factor(factor: float, weight: float = 1.0) -> float:
    """YaRN's recommendation, arXiv 2309.00071, section 3.4, with the weight that DeepSeek's files give it."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def mistral_yarn(keys: ConfigReader | None) -> RopeScaling | None:
    """The `yarn` object of params.json: alpha and beta are the ramp's edges; `apply_scale` says whether q and k grow.

    Raises:
        ConfigError: a value that is not understood or out of range.
    """
    if keys is None:
        return None
    scaling = RopeScaling(
        kind="yarn",
        factor=_factor(keys),
        original_context=keys.integer("original_max_position_embeddings", high=MAX_POSITIONS),
        beta_fast=keys.number("beta", 32.0, high=MAX_FACTOR),
        beta_slow=keys.number("alpha", 1.0, high=MAX_FACTOR),
        attention_factor=None if keys.flag("apply_scale", True) else 1.0,
    )
    keys.finish()
    return scaling


def gguf_scaling(keys: ConfigReader, context: int) -> RopeScaling | None:
    """The `rope.scaling.*` values of GGUF metadata, with the meaning that llama.cpp gives them.

    Raises:
        ConfigError: a scaling that is not understood, or a value out of range.
    """
    kind = keys.text("rope.scaling.type", ("none", "linear", "yarn"), "linear")
    factor = keys.number("rope.scaling.factor", None, above=-1.0, high=MAX_FACTOR)
    if factor is None:
        factor = keys.number("rope.scale_linear", None, above=-1.0, high=MAX_FACTOR)
    factor = factor or 1.0  # 0 says, as nothing does, that there is no stretch
    if factor < 0:
        raise keys.refusal("rope.scaling.factor", "0 or more")
    original = keys.integer("rope.scaling.original_context_length", context or None, low=0, high=MAX_POSITIONS)
    attention = keys.number("rope.scaling.attn_factor", 1.0, high=MAX_FACTOR)
    fast = keys.number("rope.scaling.yarn_beta_fast", 32.0, high=MAX_FACTOR)
    slow = keys.number("rope.scaling.yarn_beta_slow", 1.0, high=MAX_FACTOR)
    for name in ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"):
        keys.fixed(name, 1.0)
    keys.fixed("rope.scaling.yarn_log_multiplier", 0.0)
    keys.raw("rope.scaling.finetuned")
    if kind == "yarn":
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_context=original or context,
            beta_fast=fast,
            beta_slow=slow,
            attention_factor=attention * _attention_factor(factor),
        )
    if attention != 1.0:
        raise keys.refusal("rope.scaling.attn_factor", "1 where the scaling is not yarn")
    return RopeScaling(kind="linear", factor=factor) if kind == "linear" and factor != 1.0 else None


def with_frequency_divisors(
    rope: RopeConfig, read_vector: Callable[[str], Sequence[float]] | None, name: str, head_dim: int
) -> RopeConfig:
    """A rotary embedding whose frequencies are divided by a tensor's entries, as Llama 3.1's are in GGUF files.

    Raises:
        UsageError: tensors are not at hand.
        CheckpointError: the tensor does not hold one number above 0 for each frequency.
        ConfigError: the metadata has a scaling besides.
    """
    if rope.scaling is not None:
        raise ConfigError(f"rope.scaling.type: {rope.scaling.kind} scaling and tensor {name} exclude each other")
    if read_vector is None:
        raise UsageError(f"tensor {name} shapes the rotary embedding: describe() needs read_vector to read it")
    factors = tuple(float(value) for value in read_vector(name))
    if len(factors) != head_dim // 2 or not all(0 < value < math.inf for value in factors):
        raise CheckpointError(f"tensor {name} must hold {head_dim // 2} numbers above 0, one for each frequency")
    return replace(rope, scaling=RopeScaling(kind="factors", factors=factors))
