"""Small models, on torch and on the native kernels, that sessions are saved of."""

from __future__ import annotations

from sash.attention.pattern import AttentionPattern
from sash.kernels import native
from sash.lm import LM
from sash.network.config import LayerConfig, ModelConfig, RopeConfig
from sash.network.fused import FusedDecoder
from sash.sampling import SamplingParams
from tests.conftest import ByteTokenizer, small_config, small_decoder
from tests.native_parts import random_native

W = 12
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. "
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
PATTERNS = {
    "window": [AttentionPattern(window=W)] * 2,
    "pins": [AttentionPattern(window=W, pins=3)] * 2,
    "interleaved": [AttentionPattern(window=W), AttentionPattern(), AttentionPattern(window=5)],
    "full": [AttentionPattern()] * 2,
}
NATIVE = {"native window": (0, False), "native pins": (3, True)} if native.available() else {}
NAMES = [*PATTERNS, *NATIVE]


def make_lm(name: str = "window", *, seed: int = 3, kv: str = "auto", chunk: int = 16) -> LM:
    """A model of random weights that takes bytes."""
    if name in NATIVE:
        decoder = _fused(*NATIVE[name], seed=seed)
        return LM(decoder, ByteTokenizer(), name=name, chunk=chunk, kv=kv)
    config = small_config(PATTERNS[name], vocab_size=259)
    return LM(small_decoder(config, seed=seed), ByteTokenizer(), name=name, chunk=chunk, kv=kv)


def _fused(pins: int, mixed: bool, seed: int) -> FusedDecoder:
    windowed, full = AttentionPattern(window=W, pins=pins), AttentionPattern()
    layers = tuple(
        LayerConfig(pattern=full if mixed and i == 1 else windowed, rope=RopeConfig(theta=1e6 if i == 1 else 1e4))
        for i in range(3)
    )
    config = ModelConfig(
        architecture="small", vocab_size=259, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96,
        layers=layers, qk_norm=mixed, post_norms=mixed, tied_embeddings=mixed,
    )  # fmt: skip
    return random_native(config, seed)
