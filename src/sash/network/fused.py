"""The decoder over packed weights and native kernels: the same network, a call a step instead of dozens a layer.

It answers as `Decoder` does. The stream between layers is float32; queries, keys and values are rounded to bfloat16
(or int8, as the cache keeps them). Weights that read the same input are one product. Every row of a step is computed
by itself in one fixed order, so what a sequence gets depends neither on its company nor on its chunks: bit for bit.

Shape suffixes: T packed tokens, D dim, V vocabulary, F rotary frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sash.attention.pattern import AttentionPattern
from sash.errors import UnsupportedError, UsageError
from sash.kernels import native
from sash.kernels.packed import PackedWeight
from sash.network import rope
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig, MoEConfig, RopeConfig
from sash.network.global_steps import sees_log, steps_of
from sash.network.moe import Mixture
from sash.network.native_plan import NativePlan
from sash.network.recall import read_in_pieces

Parts = Mapping[str, PackedWeight | Tensor]
"""A network's parameters by name: those of `Decoder`, with wq, wk and wv as `wqkv` and w1 and w3 as `w13`."""

MAX_HEAD_DIM = 256


def why_not(config: ModelConfig) -> str | None:
    """Why native kernels cannot run a network, or None where they can."""
    if not native.available():
        return "native kernels do not serve here"
    if config.head_dim % 16 or config.head_dim > MAX_HEAD_DIM:
        return f"heads of {config.head_dim} components are not a multiple of 16, or more than {MAX_HEAD_DIM}"
    for pattern in config.patterns:
        if not pattern.causal or pattern.dilation > 1 or (pattern.global_tokens and not pattern.holds_global):
            return "a pattern with dilation, with global tokens that no pins hold, or with sight of what follows"
    return None


class FusedDecoder:
    """A decoder language model over packed weights; see `sash.network.decoder.Decoder`.

    Attributes:
        config: what it is.
        parts: its parameters.
        dtype: what keys and values are computed in.
        device: where it computes.
        independent: a row's numbers depend neither on its company in a step nor on chunks.
    """

    independent = True
    dtype = torch.bfloat16
    device = torch.device("cpu")

    def __init__(self, config: ModelConfig, parts: Parts) -> None:
        reason = why_not(config)
        if reason is not None:
            raise UnsupportedError(f"native kernels cannot run this network: {reason}")
        self.config, self.parts = config, parts
        self._patterns = config.patterns
        self._embeddings = _weight(parts, "tok_embeddings")
        head = self._embeddings if config.tied_embeddings else _weight(parts, "output")
        self._table = native.Linear(self._embeddings)
        self._head = self._table if config.tied_embeddings else native.Linear(head)
        # Rounded as the network that was trained in bfloat16 rounds it.
        self._scale = float(torch.tensor(config.embedding_scale, dtype=torch.bfloat16))
        self._norm, self._no_norm = self._norm_of("norm"), native.Norm()
        self._kinds = tuple(dict.fromkeys((layer.pattern, layer.rope) for layer in config.layers))
        self._mixtures: dict[int, Mixture] = {}
        self._kept: list[Any] = []
        self._runs: list[tuple[list[Any], int | None]] = [([], None)]
        seen: dict[AttentionPattern, int] = {}
        for index, layer in enumerate(config.layers):
            self._add_layer(index, layer, seen.get(layer.pattern, 0))
            seen[layer.pattern] = seen.get(layer.pattern, 0) + 1

    def __call__(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """Hidden states of a step's tokens, float32 [T, D]; see `Decoder.forward`."""
        if cache is not None and cache.recall is not None and cache.recall.cuts(batch):
            return read_in_pieces(lambda piece: self._steps(piece, cache), batch, cache.recall, self.config.dim)
        if cache is not None and cache.summaries is not None:
            return cache.summaries.run(batch, lambda part: self._run(part, cache))
        return self._steps(batch, cache)

    def _steps(self, batch: Batch, cache: KVCache | None) -> Tensor:
        """A step, in two where some of its tokens see the log."""
        if not sees_log(self._patterns, batch):
            return self._run(batch, cache)
        if cache is None:  # what global queries see is read back from a cache
            batch, cache = self._with_cache(batch)
        out_TD = torch.empty(len(batch.tokens_T), self.config.dim)
        for step, index_T in steps_of(batch):
            out_TD[index_T] = self._run(step, cache)
        return out_TD

    def _with_cache(self, batch: Batch) -> tuple[Batch, KVCache]:
        """The step over a cache of its own."""
        cache = KVCache(self.config, len(batch.spans), self.dtype, self.device)
        spans = tuple(replace(span, row=row) for row, span in enumerate(batch.spans))
        cache.lengths = [span.position for span in spans]
        return replace(batch, spans=spans), cache

    def _run(self, batch: Batch, cache: KVCache | None) -> Tensor:
        """One step, of which either all tokens see the log or none."""
        plan = NativePlan(self._kinds, batch, cache, self._angles)
        x_TD, none = self._table.rows(batch.tokens_T, self._scale), self._no_norm
        last = len(self._runs) - 1
        for index, (layers, mixture) in enumerate(self._runs):
            if layers:
                norm = self._norm if index == last else none
                native.module().run(layers, plan.native, x_TD.data_ptr(), self.config.dim, norm.native)
            if mixture is not None:
                self._mix(mixture, x_TD)
        plan.finish()
        return x_TD if self._runs[last][0] else self._norm(x_TD)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, V] float32."""
        return self._head(hidden_TD.float().contiguous())

    def mixtures(self) -> dict[int, Mixture]:
        """The mixture of each layer that has one, by the layer's index."""
        return self._mixtures

    def with_config(self, config: ModelConfig) -> FusedDecoder:
        """The same weights under another configuration: with a forced window, say."""
        return FusedDecoder(config, self.parts)

    def _angles(self, config: RopeConfig, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        return rope.known_angles(config, self.config.head_dim, positions_T)

    def _add_layer(self, index: int, layer: LayerConfig, layer_in_store: int) -> None:
        config, name = self.config, f"layers.{index}"
        bias = self.parts.get(f"{name}.attention.wqkv.bias")
        wqkv = native.Linear(_weight(self.parts, f"{name}.attention.wqkv"), bias if isinstance(bias, Tensor) else None)
        wo = native.Linear(_weight(self.parts, f"{name}.attention.wo"))
        q_norm, k_norm = (self._norm_of(f"{name}.attention.{part}_norm", config.qk_norm) for part in "qk")
        attention = native.module().AttentionWeights(
            wqkv.native,
            wo.native,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.attention_scale if config.attention_scale is not None else config.head_dim**-0.5,
            q_norm.native,
            k_norm.native,
            layer.rope.layout != "half",
            self._kinds.index((layer.pattern, layer.rope)),
            layer_in_store,
        )
        norms = [
            self._norm_of(f"{name}.attention_norm"),
            self._norm_of(f"{name}.attention_post_norm", config.post_norms),
            self._norm_of(f"{name}.ffn_norm"),
            self._norm_of(f"{name}.ffn_post_norm", config.post_norms),
        ]
        whole = native.module().Layer(attention, *(norm.native for norm in norms))
        self._kept += [wqkv, wo, q_norm, k_norm, norms]
        self._runs[-1][0].append(whole)
        if layer.moe is None:
            network = self._feed_forward(f"{name}.feed_forward")
            whole.set_feed_forward(network.native)
            self._kept.append(network)
            return
        self._mixtures[index] = self._mixture(f"{name}.feed_forward", layer.moe)
        self._runs[-1] = (self._runs[-1][0], index)
        self._runs.append(([], None))

    def _feed_forward(self, name: str) -> native.FeedForward:
        w13, w2 = _weight(self.parts, f"{name}.w13"), _weight(self.parts, f"{name}.w2")
        return native.FeedForward(w13, w2, self.config.activation)

    def _mixture(self, name: str, moe: MoEConfig) -> Mixture:
        gate = self.parts[f"{name}.gate.weight"]
        if not isinstance(gate, Tensor):
            raise UsageError(f"{name}.gate.weight is packed, and routers are kept as they are")
        inner = moe.expert
        experts = [
            self._feed_forward(f"{name}.experts.{expert}")
            if inner is None
            else self._mixture(f"{name}.experts.{expert}", inner)
            for expert in range(moe.n_experts)
        ]
        return Mixture(gate.float(), experts, moe.top_k)

    def _mix(self, index: int, x_TD: Tensor) -> None:
        """The feed-forward half of a layer with a mixture, in place."""
        name = f"layers.{index}"
        out_TD = self._mixtures[index](self._norm_of(f"{name}.ffn_norm")(x_TD))
        x_TD += self._norm_of(f"{name}.ffn_post_norm")(out_TD) if self.config.post_norms else out_TD

    def _norm_of(self, name: str, present: bool = True) -> native.Norm:
        if not present:
            return native.Norm()
        weight = self.parts[f"{name}.weight"]
        if not isinstance(weight, Tensor):
            raise UsageError(f"{name}.weight is packed, and norms are kept as they are")
        return native.Norm(weight.float() + self.config.norm_offset, self.config.norm_eps)


def _weight(parts: Parts, name: str) -> PackedWeight:
    weight = parts[name]
    if not isinstance(weight, PackedWeight):
        raise UsageError(f"{name} is not packed: native kernels read packed weights")
    return weight
