"""Models of a given shape with random weights, for measurements that need no meaning."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from torch import Tensor

from sash.attention import dispatch
from sash.checkpoint.load import load_weights
from sash.checkpoint.packed_parts import plan_parts
from sash.checkpoint.source import Checkpoint
from sash.errors import SashError, TokenizerError
from sash.families import Description
from sash.kernels.packed import Kind, PackedForm, PackedWeight
from sash.lm import LM
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.packed import network_of
from sash.network.parts import Part, Wanted
from sash.network.shapes import parameter_shapes
from sash.text.tokenizer import Tokenizer

SPREAD = 0.02
"""Standard deviation of the weights, as new models have it."""

PERIOD = 2**22
"""Drawing billions of normal numbers takes minutes: so many are drawn, and repeated."""


class RandomCheckpoint(Checkpoint):
    """Tensors of a network that no file holds, under our own names, bfloat16; made when they are read."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(kind="mistral", path=Path("random"), config={}, files=(), tensors={})
        self._shapes = parameter_shapes(config)
        generator = torch.Generator().manual_seed(0)
        self._drawn = (torch.randn(PERIOD, generator=generator) * SPREAD).bfloat16()

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def dtype_name(self, name: str) -> str:
        """Always "BF16"."""
        return "BF16"

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor, the same at each call; norms are ones."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype or torch.bfloat16)
        return _repeated(self._drawn, zlib.crc32(name.encode()), shape, dtype or torch.bfloat16)


def random_part(part: Part, form: PackedForm | None) -> PackedWeight | Tensor:
    """A part of a decoder with random values of about the usual size, packed or plain. No model could be rounded to it.

    Args:
        part: its shape.
        form: how it is packed; None where it is not: ones, then.
    """
    if form is None:
        return torch.ones(part.shape)
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape) in form.tensors().items():
        if name == "data" and form.kind == "bf16":
            drawn = (torch.randn(PERIOD) * SPREAD).bfloat16()
            tensors[name] = _repeated(drawn, 0, shape, dtype)
        elif name == "data":
            low, high = (0, 256) if dtype == torch.uint8 else (-127, 128)
            tensors[name] = _repeated(torch.randint(low, high, (PERIOD,), dtype=dtype), 0, shape, dtype)
        else:
            tensors[name] = torch.full(shape, _FILL[name, form.kind], dtype=dtype)
    return PackedWeight(form.kind, form.n, form.k, group=form.group, rotation=form.rotation, **tensors)


_FILL: dict[tuple[str, Kind], float] = {
    ("scale", "int8"): SPREAD / 73,
    ("scale", "int4"): SPREAD / 4.6,
    ("scale", "int4m"): SPREAD / (4.6 * 8),
    ("multiplier", "int4m"): 8,
}
"""What turns integers that are equally likely into values of the usual spread."""


def _repeated(drawn: Tensor, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor filled with what was drawn, again and again, from some place on."""
    tensor = torch.empty(shape, dtype=dtype)
    rest, start = tensor.view(-1), start % len(drawn)
    while len(rest):
        part = drawn[start:][: len(rest)]
        rest[: len(part)] = part
        rest, start = rest[len(part) :], 0
    return tensor


class NoTokenizer(Tokenizer):
    """Stands where a model knows ids only."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.bos_id = None
        self.eos_ids = frozenset()
        self.mask_id = None
        self.control_ids = frozenset()
        self.kind = "none"

    def _encode_text(self, text: str) -> list[int]:
        raise TokenizerError("a model of random weights has no tokenizer: give it token ids")

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """The id, spelled."""
        return f"<{token_id}>".encode()


def random_model(
    config: ModelConfig,
    *,
    name: str,
    weights: Wanted = "auto",
    dtype: str = "bfloat16",
    chunk: int = 512,
    kv: str = "auto",
) -> LM:
    """A model of random weights.

    Args:
        config: its shape.
        name: what it is called.
        weights: what they are packed as: "bf16", "int8" or "int4"; "auto" leaves them as `dtype`, unpacked.
        dtype: what to compute in.
        chunk: tokens of a prompt that are read at once.
        kv: what keys and values are kept as, see `sash.load`.

    Raises:
        SashError: as `plan_parts` and `load_weights` do.
    """
    precision = getattr(torch, dtype)
    checkpoint = RandomCheckpoint(config)
    description = Description(config=config, weights={name: name for name in checkpoint.names()})
    if weights != "auto":
        plans = plan_parts(checkpoint, description, weights)
        parts = {plan.name: random_part(plan.part, plan.form) for plan in plans}
        return LM(network_of(config, parts, precision), NoTokenizer(config.vocab_size), name=name, chunk=chunk, kv=kv)
    place = torch.device("cpu")
    backend = dispatch.resolve("auto", place, precision)
    decoder = load_weights(lambda: Decoder(config, backend), description, checkpoint, precision, place)
    if not isinstance(decoder, Decoder):
        raise SashError("a decoder was wanted")
    return LM(decoder, NoTokenizer(config.vocab_size), name=name, chunk=chunk, kv=kv)
