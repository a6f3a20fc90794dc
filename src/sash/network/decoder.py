"""The network: a stack of blocks over packed tokens. One code for serving and for training.

Shape suffixes: T packed tokens, D dim, V vocabulary.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sash.attention.segment import Backend
from sash.attention.torch_backend import attend_segment
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig
from sash.network.layers import Attention, FeedForward, RMSNorm, embedding
from sash.network.moe import MoE
from sash.network.recall import read_in_pieces
from sash.network.step import Step
from sash.quantize import PackedEmbedding, PackedLinear


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream that runs through the network."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps, config.norm_offset)
        self.attention = Attention(config, layer, index)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps, config.norm_offset)
        self.feed_forward = FeedForward(config) if layer.moe is None else MoE(config, layer.moe)
        if config.post_norms:
            self.attention_post_norm = RMSNorm(config.dim, config.norm_eps, config.norm_offset)
            self.ffn_post_norm = RMSNorm(config.dim, config.norm_eps, config.norm_offset)
        self.post_norms = config.post_norms

    def forward(self, x_TD: Tensor, step: Step) -> Tensor:
        """[T, D] -> [T, D]."""
        attended_TD = self.attention(self.attention_norm(x_TD), step)
        x_TD = x_TD + (self.attention_post_norm(attended_TD) if self.post_norms else attended_TD)
        fed_TD: Tensor = self.feed_forward(self.ffn_norm(x_TD))
        return x_TD + (self.ffn_post_norm(fed_TD) if self.post_norms else fed_TD)


class Decoder(nn.Module):
    """A decoder language model: Mistral, Mixtral, Gemma 3, Llama, Qwen2, as its config says.

    Attributes:
        config: what it is.
        backend: what computes attention; replaceable.
        independent: whether a row's numbers depend neither on its company in a step nor on chunks: matrix products of
            torch sum in another order for another number of rows.
    """

    independent = False

    def __init__(self, config: ModelConfig, backend: Backend = attend_segment) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.tok_embeddings: nn.Embedding | PackedEmbedding = embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer, index) for index, layer in enumerate(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps, config.norm_offset)
        if not config.tied_embeddings:
            self.output: nn.Linear | PackedLinear = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """What runs between its layers, and what keys and values are computed in."""
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.norm.weight.device

    def forward(self, batch: Batch, cache: KVCache | None = None) -> Tensor:
        """Hidden states of a step's tokens, [T, D], normalised and ready for `logits`.

        Args:
            batch: the step. Without a cache each span is a whole sequence (or document), and sees only itself.
            cache: where the spans' sequences have been read so far; this step's keys and values are added to it.
        """
        if cache is not None and cache.recall is not None and cache.recall.cuts(batch):
            return read_in_pieces(lambda piece: self._forward(piece, cache), batch, cache.recall, self.config.dim)
        if cache is not None and cache.summaries is not None:
            return cache.summaries.run(batch, lambda part: self._forward(part, cache))
        return self._forward(batch, cache)

    def _forward(self, batch: Batch, cache: KVCache | None) -> Tensor:
        step = Step(self.config, batch, cache, self.backend, self.dtype)
        x_TD = self.tok_embeddings(batch.tokens_T)
        if self.config.embedding_scale != 1.0:
            x_TD = x_TD * torch.tensor(self.config.embedding_scale, dtype=x_TD.dtype, device=x_TD.device)
        for layer in self.layers:
            x_TD = layer(x_TD, step)
        step.finish()
        normed: Tensor = self.norm(x_TD)
        return normed

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, V] float32. Ask only for the tokens whose logits are wanted."""
        head = self.tok_embeddings if self.config.tied_embeddings else self.output
        if isinstance(head, PackedEmbedding | PackedLinear):
            return head.logits(hidden_TD)
        return nn.functional.linear(hidden_TD, head.weight).float()

    def with_config(self, config: ModelConfig) -> Decoder:
        """The same weights under a configuration that differs in its patterns: with a forced window, say."""
        decoder = copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})
        decoder.config = config
        for block, layer in zip(decoder.layers, config.layers, strict=True):
            if isinstance(block, Block):
                block.attention.layer = layer
        for mixture in decoder.mixtures().values():
            mixture.reset_statistics()
        return decoder

    def mixtures(self) -> dict[int, MoE]:
        """The mixture of each layer that has one, by the layer's index: where router statistics are read."""
        return {
            index: block.feed_forward
            for index, block in enumerate(self.layers)
            if isinstance(block, Block) and isinstance(block.feed_forward, MoE)
        }
