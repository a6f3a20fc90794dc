"""A Mixtral-shaped model against a dense one with the same active parameters, 512 tokens, in turn.

Both have the same attention; the dense feed-forward network is as wide as the two experts that a token is sent to.
Target: the mixture takes 1.3 times as long at most. Last line JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch
from machine import describe_machine

from sash.network.batch import Batch
from sash.network.config import LayerConfig, ModelConfig, MoEConfig
from sash.network.decoder import Decoder
from sash.network.shapes import n_active_parameters, n_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()

    torch.manual_seed(0)
    mixture = ModelConfig(
        architecture="mixtral",
        vocab_size=32_000,
        dim=1024,
        n_heads=8,
        n_kv_heads=2,
        head_dim=128,
        hidden_dim=3584,
        layers=(LayerConfig(moe=MoEConfig(n_experts=8, top_k=2)),) * 4,
    )
    dense = replace(mixture, architecture="mistral", hidden_dim=2 * 3584, layers=(LayerConfig(),) * 4)
    dtype = getattr(torch, options.dtype)
    decoders = {name: Decoder(config).to(dtype).eval() for name, config in (("mixture", mixture), ("dense", dense))}
    batch = Batch.pack([torch.randint(0, 32_000, (options.tokens,))])

    seconds: dict[str, list[float]] = {name: [] for name in decoders}
    with torch.inference_mode():
        for decoder in decoders.values():
            decoder(batch)
        for _ in range(options.rounds):
            for name, decoder in decoders.items():
                began = time.perf_counter()
                decoder(batch)
                seconds[name].append(time.perf_counter() - began)
    pairs = [a / b for a, b in zip(seconds["mixture"], seconds["dense"], strict=True)]
    counts = torch.stack([moe.expert_tokens_E for moe in decoders["mixture"].mixtures().values()])
    result = {
        "benchmark": "mixture",
        "tokens": options.tokens,
        "dtype": options.dtype,
        "parameters": n_parameters(mixture),
        "active_parameters": n_active_parameters(mixture),
        "dense_parameters": n_parameters(dense),
        "mixture_seconds": statistics.median(seconds["mixture"]),
        "dense_seconds": statistics.median(seconds["dense"]),
        "ratio": statistics.median(pairs),
        "ratio_min_max": [min(pairs), max(pairs)],
        "busiest_expert_share": float((counts / counts.sum(1, keepdim=True)).max()),
        **describe_machine(),
    }
    print(f"mixture {result['mixture_seconds'] * 1e3:.1f} ms, dense {result['dense_seconds'] * 1e3:.1f} ms, ", end="")
    print(f"ratio {result['ratio']:.3f} ({min(pairs):.3f} to {max(pairs):.3f})")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
