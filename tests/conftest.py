"""Small models and a byte tokenizer that tests share."""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from sash.attention.pattern import AttentionPattern
from sash.network.config import LayerConfig, ModelConfig, MoEConfig
from sash.network.decoder import Decoder
from sash.text.tokenizer import Tokenizer

# Who starts the tests in the background may have Ctrl-C ignored, and all processes that they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("sash", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sash")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run side by side on few cores."""
    torch.set_num_threads(1)


def small_config(patterns: list[AttentionPattern], *, moe: MoEConfig | None = None, **changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "architecture": "small",
        "vocab_size": 61,
        "dim": 32,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "hidden_dim": 40,
        "layers": tuple(LayerConfig(pattern=pattern, moe=moe) for pattern in patterns),
    }
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


def small_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights large enough that attention is far from uniform, so that a wrong mask shows."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
        parameter.requires_grad_(False)
    return decoder


class ByteTokenizer(Tokenizer):
    """Bytes as ids 3..258, with a beginning (1) and an end (2); a chat of lines."""

    def __init__(self) -> None:
        self.vocab_size = 259
        self.bos_id = 1
        self.eos_ids = frozenset({2})
        self.mask_id = None
        self.control_ids = frozenset({0, 1, 2})
        self.kind = "bytes"

    @property
    def has_chat(self) -> bool:
        return True

    def _encode_text(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([token_id - 3]) if 3 <= token_id < 259 else f"<{token_id}>".encode()

    def encode_chat(self, messages, *, continue_final=False, safe_prompt=False):  # type: ignore[no-untyped-def]
        ids = [1]
        for message in messages:
            ids += [*self._encode_text(message["role"][0] + ":" + message["content"]), 2]
        return ids[:-1] if continue_final else [*ids, *self._encode_text("a:")]


@pytest.fixture
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
