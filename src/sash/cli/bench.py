"""`sash bench`: how fast a model reads and writes here, what this machine allows, and what memory it takes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sash.cli import model_options as options
from sash.cli.bench_tables import draw_footprints, draw_limits, draw_speeds
from sash.cli.group import verb_app
from sash.cli.interrupt import Interrupt
from sash.cli.known_model import parse_dtype
from sash.cli.reading_bar import ReadingBar
from sash.cli.sizes import parse_size
from sash.cli.window_words import ablation_note, windows_by_layer
from sash.errors import ModelNotFoundError, UsageError
from sash.explain.budget import binary
from sash.explain.presets import PRESETS
from sash.network.config import ModelConfig
from sash.network.parts import check_weights
from sash.network.sizing import check_kv

if TYPE_CHECKING:
    from sash.evaluation.footprint import Footprint
    from sash.evaluation.speed import Speed
    from sash.lm import LM

INTERRUPTED = 130
RANDOM = "random:"

_mistral = PRESETS["mistral-7b"]
SHAPES: dict[str, ModelConfig] = {
    "1b": replace(
        _mistral, vocab_size=32_768, dim=2048, n_heads=16, n_kv_heads=4, hidden_dim=7168, layers=_mistral.layers[:16]
    ),
    "7b": _mistral,
    "8x7b": PRESETS["mixtral-8x7b"],
}
"""Shapes that can be made up, with random weights."""


class SpeedByDefault(TyperGroup):
    """A group whose first word may be a model: that means `speed`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `speed` in front of arguments that name no command."""
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["speed", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = verb_app(cls=SpeedByDefault)


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Measure speed (`sash bench MODEL`) and memory (`sash bench memory MODEL`) on this machine."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


BenchModel = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's name, folder or GGUF file, or random:1b, :7b, :8x7b.")
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def parse_counts(text: str, option: str) -> tuple[int, ...]:
    """Sizes with commas between them; none at all for an empty text.

    >>> parse_counts("0,32K", "-d"), parse_counts("", "-p")
    ((0, 32768), ())
    """
    return tuple(parse_size(part, option) for part in text.split(",")) if text.strip() else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that is ready, and what it took.

    Attributes:
        lm: the model.
        weights: bytes of its weights by what they are kept as.
        seconds: from its name to being ready.
        resident: bytes of this process in memory afterwards; None where the system does not say.
    """

    lm: LM
    weights: dict[str, int]
    seconds: float
    resident: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.lm.name,
            "random_weights": self.lm.name.startswith(RANDOM),
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "weights_bytes": self.weights,
            "kv_dtype": self.lm.kv_dtype,
            "windows": list(self.lm.config.windows),
            "load_seconds": self.seconds,
            "resident_bytes": self.resident,
        }

    def title(self) -> str:
        """A line for people."""
        held = "" if self.resident is None else f", {binary(self.resident)} resident"
        weights = " + ".join(f"{kind} {binary(size)}" for kind, size in self.weights.items())
        words = [f"weights {weights}", f"KV {self.lm.kv_dtype}", f"window {windows_by_layer(self.lm.config)}"]
        return f"{self.lm.name}: {', '.join(words)}; ready in {self.seconds:.1f} s{held}"


def load(model: str, *, threads: int | None, **settings: Any) -> Loaded:
    """Load a model, or make one up where the name begins with `random:`. Imports torch.

    Args:
        model: its name.
        threads, settings: what `model_options.load_lm` takes.

    Raises:
        SashError: as `model_options.load_lm` does.
    """
    if model.startswith(RANDOM) and model.removeprefix(RANDOM) not in SHAPES:
        raise ModelNotFoundError(f"{model!r} is no shape: use {', '.join(RANDOM + name for name in SHAPES)}")
    from sash.evaluation.footprint import resident_memory
    from sash.evaluation.roofline import stored

    began = time.perf_counter()
    if model.startswith(RANDOM):
        lm = _make_up(model, threads=threads, **settings)
    else:
        lm = options.load_lm(model, threads=threads, **settings)
    seconds = time.perf_counter() - began
    return Loaded(lm=lm, weights=stored(lm.decoder), seconds=seconds, resident=resident_memory())


def _make_up(
    model: str,
    *,
    window: str | None,
    pins: str,
    chunk: str,
    dtype: str | None,
    device: str,
    weights: str,
    kv: str,
    threads: int | None,
) -> LM:
    size, n_pins = options.parse_view(window, pins)
    n_chunk = parse_size(chunk, "--chunk")
    precision = parse_dtype(dtype, "bfloat16")
    kept = check_weights(weights, "--weights")
    if device != "cpu":
        raise UsageError(f"random weights are made on the CPU, not on {device}: leave --device out")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads counts CPU threads, so it is 1 or more; got {threads}")
    check_kv(kv, "--kv")
    import torch

    from sash.evaluation.random_weights import random_model
    from sash.kernels import native

    if threads is not None:
        torch.set_num_threads(threads)
        native.set_threads(threads)
    config = SHAPES[model.removeprefix(RANDOM)].with_window(size, n_pins)
    return random_model(config, name=model, weights=kept, dtype=precision, chunk=n_chunk, kv=kv)


@app.command(name="speed")
def speed_command(
    model: BenchModel,
    prompts: Annotated[
        str, typer.Option("-p", "--prompts", metavar="N,...", help="Lengths of prompts to read; '' for none.")
    ] = "512",
    n_write: Annotated[
        str, typer.Option("-n", "--write", metavar="N", help="Tokens that each stream writes; 0 for none.")
    ] = "64",
    depths: Annotated[
        str, typer.Option("-d", "--depths", metavar="N,...", help="Tokens that a stream has read before it writes.")
    ] = "0",
    batches: Annotated[str, typer.Option("-b", "--batches", metavar="N,...", help="Streams that write at once.")] = "1",
    rounds: Annotated[int, typer.Option("-r", "--rounds", help="How often each is measured; the median is shown.")] = 3,
    window: options.Window = None,
    pins: options.Pins = "0",
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    threads: options.Threads = None,
    as_json: Json = False,
) -> int:
    """Measure how fast a model reads and writes, beside the limit of this machine.

    The limits are measured in the same run: how many bytes a second all threads read from memory, and how many
    multiplications and additions a second they reach in a matrix product. Reading and writing are then held against
    what the weights, the visible keys and values, and the arithmetic take at least. Prompts are random tokens. Ctrl-C
    ends it and prints what there is; the exit code is then 130.
    """
    counts = (prompts, "-p"), (depths, "-d"), (batches, "-b")
    lengths, before, streams = (parse_counts(text, option) for text, option in counts)
    from sash.evaluation.limits import measure_limits
    from sash.evaluation.roofline import kinds_of
    from sash.evaluation.speed import Bench, Plan

    plan = Plan(prompts=lengths, n_write=parse_size(n_write, "-n"), depths=before, batches=streams, rounds=rounds)
    loaded = load(
        model, window=window, pins=pins, chunk=chunk, dtype=dtype, device=device, weights=weights, kv=kv,
        threads=threads,
    )  # fmt: skip
    lines: list[Speed] = []
    with Interrupt() as interrupt, ReadingBar(plan.n_tokens, None, label="measuring") as bar:
        kinds = kinds_of(loaded.lm.decoder)
        limits = measure_limits(kinds)
        lines += Bench(loaded.lm, cancelled=interrupt, progress=bar.advance).run(plan)
        # Before and after: a limit is what the machine reaches when nothing else disturbs it.
        limits = limits if interrupt.requested else limits.best_of(measure_limits(kinds))
    if as_json:
        data = loaded.to_json() | {"limits": limits.to_json(), "chunk": loaded.lm.chunk, "rounds": rounds}
        data |= {"results": [line.to_json(limits) for line in lines], "interrupted": interrupt.requested}
        typer.echo(json.dumps(data, indent=2))
    else:
        typer.echo("\n".join([loaded.title(), *_notes(loaded.lm), *draw_speeds(lines, limits), *draw_limits(limits)]))
    return _ending(interrupt)


def _notes(lm: LM) -> list[str]:
    note = ablation_note(lm.config)
    random = ["weights are random: the speed is that of the shape, the text means nothing"]
    return (random if lm.name.startswith(RANDOM) else []) + ([note] if note else [])


def _ending(interrupt: Interrupt) -> int:
    if not interrupt.requested:
        return 0
    typer.echo("interrupted: this is what was measured until then", err=True)
    return INTERRUPTED


@app.command(name="memory")
def memory_command(
    model: BenchModel,
    lengths: Annotated[
        str, typer.Option("-p", "--prompts", metavar="N,...", help="Tokens read when memory is looked at.")
    ] = "1K,2K,4K,8K,16K,32K,64K",
    window: options.Window = None,
    pins: options.Pins = "0",
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    device: options.Device = "cpu",
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    threads: options.Threads = None,
    as_json: Json = False,
) -> int:
    """Measure what a model takes in memory after it is loaded, and while it reads on and on."""
    counts = parse_counts(lengths, "-p")
    from sash.evaluation.footprint import footprints

    loaded = load(
        model, window=window, pins=pins, chunk=chunk, dtype=dtype, device=device, weights=weights, kv=kv,
        threads=threads,
    )  # fmt: skip
    found: list[Footprint] = []
    with Interrupt() as interrupt, ReadingBar(max(counts, default=0), None) as bar:
        found += footprints(loaded.lm, counts, cancelled=interrupt, progress=bar.advance)
    if as_json:
        data = loaded.to_json() | {"footprints": [one.to_json() for one in found]}
        typer.echo(json.dumps(data | {"interrupted": interrupt.requested}, indent=2))
    else:
        typer.echo("\n".join([loaded.title(), *_notes(loaded.lm), *draw_footprints(found)]))
    return _ending(interrupt)
