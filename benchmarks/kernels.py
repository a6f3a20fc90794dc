"""The native kernels one by one: matrix products, products with one row, attention; against torch and the machine.

    python benchmarks/kernels.py [--threads 2] [--rounds 7] [--only products,rows,prompt,ring] [--quick]

In each round all contestants take their turn, and a ratio is taken within a round: this shared machine drifts. Weights
and inputs are random. Limits are measured in the same run: bytes that all threads read a second, and multiplications
and additions that the matrix units do a second on registers alone. Last line JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe_machine

from sash.attention.pattern import AttentionPattern
from sash.errors import SashError
from sash.evaluation.limits import Limits, measure_limits
from sash.evaluation.random_weights import random_model, random_part
from sash.kernels import native
from sash.kernels.packed import INT4, Kind, PackedForm, PackedWeight
from sash.lm import LM
from sash.network.batch import Batch
from sash.network.config import LayerConfig, ModelConfig
from sash.network.parts import Part

Run = Callable[[], Any]
WEIGHTS: tuple[Kind, ...] = ("bf16", "int8", "int4", "int4m")
GROUP = 64


@dataclass(slots=True)
class Contest:
    """Contestants that do the same work.

    Attributes:
        title: what it is.
        unit: of the speeds.
        amount: what a contestant does in one run, in a trillionth or thousand-millionth of the unit.
        limit: of the machine, in the unit.
        pairs: whose ratios are told.
        around: a contestant that does only what surrounds the work of the others of Sash; its time is taken off theirs.
        seconds: of each contestant, a list over the rounds.
    """

    title: str
    unit: str
    amount: dict[str, float]
    limit: dict[str, float]
    pairs: list[tuple[str, str]] = field(default_factory=list)
    around: str | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, contestants: dict[str, Run], rounds: int) -> Contest:
        """All rounds; every other one goes the other way round."""
        scale = {"TFLOP/s": 1e12, "GB/s": 1e9}[self.unit]
        with torch.inference_mode():
            for run in contestants.values():
                run()
            for index in range(rounds):
                for name in list(contestants)[:: 1 if index % 2 == 0 else -1]:
                    began = time.perf_counter()
                    contestants[name]()
                    self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        if self.around is not None:
            extra = self.seconds.pop(self.around)
            for name in [name for name in self.seconds if name.startswith("sash")]:
                self.seconds[name] = [whole - off for whole, off in zip(self.seconds[name], extra, strict=True)]
            self.title += f" (less {statistics.median(extra) * 1e3:.1f} ms for what surrounds it)"
        self.amount = {name: amount / scale for name, amount in self.amount.items()}
        self.limit = {name: limit / scale for name, limit in self.limit.items()}
        self.pairs = [pair for pair in self.pairs if set(pair) <= set(self.seconds)]
        return self

    def speed(self, name: str) -> float:
        """Of the median round."""
        return self.amount[name] / statistics.median(self.seconds[name])

    def ratios(self) -> dict[str, list[float]]:
        """How many times faster the first of each pair is, in each round."""
        return {
            f"{a} / {b}": [y / x for x, y in zip(self.seconds[a], self.seconds[b], strict=True)] for a, b in self.pairs
        }

    def print(self) -> None:
        """A table and its ratios."""
        print(f"\n{self.title}\n\n| | ms | {self.unit} | of the limit |\n|---|---|---|---|")
        for name, seconds in self.seconds.items():
            of_limit = f"{self.speed(name) / self.limit[name]:.0%}" if name in self.limit else ""
            print(f"| {name} | {statistics.median(seconds) * 1e3:.2f} | {self.speed(name):.2f} | {of_limit} |")
        for pair, ratios in self.ratios().items():
            print(f"\n{pair}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title,
            "unit": self.unit,
            "seconds": self.seconds,
            "speed": {name: self.speed(name) for name in self.seconds},
            "limit": self.limit,
            "ratios": {pair: statistics.median(ratios) for pair, ratios in self.ratios().items()},
        }


def random_weight(kind: Kind, n: int, k: int) -> PackedWeight:
    """A packed weight of random values."""
    group = GROUP if kind in INT4 else 0
    form = PackedForm(kind=kind, n=n, k=k, group=group, rotation=256 if kind in ("int8", "int4m") else 1)
    weight = random_part(Part(sources=("random",), rows=(n,), k=k, join="rows"), form)
    assert isinstance(weight, PackedWeight)
    return weight


def products(limits: Limits, rounds: int, quick: bool) -> list[Contest]:
    """512 rows through a weight of 4,096 x 4,096, activations prepared (rotated, rounded) within the time."""
    t, k, n = (64, 512, 512) if quick else (512, 4096, 4096)
    x = torch.randn(t, k)
    contestants: dict[str, Run] = {}
    for kind in WEIGHTS:
        linear = native.Linear(random_weight(kind, n, k))
        contestants[f"sash {kind}"] = lambda linear=linear: linear(x)
    contestants |= torch_products(x, n)
    flops = 2.0 * t * k * n
    contest = Contest(
        f"matrix product, {t} x {k} x {n}",
        "TFLOP/s",
        amount=dict.fromkeys(contestants, flops),
        limit={name: limits.matrix["bf16" if "bf16" in name else "int8"] for name in contestants},
        pairs=[
            ("sash bf16", "torch bf16"),
            ("sash bf16", "oneDNN bf16, packed"),
            ("sash int8", "torch int8"),
            ("sash int8", "oneDNN int8, packed"),
            ("sash int4", "oneDNN int8, packed"),
            ("sash int4m", "oneDNN int8, packed"),
        ],
    )
    return [contest.run(contestants, rounds)]


def torch_products(x: torch.Tensor, n: int) -> dict[str, Run]:
    """The ways of torch: weights as they are, and packed by oneDNN; its int8 activations are rounded beforehand."""
    t, k = x.shape
    x16, w16 = x.bfloat16(), torch.randn(n, k).bfloat16()
    x8 = torch.randint(-127, 128, (t, k), dtype=torch.int8)
    w8 = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    found: dict[str, Run] = {
        "torch bf16": lambda: F.linear(x16, w16),
        "torch int8": lambda: torch._int_mm(x8, w8.t()),
    }
    if torch.backends.mkldnn.is_available():
        packed16 = torch.ops.mkldnn._reorder_linear_weight(w16, t)
        packed8, scale = torch.ops.onednn.qlinear_prepack(w8, [t, k]), torch.ones(n)
        zero, u8 = torch.zeros(n, dtype=torch.int64), torch.randint(0, 256, (t, k), dtype=torch.uint8)
        found["oneDNN bf16, packed"] = lambda: torch.ops.mkldnn._linear_pointwise(x16, packed16, None, "none", [], "")
        found["oneDNN int8, packed"] = lambda: torch.ops.onednn.qlinear_pointwise(
            u8, 0.1, 0, packed8, scale, zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
    return found


def rows(limits: Limits, rounds: int, quick: bool) -> list[Contest]:
    """One row, and eight, through weights too large for any cache."""
    k, n = (512, 4096) if quick else (4096, 65_536)
    weights = {kind: random_weight(kind, n, k) for kind in WEIGHTS}
    linears = {kind: native.Linear(weight) for kind, weight in weights.items()}
    plain = torch.randn(n, k, dtype=torch.bfloat16)
    found = []
    for t in (1, 8):
        x = torch.randn(t, k)
        x16 = x.bfloat16()
        contestants: dict[str, Run] = {
            f"sash {kind}": lambda linear=linear, x=x: linear(x) for kind, linear in linears.items()
        }
        contestants["torch bf16"] = lambda x16=x16: F.linear(x16, plain)
        nbytes = {f"sash {kind}": float(weight.nbytes) for kind, weight in weights.items()}
        contest = Contest(
            f"{t} row{'s' * (t > 1)} through {n} x {k}",
            "GB/s",
            amount=nbytes | {"torch bf16": float(plain.nbytes)},
            limit=dict.fromkeys(contestants, limits.memory_read),
            pairs=[(f"sash {kind}", "torch bf16") for kind in WEIGHTS],
        )
        found.append(contest.run(contestants, rounds))
    return found


def attention_alone(window: int | None, n_layers: int) -> LM:
    """A network that is attention and little else: 32/8 heads of 128, as Mistral 7B has, on a stream of 32 numbers."""
    config = ModelConfig(
        architecture="attention alone",
        vocab_size=16,
        dim=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        hidden_dim=32,
        layers=(LayerConfig(pattern=AttentionPattern(window=window)),) * n_layers,
    )
    return random_model(config, name="attention alone", weights="bf16")


def prompt(limits: Limits, rounds: int, quick: bool) -> list[Contest]:
    """A long prompt at once: the same kernel with a window and without, and torch's flash kernel, which has none.

    What surrounds attention in a layer is measured with a window of one key, and taken off.
    """
    n, window = (1024, 256) if quick else (16_384, 4096)
    batch = Batch.pack([torch.zeros(n, dtype=torch.int64)])
    q, k, v = (torch.randn(1, heads, n, 128, dtype=torch.bfloat16) for heads in (32, 8, 8))
    windowed, full, around = f"sash, W = {window}", "sash, full", "sash, W = 1"
    contestants: dict[str, Run] = {
        name: lambda decoder=attention_alone(size, 1).decoder: decoder(batch)  # noqa: B008
        for name, size in ((windowed, window), (full, None), (around, 1))
    }
    contestants["torch flash, causal"] = lambda: F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    flops = {name: float(AttentionPattern().flops(n, 32, 128)) for name in contestants}
    flops[windowed] = float(AttentionPattern(window=window).flops(n, 32, 128))
    contest = Contest(
        f"attention of {n} tokens, 32/8 heads of 128; the window saves {flops[full] / flops[windowed]:.2f}x at most",
        "TFLOP/s",
        amount=flops,
        limit=dict.fromkeys(contestants, limits.matrix["bf16"]),
        pairs=[(windowed, full), (windowed, "torch flash, causal"), (full, "torch flash, causal")],
        around=around,
    )
    return [contest.run(contestants, rounds)]


def ring(limits: Limits, rounds: int, quick: bool) -> list[Contest]:
    """One token at a time over full rings of many layers, larger together than any cache."""
    window, n_layers, steps = (256, 2, 2) if quick else (4096, 32, 4)
    contestants: dict[str, Run] = {}
    nbytes: dict[str, float] = {}
    for name, size, kv in (("sash bf16", window, "bf16"), ("sash int8", window, "int8"), ("sash, W = 1", 1, "bf16")):
        lm = attention_alone(size, n_layers)
        cache = lm.cache(1, kv)
        row = cache.allocate()
        for start in range(0, size, 512):
            lm.decoder(Batch.pack([torch.zeros(min(512, size), dtype=torch.int64)], [start], [row]), cache)
        contestants[name] = lambda decoder=lm.decoder, cache=cache, row=row: [
            decoder(Batch.pack([[0]], [cache.lengths[row]], [row]), cache) for _ in range(steps)
        ]
        nbytes[name] = float(steps * cache.nbytes)
    q = torch.randn(1, 32, 1, 128, dtype=torch.bfloat16)
    held = [torch.randn(2, 1, 8, window, 128, dtype=torch.bfloat16) for _ in range(n_layers)]
    contestants["torch bf16"] = lambda: [
        F.scaled_dot_product_attention(q, k, v, enable_gqa=True) for _ in range(steps) for k, v in held
    ]
    contest = Contest(
        f"attention of one token over full rings of {window}, {n_layers} layers, 32/8 heads of 128",
        "GB/s",
        amount=nbytes | {"torch bf16": nbytes["sash bf16"]},
        limit=dict.fromkeys(contestants, limits.memory_read),
        pairs=[("sash bf16", "torch bf16"), ("sash int8", "sash bf16")],
        around="sash, W = 1",
    )
    return [contest.run(contestants, rounds)]


CONTESTS = {"products": products, "rows": rows, "prompt": prompt, "ring": ring}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(CONTESTS), help="some of " + ", ".join(CONTESTS))
    parser.add_argument("--quick", action="store_true", help="small shapes, two rounds: only to see that it works")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    try:
        native.module()
    except SashError as error:
        raise SystemExit(f"error: {error}") from error
    native.set_threads(options.threads)
    limits = measure_limits(["bf16", "int8"])
    print(f"memory: {limits.memory_read / 1e9:.1f} GB/s; ", end="")
    print(", ".join(f"{kind}: {peak / 1e12:.2f} TFLOP/s" for kind, peak in limits.matrix.items()))
    found: list[Contest] = []
    for name in options.only.split(","):
        found += CONTESTS[name](limits, 2 if options.quick else options.rounds, options.quick)
    for contest in found:
        contest.print()
    print()
    contests = [contest.to_json() for contest in found]
    result = {"benchmark": "kernels", "limits": limits.to_json(), "contests": contests, **describe_machine()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
