"""The packed parts that a native network is made of, from the weights of an eager one, as bfloat16."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sash.kernels import layout
from sash.kernels.packed import PackedWeight
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder
from sash.quantize import interleave_tiles


def packed(weight_NK: torch.Tensor) -> PackedWeight:
    return PackedWeight("bf16", *weight_NK.shape, layout.pack_bf16(weight_NK))


def parts_of_state(state: Mapping[str, torch.Tensor]) -> dict[str, PackedWeight | torch.Tensor]:
    """The parts of a `Decoder`'s weights by name."""
    parts: dict[str, PackedWeight | torch.Tensor] = {}
    for name, value in state.items():
        whole, _, last = name.removesuffix(".weight").rpartition(".")
        if last == "wq":
            parts[f"{whole}.wqkv"] = packed(torch.cat([state[f"{whole}.w{part}.weight"] for part in "qkv"]))
            if f"{whole}.wq.bias" in state:
                parts[f"{whole}.wqkv.bias"] = torch.cat([state[f"{whole}.w{part}.bias"] for part in "qkv"])
        elif last == "w1":
            parts[f"{whole}.w13"] = interleave_tiles(packed(value), packed(state[f"{whole}.w3.weight"]))
        elif last in ("wo", "w2", "tok_embeddings", "output"):
            parts[name.removesuffix(".weight")] = packed(value)
        elif last.endswith("norm") or last == "gate":
            parts[name] = value
    return parts


def random_native(config: ModelConfig, seed: int) -> FusedDecoder:
    """A native decoder of random weights, whose norms are near 1."""
    torch.manual_seed(seed)
    state = {name: torch.randn_like(value) * 0.2 for name, value in Decoder(config).state_dict().items()}
    near_one = {name: value + 1 if name.endswith("norm.weight") else value for name, value in state.items()}
    return FusedDecoder(config, parts_of_state(near_one))
