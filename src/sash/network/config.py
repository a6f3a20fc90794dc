"""What a network is: frozen values that a family file fills in and that nothing downstream second-guesses.

Names are those of the Mistral 7B paper (table 1). There is no switch by family: whatever differs between Mistral,
Gemma 3 and Qwen2 is a value here, per layer where it can differ per layer. Needs no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from sash.attention.pattern import AttentionPattern, reach
from sash.errors import ConfigError, PinsError, WindowError
from sash.network.hierarchy import Hierarchy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context a model was first trained on.

    Attributes:
        kind: "linear" divides every frequency by `factor`; "llama3" only the slow ones, with a smooth band between
            (Llama 3.1 release, `apply_scaling`); "yarn" interpolates by rotations a trained context makes (YaRN,
            arXiv 2309.00071, section 3.2) and scales attention by `attention_factor`; "factors" divides each
            frequency by its own entry of `factors` (the `rope_freqs.weight` of GGUF files).
        factor: the stretch; 1 for "factors".
        original_context: positions of the first training.
        low_freq_factor, high_freq_factor: edges of llama3's smooth band.
        beta_fast, beta_slow: edges of YaRN's ramp, in rotations.
        attention_factor: what cos and sin are multiplied by; None for YaRN's 0.1 ln(factor) + 1, else 1.
        factors: head_dim / 2 divisors, the fastest frequency's first; only for "factors".
    """

    kind: Literal["linear", "llama3", "yarn", "factors"]
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "yarn", "factors"):
            raise ConfigError(f"rope scaling {self.kind!r} is not known: linear, llama3, yarn and factors are")
        if (self.kind == "factors") != bool(self.factors):
            raise ConfigError("a rope scaling has factors where its kind is 'factors', and only there")
        if not all(factor > 0 for factor in self.factors):
            raise ConfigError("every rope scaling factor must be above 0")
        if not self.factor > 0:
            raise ConfigError(f"rope scaling factor must be above 0; got {self.factor}")
        if self.kind in ("llama3", "yarn") and self.original_context < 1:
            raise ConfigError(f"rope scaling {self.kind!r} needs the context of the first training")
        if self.kind == "llama3" and not self.low_freq_factor < self.high_freq_factor:
            raise ConfigError("llama3 rope scaling needs low_freq_factor below high_freq_factor")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (RoFormer, arXiv 2104.09864).

    Attributes:
        theta: base of the frequencies.
        layout: which components of a head turn together: "half" pairs i with i + head_dim/2 (Hugging Face, GPT-NeoX),
            "interleaved" pairs 2i with 2i + 1 (the paper, Mistral's own files, GGUF files of llama kind).
        scaling: see `RopeScaling`.
    """

    theta: float = 10_000.0
    layout: Literal["half", "interleaved"] = "half"
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not self.theta > 0:
            raise ConfigError(f"rope theta must be above 0; got {self.theta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """A sparse mixture of experts (Mixtral, arXiv 2401.04088, section 2.1).

    Attributes:
        n_experts: expert networks in the layer.
        top_k: how many of them each token is sent to; their gates are a softmax over the chosen logits.
        expert: None for a plain gated feed-forward network; a mixture makes each expert itself a mixture.
    """

    n_experts: int
    top_k: int
    expert: MoEConfig | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.n_experts:
            raise ConfigError(f"top_k must lie between 1 and n_experts = {self.n_experts}; got {self.top_k}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """What may differ from layer to layer."""

    pattern: AttentionPattern = field(default_factory=AttentionPattern)
    rope: RopeConfig = field(default_factory=RopeConfig)
    moe: MoEConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder, whole.

    Attributes:
        architecture: a label for people ("mistral", "gemma3"); no code reads it to decide anything.
        dim, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, norm_eps: as in the Mistral 7B paper, table 1.
        layers: one config a layer, from the input up.
        context: positions the model was trained on; 0 where the checkpoint does not say.
        activation: of the gated feed-forward network.
        norm_offset: added to norm weights (1.0 where a checkpoint stores weight - 1, as Gemma's does).
        embedding_scale: what embeddings are multiplied by.
        attention_scale: what q.k is multiplied by; None for head_dim ** -0.5.
        qk_norm: whether each head's query and key are normalised before rotation.
        post_norms: whether attention and feed-forward outputs are normalised before they are added: four
            norms a block.
        qkv_bias: whether wq, wk and wv have biases.
        tied_embeddings: whether the output head is the embedding.
        forced_window: the window that a user forced on a model that has none, or a smaller one than its own: an
            ablation, labelled so wherever it is shown. None where the patterns are the checkpoint's own.
        trained_windows: what each layer's window was before one was forced; None where none is.
        hierarchy: how what left the windows of layers with an annex is summed up there; None where it is not.
    """

    architecture: str
    vocab_size: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float = 1e-5
    context: int = 0
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    qk_norm: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    tied_embeddings: bool = False
    forced_window: int | Literal["full"] | None = None
    trained_windows: tuple[int | None, ...] | None = None
    hierarchy: Hierarchy | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_heads", "n_kv_heads", "head_dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more; got {getattr(self, name)}")
        if not self.layers:
            raise ConfigError("a model needs at least one layer")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary embedding; got {self.head_dim}")
        for scaling in {layer.rope.scaling for layer in self.layers}:
            if scaling is not None and scaling.factors and len(scaling.factors) != self.head_dim // 2:
                raise ConfigError(
                    f"rope scaling has {len(scaling.factors)} factors for the {self.head_dim // 2} frequencies"
                    f" of a head of {self.head_dim}"
                )
        if self.activation not in ("silu", "gelu_tanh"):
            raise ConfigError(f"activation {self.activation!r} is not known: silu and gelu_tanh are")

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def patterns(self) -> tuple[AttentionPattern, ...]:
        """The attention pattern of each layer."""
        return tuple(layer.pattern for layer in self.layers)

    @property
    def n_annex(self) -> int:
        """Slots of the largest annex of any layer; 0 where none has one."""
        return max(pattern.annex for pattern in self.patterns)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer; None where it is full."""
        return tuple(layer.pattern.window for layer in self.layers)

    @property
    def window(self) -> int | None:
        """The largest window of any windowed layer; None where no layer has one."""
        return max((w for w in self.windows if w is not None), default=None)

    @property
    def reach(self) -> int | None:
        """How many positions back the whole stack can carry information; None for all."""
        return reach(self.patterns)

    def with_window(
        self,
        window: int | Literal["full"] | None = None,
        pins: int = 0,
        *,
        pin_by: Literal["first", "flag"] = "first",
    ) -> ModelConfig:
        """This model with a forced window and pins.

        Args:
            window: None keeps the checkpoint's own; an integer limits every layer to at most that many keys (a layer
                whose own window is smaller keeps it); "full" lifts every window.
            pins: the first n positions stay visible in every windowed layer.
            pin_by: "flag" pins up to n positions that carry a flag instead, wherever they are.

        Raises:
            WindowError: a window below 1.
            PinsError: more pins than a window has keys, or pins where no layer has a window.
        """
        if window is None and not pins:
            return self
        if isinstance(window, int) and window < 1:
            raise WindowError(f"a window of {window} sees nothing: use 1 or more keys, or 'full'")
        layers = []
        for layer in self.layers:
            own = layer.pattern.window
            size = own if window is None else None if window == "full" else min(window, own or window)
            kept = pins if size is not None else 0
            annex = layer.pattern.annex if size is not None else 0
            pattern = replace(
                layer.pattern,
                window=size,
                pins=kept,
                pin_by=pin_by if kept else "first",
                annex=annex,
                global_tokens=layer.pattern.global_tokens and not layer.pattern.holds_global,
                global_reach=None,
                pin_reach=None,
            )
            layers.append(replace(layer, pattern=pattern))
        if pins and all(layer.pattern.window is None for layer in layers):
            raise PinsError("pins hold tokens back from sliding out, and this model has no window: add --window N")
        changed = tuple(layer.pattern.window for layer in layers) != self.windows
        forced = window if changed else self.forced_window
        kept_hierarchy = self.hierarchy if any(layer.pattern.annex for layer in layers) else None
        trained = (self.trained_windows or self.windows) if forced is not None else self.trained_windows
        return replace(
            self, layers=tuple(layers), forced_window=forced, trained_windows=trained, hierarchy=kept_hierarchy
        )  # fmt: skip

    def with_global(self, n_tokens: int) -> ModelConfig:
        """This model with room for `n_tokens` flagged tokens, global ones and pins together, in every windowed layer.

        What a global query sees beyond window and pins it sees at the true distance, so no farther back than the
        model was trained on, where that is known. See `AttentionPattern.holds_global`.

        Raises:
            PinsError: more flagged tokens than a window has keys, none, or no layer has a window.
            ConfigError: a layer with an annex.
        """
        if n_tokens < 1:
            raise PinsError(f"global tokens take 1 slot or more; got {n_tokens}")
        if self.window is None:
            raise PinsError("global tokens see what slid out, and this model has no window: add --window N")

        def seeing(pattern: AttentionPattern) -> AttentionPattern:
            reach_back = pattern.reach_back
            if reach_back is None:
                return pattern
            far = max(self.context, reach_back + 1) if self.context else None
            return replace(pattern, pins=n_tokens, pin_by="flag", global_tokens=True, global_reach=far)

        layers = tuple(replace(layer, pattern=seeing(layer.pattern)) for layer in self.layers)
        return replace(self, layers=layers)

    def with_hierarchy(self, hierarchy: Hierarchy | None) -> ModelConfig:
        """This model with summaries of what left its windows (`sash.network.summaries`); None takes them away.

        Every windowed layer has them but the first of the model: there, keys say which token it is and nothing of what
        it means, and a mean of them draws attention that none of its tokens would get. Where some of them were trained
        to see all, and their window is forced, only those have them.

        Raises:
            ConfigError: no windowed layer besides the first, or a window smaller than a block.
        """
        if hierarchy is None:
            return replace(self.with_annex(0), hierarchy=None)
        layers = [index for index, pattern in enumerate(self.patterns) if pattern.window and pattern.causal and index]
        if not layers:
            raise ConfigError("summaries are of what left a window, and these layers have none: add --window N")
        trained = self.trained_windows or self.windows
        layers = [index for index in layers if trained[index] is None] or layers
        if all(trained[index] == self.windows[index] for index in layers):
            logger.warning("summaries: these layers were trained to see their window only, and may do worse with more")
        patterns = [self.patterns[index] for index in layers]
        smallest = min((pattern.reach_back or 0) + 1 for pattern in patterns)
        if smallest < hierarchy.block:
            raise ConfigError(f"blocks of {hierarchy.block} tokens do not fit a window of {smallest}: use smaller ones")
        if any(pattern.dilation > 1 for pattern in patterns):
            raise ConfigError("summaries are of windows without dilation")
        if self.hierarchy is None and self.n_annex:
            raise ConfigError("the annex is taken already: summaries and recall cannot be together")
        return replace(self.with_annex(0).with_annex(hierarchy.n_slots, layers), hierarchy=hierarchy)

    def with_annex(self, n_slots: int, layers: Collection[int] | None = None) -> ModelConfig:
        """This model with `n_slots` slots for what is brought back from outside of the window.

        Args:
            n_slots: of each of these layers; 0 takes them away.
            layers: counted from 0; every windowed layer by default.

        Raises:
            ConfigError: a negative number of slots, or a layer that has no causal window.
        """
        windowed = [index for index, pattern in enumerate(self.patterns) if pattern.window and pattern.causal]
        chosen = set(windowed if layers is None else layers)
        return replace(
            self,
            layers=tuple(
                replace(layer, pattern=replace(layer.pattern, annex=n_slots)) if index in chosen else layer
                for index, layer in enumerate(self.layers)
            ),
        )
