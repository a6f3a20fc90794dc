"""Our parameter names in the dialects of Hugging Face folders and GGUF files, as tables.

Mistral's own files need none: their names are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sash.errors import ConfigError
from sash.families.description import Description, account
from sash.families.reading import MAX_EXPERTS
from sash.network.config import ModelConfig
from sash.network.shapes import parameter_shapes

ROTARY_TABLES = (r"(?:.*\.)?rotary_emb\.inv_freq", r"rope\.freqs")

HUGGINGFACE = {
    "tok_embeddings": "embed_tokens",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.gate": "block_sparse_moe.gate",
    "norm": "norm",
}
FOUR_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
GGUF = {
    "tok_embeddings": "token_embd",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn_post_norm": "post_ffw_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "feed_forward.gate": "ffn_gate_inp",
    "norm": "output_norm",
    "output": "output",
}

_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"feed_forward\.experts\.(\d+)\.(w[123])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one kind of file spells our names.

    Attributes:
        parts: our name, without layer and ".weight" -> theirs.
        outer, inner: what stands before a name outside and inside of layer {i}.
        head: the whole name of the output head, without ".weight"; None where `parts` has it.
        experts: w1, w2 and w3 of expert {e} within a layer, ".weight" and slice included; {h} is the hidden dimension
            and {H} twice that.
    """

    parts: Mapping[str, str]
    outer: str
    inner: str
    head: str | None = None
    experts: Mapping[str, str]

    def spell(self, ours: str, hidden_dim: int) -> str:
        """Their name of one of our parameters."""
        stem, kind = ours.rsplit(".", 1)
        if stem == "output" and self.head is not None:
            return f"{self.head}.{kind}"
        within = _IN_LAYER.fullmatch(stem)
        if within is None:
            return f"{self.outer}{self.parts[stem]}.{kind}"
        before = self.inner.format(i=within[1])
        expert = _EXPERT.fullmatch(within[2])
        if expert is None:
            return f"{before}{self.parts[within[2]]}.{kind}"
        return before + self.experts[expert[2]].format(e=expert[1], h=hidden_dim, H=2 * hidden_dim)

    def weights(self, config: ModelConfig) -> dict[str, str]:
        """All of our names -> theirs."""
        return {ours: self.spell(ours, config.hidden_dim) for ours in _ours(config)}


def _ours(config: ModelConfig) -> list[str]:
    """Our names, unless a hostile configuration asks for so many that listing them takes the memory."""
    experts = sum(layer.moe.n_experts for layer in config.layers if layer.moe is not None)
    if experts > MAX_EXPERTS:
        raise ConfigError(f"{experts} experts in {config.n_layers} layers: at most {MAX_EXPERTS} are read")
    return list(parameter_shapes(config))


HUGGINGFACE_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
"""Where a decoder may stand in a file: plain, inside of a model that also sees (old and new order), saved headless."""


def huggingface(config: ModelConfig, names: frozenset[str], unneeded: tuple[str, ...] = ()) -> Description:
    """Map a Hugging Face checkpoint; experts may be one tensor each, or fused as transformers 5 holds them in memory.

    Args:
        config: the decoder.
        names: its tensors; empty for the usual ones.
        unneeded: regular expressions of tensors that play no part in reading text.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: a tensor is not understood.
    """
    prefix = next((p for p in HUGGINGFACE_PREFIXES if f"{p}embed_tokens.weight" in names), "model.")
    heads = ("lm_head", "language_model.lm_head")
    head = next((h for h in heads if f"{h}.weight" in names), heads[0])
    fused = f"{prefix}layers.0.mlp.experts.gate_up_proj" in names
    parts = HUGGINGFACE | (FOUR_NORMS if config.post_norms else {})
    experts = {w: f"block_sparse_moe.experts.{{e}}.{w}.weight" for w in ("w1", "w2", "w3")}
    if fused:
        parts = parts | {"feed_forward.gate": "mlp.gate"}
        experts = {
            "w1": "mlp.experts.gate_up_proj[{e}, 0:{h}]",
            "w2": "mlp.experts.down_proj[{e}]",
            "w3": "mlp.experts.gate_up_proj[{e}, {h}:{H}]",
        }
    dialect = Dialect(parts=parts, outer=prefix, inner=f"{prefix}layers.{{i}}.", head=head, experts=experts)
    weights = dialect.weights(config)
    return Description(config, weights, account(weights, names, (*ROTARY_TABLES, *unneeded)))


def mistral(config: ModelConfig, names: frozenset[str]) -> Description:
    """Map a checkpoint in Mistral's own layout, whose names are ours.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: a tensor is not understood.
    """
    weights = {name: name for name in _ours(config)}
    return Description(config, weights, account(weights, names, ROTARY_TABLES))


def gguf(config: ModelConfig, names: frozenset[str], unneeded: tuple[str, ...] = ()) -> Description:
    """Map a GGUF file; experts are fused, or one tensor each as in files of early 2024.

    Args:
        config: the decoder.
        names: its tensors; empty for the usual ones.
        unneeded: regular expressions of tensors that are no parameters.

    Raises:
        CheckpointError: a tensor is missing.
        ConfigError: a tensor is not understood.
    """
    stems = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}
    if "blk.0.ffn_gate.0.weight" in names:
        experts = {w: f"{stem}.{{e}}.weight" for w, stem in stems.items()}
    else:
        experts = {w: f"{stem}_exps.weight[{{e}}]" for w, stem in stems.items()}
    weights = Dialect(parts=GGUF, outer="", inner="blk.{i}.", experts=experts).weights(config)
    return Description(config, weights, account(weights, names, unneeded))
