"""`sash eval ablate` and `influence`: what a window costs and is worth, and how much passes through it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sash.cli import eval_files
from sash.cli import eval_retrieval as retrieval
from sash.cli import model_options as options
from sash.cli import retrieval_options as asked
from sash.cli.eval_files import Files
from sash.cli.interrupt import Interrupt
from sash.cli.live_text import check_file, read_pieces
from sash.cli.reading_bar import ReadingBar
from sash.cli.retrieval_tables import windows as in_windows
from sash.cli.sizes import parse_size, parse_tokens, parse_window
from sash.cli.window_words import ablation_note, windows_by_layer
from sash.errors import UsageError
from sash.explain.budget import binary
from sash.explain.labels import table

if TYPE_CHECKING:
    from sash.evaluation.ablation import Ablation
    from sash.evaluation.influence import Influence
    from sash.evaluation.positions import Curve
    from sash.lm import LM

Sizes = Annotated[
    str, typer.Option("--windows", metavar="N,...", help="Sizes: numbers, full, and own for the model as it is.")
]

WholeMethods = Annotated[
    str, typer.Option("-m", "--methods", metavar="NAME,...", help="full, window, sinks, overlap, hierarchy, recall.")
]


def influence_command(
    model: options.Model,
    text: asked.Text,
    window: asked.Window = None,
    distances: Annotated[
        str, typer.Option("-d", "--distances", metavar="N,...", help="How far back, in tokens or windows (2w).")
    ] = "0.5w,1w,2w,3w,4w,6w,8w",
    changed: Annotated[int, typer.Option("--changed", metavar="N", help="Tokens that are replaced by others.")] = 8,
    trials: asked.Trials = 10,
    methods: WholeMethods = "full,sinks",
    seed: asked.Seed = 0,
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    csv: eval_files.Csv = None,
    figure: eval_files.Figure = None,
    as_json: asked.Json = False,
) -> int:
    """Change a few tokens at a distance: how far does the prediction after the last token move?

    What moves it beyond a window was passed on by deeper layers. The figure is the Kullback-Leibler divergence of the
    prediction with the change from that without, in thousandths of a nat, over stretches of the text. With --dtype
    float32 small ones are told from rounding.
    """
    how, files = retrieval.settings(chunk, dtype, weights, kv, device, threads), Files.of(csv, figure)
    lm, size = retrieval.open_model(model, window=window, text=text, settings=how)
    from sash.evaluation.influence import influences
    from sash.evaluation.methods import window_of
    from sash.evaluation.positions import readers
    from sash.evaluation.prompts import Source

    ways, at = readers(lm, asked.parse_names(methods), size), window_of(lm, size)
    sizes = asked.parse_lengths(distances, at, "--distances")
    source = Source(lm.tokenizer, "".join(read_pieces(text)))
    found: list[Influence] = []
    with Interrupt() as interrupt, ReadingBar(len(ways) * trials * len(sizes) * (max(sizes) + changed), None) as bar:
        found += influences(
            ways, source, sizes, n_trials=trials, n_changed=changed, seed=seed, cancelled=interrupt,
            progress=bar.advance,
        )  # fmt: skip
    if as_json:
        data: dict[str, Any] = {"model": model, "window": at, "dtype": str(lm.dtype).removeprefix("torch.")}
        data |= {"results": [one.to_json(at) for one in found], "interrupted": interrupt.requested}
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif found:
        note = None if size is None else ablation_note(lm.with_window(size).config)
        typer.echo("\n".join([*_draw_influences(found, at), *([] if note is None else [note])]))

    def draw(path: Path) -> None:
        from sash.evaluation.figures import draw_influences

        draw_influences(found, at, f"{model}, window {at:,}: what a change at a distance moves", path)

    files.write([one.to_json(at) for one in found], draw)
    return retrieval.ending(interrupt.requested)


def _draw_influences(found: list[Influence], window: int) -> list[str]:
    rows = [["method", "distance", "", "median, mnat", "mean", "largest", "moved"]]
    for one in found:
        figures = [_thousandths(nats) for nats in (one.median, one.mean, one.largest)]
        rows.append(
            [one.method, f"{one.distance:,}", in_windows(one.distance, window), *figures, f"{one.reached}/{one.of}"]
        )
    return table(rows, right=[False, *[True] * 6])


def _thousandths(nats: float) -> str:
    """Thousandths of a nat; 0 where nothing moved at all.

    >>> _thousandths(0.0), _thousandths(0.0123), _thousandths(1e-9)
    ('0', '12.3', '1e-06')
    """
    return "0" if nats == 0 else f"{1000 * nats:.3g}"


def positions_command(
    model: options.Model,
    text: asked.Text,
    window: asked.Window = None,
    methods: WholeMethods = "window,sinks",
    max_tokens: Annotated[
        str | None, typer.Option("-n", "--max-tokens", metavar="N", help="Read the first N tokens only.")
    ] = None,
    stretches: Annotated[
        int, typer.Option("--stretches", metavar="N", help="Parts of the text that are told apart.")
    ] = 8,
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    csv: eval_files.Csv = None,
    figure: eval_files.Figure = None,
    as_json: asked.Json = False,
) -> int:
    """Measure how well a text is predicted early and late in it, by several ways to read.

    Ctrl-C ends it and shows the ways that are done; the exit code is then 130.
    """
    most = None if max_tokens is None else parse_tokens(max_tokens)
    how, files = retrieval.settings(chunk, dtype, weights, kv, device, threads), Files.of(csv, figure)
    lm, size = retrieval.open_model(model, window=window, text=text, settings=how)
    from sash.evaluation.methods import window_of
    from sash.evaluation.positions import curves, readers

    ways, at = readers(lm, asked.parse_names(methods), size), window_of(lm, size)
    ids = lm.tokenizer.encode("".join(read_pieces(text)))[:most]
    found: list[Curve] = []
    with Interrupt() as interrupt, ReadingBar(len(ways) * len(ids), None) as bar:
        found += curves(ways, ids, n_stretches=stretches, cancelled=interrupt, progress=bar.advance)
    if as_json:
        data: dict[str, Any] = {"model": model, "window": at, "tokens": len(ids)}
        data |= {"results": [one.to_json() for one in found], "interrupted": interrupt.requested}
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif found:
        rows = [["method", *(f"from {start:,}" for start in found[0].starts), "all"]]
        for one in found:
            rows.append(
                [one.method, *(f"{math.exp(min(nll, 700)):,.2f}" for nll in one.nlls), f"{one.perplexity:,.2f}"]
            )
        lines = [f"perplexity by position, window {at:,}, {len(ids):,} tokens"]
        typer.echo("\n".join([*lines, *table(rows, right=[False, *[True] * (len(rows[0]) - 1)])]))

    def draw(path: Path) -> None:
        from sash.evaluation.figures import draw_curves

        draw_curves(found, at, f"{model}, window {at:,}", path)

    files.write([line for one in found for line in one.lines()], draw)
    return retrieval.ending(interrupt.requested)


def parse_windows(text: str) -> list[Any]:
    """Windows of an ablation.

    Raises:
        UsageError: none, or one that is no size.

    >>> parse_windows("128,full,own")
    [128, 'full', None]
    """
    names = list(dict.fromkeys(asked.parse_names(text)))
    if not names:
        raise UsageError("--windows takes sizes such as 128,256,full or own (the model as it is); got none")
    return [None if name == "own" else parse_window(name, "--windows") for name in names]


def ablate_command(
    model: options.Model,
    text: asked.Text,
    windows: Sizes = "128,256,512,full",
    pins: Annotated[
        str, typer.Option("--pins", metavar="N", help="First tokens that stay, where one is forced.")
    ] = "4",
    max_tokens: Annotated[
        str, typer.Option("-n", "--max-tokens", metavar="N", help="Predict the first N tokens of the text.")
    ] = "4096",
    length: Annotated[
        str, typer.Option("-l", "--length", metavar="N", help="Tokens of a prompt that hides a passkey.")
    ] = "1024",
    depths: asked.Depths = "0,50,100",
    trials: asked.Trials = 4,
    seed: asked.Seed = 0,
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    csv: eval_files.Csv = None,
    figure: eval_files.Figure = None,
    as_json: asked.Json = False,
) -> int:
    """Compare windows: how well and how fast a text is read, what is held, and which passkeys are still known.

    Ctrl-C ends it and shows the windows that are done; the exit code is then 130.
    """
    sizes, n_pins, most = parse_windows(windows), parse_size(pins, "--pins"), parse_tokens(max_tokens)
    for size in sizes:
        options.parse_view(None if size is None else str(size), "0" if size in (None, "full") else pins)
    check_file(text)
    files = Files.of(csv, figure)
    lm = options.load_lm(
        model, chunk=chunk, dtype=dtype, weights=weights, kv=kv, device=device, threads=threads
    )  # fmt: skip
    from sash.evaluation.ablation import ablations
    from sash.evaluation.prompts import Source
    from sash.evaluation.trials import Grid

    words = "".join(read_pieces(text))
    source, ids = Source(lm.tokenizer, words), lm.tokenizer.encode(words)[:most]
    grid = Grid(
        tasks=("passkey",), lengths=(parse_size(length, "--length"),), depths=asked.parse_depths(depths),
        n_trials=trials, seed=seed,
    )  # fmt: skip
    found: list[Ablation] = []
    total = len(sizes) * (len(ids) + len(grid.places()) * trials * grid.lengths[0])
    with Interrupt() as interrupt, ReadingBar(total, None) as bar:
        found += ablations(lm, sizes, ids, source, grid, pins=n_pins, cancelled=interrupt, progress=bar.advance)
    if as_json:
        data = {"model": model, "results": [one.to_json() for one in found], "interrupted": interrupt.requested}
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif found:
        typer.echo("\n".join(_draw(lm, found)))

    def draw(path: Path) -> None:
        from sash.evaluation.figures import draw_ablations

        draw_ablations(found, f"{model}: what a window is worth", path)

    files.write([one.to_json() for one in found], draw)
    return retrieval.ending(interrupt.requested)


def _draw(lm: LM, found: list[Ablation]) -> list[str]:
    rows = [["window", "pins", "perplexity", "tok/s", "keys and values", "passkeys told"]]
    for one in found:
        name = "own" if one.window is None else f"{one.window:,}" if isinstance(one.window, int) else one.window
        read = one.perplexity
        rows.append(
            [
                name,
                f"{one.pins}",
                f"{read.perplexity:,.2f}",
                f"{read.speed:,.0f}",
                binary(one.kv_bytes),
                f"{one.right}/{one.of}",
            ]
        )
    first = found[0]
    return [
        f"{first.perplexity.n_read:,} tokens predicted; passkeys in prompts of {first.key_tokens:,} tokens",
        *table(rows, right=[True] * 6),
        f"the model's own windows: {windows_by_layer(lm.config)}",
    ]
