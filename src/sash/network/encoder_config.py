"""What a windowed encoder is: frozen values that a family file fills in. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sash.attention.pattern import AttentionPattern, reach
from sash.errors import ConfigError

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """An encoder with local and global attention (Longformer, arXiv 2004.05150).

    Attributes:
        architecture: a label for people; no code reads it to decide anything.
        vocab_size: entries of the vocabulary.
        dim, n_heads, head_dim, hidden_dim: as in a decoder's `ModelConfig`.
        patterns: one a layer, from the input up: symmetric windows, odd and with the query's own key counted (513 is
            what Longformer configurations call 512), each with its dilation and with global tokens.
        norm_eps: of the layer norms.
        max_positions: rows of the position table. Positions are counted from `pad_id` + 1, as RoBERTa's are, so a
            sequence has `context` tokens at most.
        n_types: rows of the token type table.
        pad_id: the padding token's id. There is no padding here, but a token with this id takes no position.
        end_id: the token that ends every sequence (RoBERTa's </s>); None for none.
        activation: of the feed-forward network; "gelu" is the exact one, "gelu_tanh" its approximation.
        has_head: whether there is a masked-LM head.
        tied_embeddings: whether the output weights of that head are the embedding.
    """

    vocab_size: int
    dim: int
    n_heads: int
    head_dim: int
    hidden_dim: int
    patterns: tuple[AttentionPattern, ...]
    max_positions: int
    architecture: str = "longformer"
    norm_eps: float = 1e-5
    n_types: int = 1
    pad_id: int = 1
    end_id: int | None = 2
    activation: Activation = "gelu"
    has_head: bool = True
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_heads", "head_dim", "hidden_dim", "n_types"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more; got {getattr(self, name)}")
        if not self.patterns:
            raise ConfigError("a model needs at least one layer")
        for index, pattern in enumerate(self.patterns):
            if pattern.causal or pattern.window is None or not pattern.global_tokens:
                raise ConfigError(f"layer {index}: an encoder's pattern is a symmetric window with global tokens")
        for name in ("pad_id", "end_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ConfigError(f"{name} = {value} is not an id of a vocabulary of {self.vocab_size}")
        if self.context < 1:
            raise ConfigError(
                f"max_positions = {self.max_positions} leaves no position for a token: positions are counted from"
                f" pad_id + 1 = {self.pad_id + 1}"
            )
        if not self.norm_eps > 0:
            raise ConfigError(f"norm_eps must be above 0; got {self.norm_eps}")
        if self.activation not in get_args(Activation):
            raise ConfigError(f"activation {self.activation!r} is not known: {', '.join(get_args(Activation))} are")

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.patterns)

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each layer: the keys that a query sees, its own included."""
        return tuple(pattern.window or 0 for pattern in self.patterns)

    @property
    def window(self) -> int:
        """The largest window of any layer."""
        return max(self.windows)

    @property
    def context(self) -> int:
        """The longest sequence that can be read, in tokens."""
        return self.max_positions - self.pad_id - 1

    @property
    def reach(self) -> int | None:
        """How many positions to either side the whole stack can carry information without a global token."""
        return reach(self.patterns)


def encoder_shapes(config: EncoderConfig) -> dict[str, Shape]:
    """Name and shape of every parameter, from the input up; tied output weights are not listed again.

    Returns:
        For example `layers.0.attention.wq_global.weight` -> (n_heads * head_dim, dim).
    """
    dim, heads = config.dim, config.n_heads * config.head_dim
    shapes: dict[str, Shape] = {
        "tok_embeddings.weight": (config.vocab_size, dim),
        "position_embeddings.weight": (config.max_positions, dim),
        "type_embeddings.weight": (config.n_types, dim),
        **_norm("embedding_norm", dim),
    }
    projections = [w + kind for kind in ("", "_global") for w in ("wq", "wk", "wv")]
    for index in range(config.n_layers):
        layer = f"layers.{index}"
        for name in projections:
            shapes |= _linear(f"{layer}.attention.{name}", dim, heads)
        shapes |= _linear(f"{layer}.attention.wo", heads, dim) | _norm(f"{layer}.attention_norm", dim)
        shapes |= _linear(f"{layer}.feed_forward.w1", dim, config.hidden_dim)
        shapes |= _linear(f"{layer}.feed_forward.w2", config.hidden_dim, dim) | _norm(f"{layer}.ffn_norm", dim)
    if config.has_head:
        shapes |= _linear("head.dense", dim, dim) | _norm("head.norm", dim)
        if not config.tied_embeddings:
            shapes["output.weight"] = (config.vocab_size, dim)
        shapes["head.bias"] = (config.vocab_size,)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> dict[str, Shape]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
