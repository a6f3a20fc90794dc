"""Stream a long text through a windowed model: is memory constant, and are late chunks as fast as early ones?

By default a small Mistral-shaped model of random weights (window 1,024) reads 60,000 random tokens; `--model NAME
--text FILE --window N --pins N` takes a real one. Targets, at 200,000 tokens: cache bytes constant; resident memory
after the first 2W tokens grows by 1% at most; time a chunk, last tenth against second tenth, 1.05 at most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from machine import describe_machine, resident_bytes

from sash.attention.pattern import AttentionPattern
from sash.lm import LM
from sash.loading import load_decoder
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import LayerConfig, ModelConfig
from sash.network.decoder import Decoder


def random_decoder(window: int) -> Decoder:
    """A Mistral of 8 layers and 40M parameters."""
    layers = (LayerConfig(pattern=AttentionPattern(window=window)),) * 8
    config = ModelConfig(
        architecture="mistral",
        vocab_size=4096,
        dim=512,
        n_heads=8,
        n_kv_heads=2,
        head_dim=64,
        hidden_dim=1792,
        layers=layers,
    )
    return Decoder(config).to(torch.bfloat16).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--text", help="UTF-8 file to read, again and again if it is too short")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--pins", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--chunk", type=int, default=512)
    options = parser.parse_args()

    torch.manual_seed(0)
    if options.model:
        lm: LM = load_decoder(options.model, window=options.window, pins=options.pins)
        decoder, vocabulary = lm.decoder, lm.config.vocab_size
        with open(options.text, encoding="utf-8") as file:
            ids = torch.tensor(lm.tokenizer.encode(file.read()))
        ids = ids.repeat(-(-options.tokens // len(ids)))[: options.tokens]
    else:
        decoder = random_decoder(options.window)
        vocabulary = decoder.config.vocab_size
        ids = torch.randint(0, vocabulary, (options.tokens,))

    def read(cache: KVCache, chunk: int) -> float:
        start = chunk * options.chunk
        batch = Batch.pack([ids[start : start + options.chunk]], [start], [0])
        began = time.perf_counter()
        decoder(batch, cache)
        return time.perf_counter() - began

    # The last tenth is timed in turn with the second tenth of a twin: a shared machine drifts within minutes.
    old, twin = (KVCache(decoder.config, 1, decoder.tok_embeddings.weight.dtype) for _ in range(2))
    n_chunks = options.tokens // options.chunk
    tenth = n_chunks // 10
    cache_bytes, resident, seconds, pairs = set(), [], [], []
    with torch.inference_mode():
        for chunk in range(tenth):
            read(twin, chunk)
        for chunk in range(n_chunks):
            last = read(old, chunk)
            seconds.append(last)
            if chunk >= n_chunks - tenth:
                pairs.append((last, read(twin, chunk - (n_chunks - tenth) + tenth)))
            cache_bytes.add(old.nbytes)
            if (chunk + 1) * options.chunk >= 2 * options.window:
                resident.append(resident_bytes())

    last, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    result = {
        "benchmark": "endless",
        "model": options.model or "random 8-layer Mistral",
        "window": options.window,
        "pins": options.pins,
        "tokens": options.tokens,
        "cache_bytes": sorted(cache_bytes),
        "resident_after_2w": resident[0],
        "resident_growth": max(resident) / resident[0] - 1,
        "resident_growth_bytes": max(resident) - resident[0],
        "chunk_seconds_second_tenth": second,
        "chunk_seconds_last_tenth": last,
        "last_against_second": ratio,
        "tokens_per_second": options.chunk / statistics.median(seconds),
        **describe_machine(),
    }
    print(f"cache {sorted(cache_bytes)} bytes; resident grew by {result['resident_growth']:.2%} after 2W tokens")
    print(f"chunk {second * 1e3:.1f} ms in the second tenth, {last * 1e3:.1f} ms in the last: {ratio:.3f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
