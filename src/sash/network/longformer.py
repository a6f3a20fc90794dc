"""The Longformer encoder: a symmetric window in every layer, and global tokens with projections of their own.

After arXiv 2004.05150, section 3: a token sees its window and, through the same projections, every global token.
A global token is computed apart: its own wq_global meets all tokens of its sequence through wk_global and wv_global,
and its local result is dropped. Sequences are packed side by side and never padded.

A block of queries holds what it meets and nothing of size N x N, so time and memory are linear in the length.

Shape suffixes: T packed tokens, U global tokens of one sequence, D dim, V vocabulary, H heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.plan import QUERY_BLOCK, KeyRun, QueryBlock, masked_run, own_segment
from sash.attention.segment import Backend, Segment, attend
from sash.attention.torch_backend import attend_segment
from sash.errors import EmptyPromptError, PromptOverflowError, UnsupportedError, UsageError
from sash.network.batch import Batch, Span
from sash.network.encoder_config import EncoderConfig
from sash.network.layers import embedding

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def local_blocks(pattern: AttentionPattern, meta: TokenMeta, offset: int, dtype: torch.dtype) -> list[QueryBlock]:
    """What each block of a sequence's queries meets: its band of the sequence, and the global tokens outside of it.

    A global query meets no more than its neighbours do: its result is computed apart and replaces the one of here, so
    it need not make its whole block meet the whole sequence.

    Args:
        pattern: a symmetric window with global tokens.
        meta: of the sequence's tokens, each field of shape [n].
        offset: where the sequence begins in the step; blocks and runs are given in the step's numbering.
        dtype: of the queries, for masks.
    """
    n, back = int(meta.position.shape[0]), pattern.reach_back or 0
    flagged = torch.nonzero(meta.is_global).flatten()
    blocks = []
    for a in range(0, n, QUERY_BLOCK):
        b = min(a + QUERY_BLOCK, n)
        lo, hi = max(0, a - back), min(n, b + back)
        queries = meta.take(slice(a, b))
        band = KeyRun("own", offset + lo, offset + hi)
        runs = [masked_run(pattern, queries, meta.take(slice(lo, hi)), band, dtype)]
        beyond = flagged[(flagged < lo) | (flagged >= hi)]
        if beyond.numel():
            runs.append(KeyRun("own", 0, 0, beyond + offset))  # every query sees them: no mask to build
        blocks.append(QueryBlock(offset + a, offset + b, tuple(run for run in runs if run is not None)))
    return blocks


@dataclass(frozen=True, slots=True)
class EncoderStep:
    """Who meets whom in a batch, worked out once and shared by all layers.

    Attributes:
        blocks: of each pattern, the blocks of queries and the keys they meet through the local projections.
        flagged: spans that have global tokens, with the indices of those tokens in the step.
        backend: what computes a segment.
    """

    blocks: dict[AttentionPattern, tuple[QueryBlock, ...]]
    flagged: tuple[tuple[Span, Tensor], ...]
    backend: Backend

    @staticmethod
    def of(batch: Batch, patterns: Sequence[AttentionPattern], backend: Backend, dtype: torch.dtype) -> EncoderStep:
        """Plan a batch whose spans are whole sequences."""
        blocks = {
            pattern: tuple(
                block for span in batch.spans for block in local_blocks(pattern, batch.meta(span), span.start, dtype)
            )
            for pattern in dict.fromkeys(patterns)
        }
        spans = batch.spans if batch.global_T is not None else ()
        found = ((span, torch.nonzero(batch.meta(span).is_global).flatten() + span.start) for span in spans)
        return EncoderStep(blocks, tuple((span, index_U) for span, index_U in found if index_U.numel()), backend)


class EncoderAttention(nn.Module):
    """Local attention for all tokens, and global attention for those that are flagged."""

    def __init__(self, config: EncoderConfig, pattern: AttentionPattern) -> None:
        super().__init__()
        inner = config.n_heads * config.head_dim
        self.heads = (config.n_heads, config.head_dim)
        self.scale = config.head_dim**-0.5
        self.pattern = pattern
        self.wq, self.wk, self.wv = (nn.Linear(config.dim, inner) for _ in range(3))
        self.wq_global, self.wk_global, self.wv_global = (nn.Linear(config.dim, inner) for _ in range(3))
        self.wo = nn.Linear(inner, config.dim)

    def forward(self, x_TD: Tensor, step: EncoderStep) -> Tensor:
        """[T, D] -> [T, D]."""
        q_THK = self.wq(x_TD).unflatten(-1, self.heads)
        k_HTK = self.wk(x_TD).unflatten(-1, self.heads).transpose(0, 1)
        v_HTK = self.wv(x_TD).unflatten(-1, self.heads).transpose(0, 1)
        outs = []
        for block in step.blocks[self.pattern]:
            segments = [own_segment(run, k_HTK, v_HTK) for run in block.runs]
            outs.append(attend(q_THK[block.start : block.stop], None, segments, self.scale, step.backend))
        out_THK = torch.cat(outs)
        for span, index_U in step.flagged:
            out_THK[index_U] = self._global(x_TD[span.start : span.stop], x_TD[index_U], step.backend)
        out_TD: Tensor = self.wo(out_THK.flatten(-2))
        return out_TD

    def _global(self, x_TD: Tensor, flagged_UD: Tensor, backend: Backend) -> Tensor:
        """Attention of one sequence's global tokens to all of its tokens, [U, H, K]."""
        q_UHK = self.wq_global(flagged_UD).unflatten(-1, self.heads)
        k_HTK = self.wk_global(x_TD).unflatten(-1, self.heads).transpose(0, 1)
        v_HTK = self.wv_global(x_TD).unflatten(-1, self.heads).transpose(0, 1)
        everything = [Segment(k_HTK, v_HTK)]
        return torch.cat([attend(q, None, everything, self.scale, backend) for q in q_UHK.split(QUERY_BLOCK)])


class EncoderFeedForward(nn.Module):
    """w2(act(w1 x)), with biases (Transformer, arXiv 1706.03762, section 3.3)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim)
        self.w2 = nn.Linear(config.hidden_dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        out_TD: Tensor = self.w2(self.activation(self.w1(x_TD)))
        return out_TD


class EncoderBlock(nn.Module):
    """Attention, then feed-forward; each sum with the stream is normalised (post-norm)."""

    def __init__(self, config: EncoderConfig, pattern: AttentionPattern) -> None:
        super().__init__()
        self.attention = EncoderAttention(config, pattern)
        self.attention_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.feed_forward = EncoderFeedForward(config)
        self.ffn_norm = nn.LayerNorm(config.dim, config.norm_eps)

    def forward(self, x_TD: Tensor, step: EncoderStep) -> Tensor:
        """[T, D] -> [T, D]."""
        x_TD = self.attention_norm(x_TD + self.attention(x_TD, step))
        out_TD: Tensor = self.ffn_norm(x_TD + self.feed_forward(x_TD))
        return out_TD


class MaskedHead(nn.Module):
    """Hidden states to what the output weights are multiplied with: norm(gelu(dense x)), and a bias a word."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        out_TD: Tensor = self.norm(F.gelu(self.dense(x_TD)))
        return out_TD


class Longformer(nn.Module):
    """The encoder, with its masked-LM head where the config has one.

    Attributes:
        config: what it is.
        backend: what computes attention; replaceable.
    """

    def __init__(self, config: EncoderConfig, backend: Backend = attend_segment) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.tok_embeddings = embedding(config.vocab_size, config.dim)
        self.position_embeddings = embedding(config.max_positions, config.dim)
        self.type_embeddings = embedding(config.n_types, config.dim)
        self.embedding_norm = nn.LayerNorm(config.dim, config.norm_eps)
        self.layers = nn.ModuleList(EncoderBlock(config, pattern) for pattern in config.patterns)
        if config.has_head:
            self.head = MaskedHead(config)
            if not config.tied_embeddings:
                self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, batch: Batch, types_T: Tensor | None = None) -> Tensor:
        """Hidden states of whole sequences' tokens, [T, D], ready for `lm_logits`.

        Args:
            batch: each span a whole sequence, from position 0; `global_T` flags its global tokens.
            types_T: token types, int64; 0 by default.

        Raises:
            UsageError: a span that does not begin at position 0.
            PromptOverflowError: a sequence longer than the position table.
        """
        x_TD: Tensor = self.tok_embeddings(batch.tokens_T) + self.position_embeddings(self._position_ids(batch))
        x_TD = x_TD + (self.type_embeddings.weight[0] if types_T is None else self.type_embeddings(types_T))
        x_TD = self.embedding_norm(x_TD)
        step = EncoderStep.of(batch, self.config.patterns, self.backend, x_TD.dtype)
        for layer in self.layers:
            x_TD = layer(x_TD, step)
        return x_TD

    def lm_logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, V] float32: what the masked-LM head expects at each token. Ask only for tokens of interest.

        Raises:
            UnsupportedError: the checkpoint has no such head.
        """
        if not self.config.has_head:
            raise UnsupportedError("this checkpoint has no masked-LM head: use one saved as LongformerForMaskedLM")
        weight_VD = self.tok_embeddings.weight if self.config.tied_embeddings else self.output.weight
        logits_TV: Tensor = F.linear(self.head(hidden_TD), weight_VD, self.head.bias)
        return logits_TV.float()

    def _position_ids(self, batch: Batch) -> Tensor:
        """Rows of the position table, [T]: pad_id + 1 for a sequence's first token; a padding token takes none."""
        ids = []
        pad_id, limit = self.config.pad_id, self.config.context
        for span in batch.spans:
            if span.position:
                raise UsageError(f"an encoder reads whole sequences: a span begins at position {span.position}, not 0")
            if len(span) > limit:
                raise PromptOverflowError(
                    f"{len(span):,} tokens are more than the {limit:,} that this encoder has positions for:"
                    " split the text"
                )
            counted_T = (batch.tokens_T[span.start : span.stop] != pad_id).long()
            ids.append(counted_T.cumsum(0) * counted_T + pad_id)
        return torch.cat(ids)


@torch.inference_mode()
def encode(model: Longformer, ids: Sequence[int], global_positions: Sequence[int] = ()) -> Tensor:
    """Hidden states of one sequence, [T, D].

    Args:
        model: the encoder.
        ids: token ids, special tokens included.
        global_positions: indices of the tokens that see all and are seen by all, in any order.

    Raises:
        EmptyPromptError: no tokens.
        UsageError: an id outside of the vocabulary, or a global position outside of the sequence.
        PromptOverflowError: more tokens than the model has positions.
    """
    if not ids:
        raise EmptyPromptError("there is nothing to encode: give at least one token")
    unknown = next((token for token in ids if not 0 <= token < model.config.vocab_size), None)
    if unknown is not None:
        raise UsageError(f"token id {unknown} is not in the vocabulary of {model.config.vocab_size:,}")
    outside = next((position for position in global_positions if not 0 <= position < len(ids)), None)
    if outside is not None:
        raise UsageError(f"global position {outside} is outside of the {len(ids):,} tokens: count them from 0")
    seers = set(global_positions)
    flags = [[index in seers for index in range(len(ids))]] if seers else None
    batch = Batch.pack([list(ids)], is_global=flags, device=model.tok_embeddings.weight.device)
    hidden_TD: Tensor = model(batch)
    return hidden_TD
