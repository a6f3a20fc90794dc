"""`sash eval passkey`, `needles` and `distance`: what a model still knows of what it read long ago."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sash.cli import eval_files
from sash.cli import model_options as options
from sash.cli import retrieval_options as asked
from sash.cli.eval_files import Files
from sash.cli.interrupt import Interrupt
from sash.cli.live_text import check_file, read_pieces
from sash.cli.reading_bar import ReadingBar
from sash.cli.retrieval_tables import draw_cells
from sash.cli.sizes import parse_window
from sash.cli.window_words import ablation_note
from sash.errors import UsageError, WindowError

if TYPE_CHECKING:
    from sash.evaluation.methods import Method
    from sash.evaluation.trials import Cell, Grid
    from sash.lm import LM

INTERRUPTED = 130


def open_model(
    model: str, *, window: str | None, text: str, settings: dict[str, str | int | None]
) -> tuple[LM, int | None]:
    """The model without a forced window, and the window that is to be; what can be checked is checked before.

    Raises:
        SashError: as `model_options.load_lm` does, and for a window or text that cannot be.
    """
    size = parse_window(window)
    if size == "full":
        raise WindowError("lengths are told in windows: give --window N, or leave it out for the model's own")
    check_file(text)
    return options.load_lm(model, **settings), size  # type: ignore[arg-type]


class Run:
    """A model, its methods and a text, ready to be asked; what a command of this file begins and ends with."""

    def __init__(
        self,
        model: str,
        *,
        window: str | None,
        methods: str,
        text: str,
        files: Files,
        settings: dict[str, str | int | None],
    ) -> None:
        """Checks what can be checked before the model is loaded, and loads it.

        Raises:
            SashError: as `model_options.load_lm` and `sash.evaluation.methods` do.
        """
        self.model, self.files = model, files
        lm, size = open_model(model, window=window, text=text, settings=settings)
        from sash.evaluation import methods as reading
        from sash.evaluation.prompts import Source

        self.window = reading.window_of(lm, size)
        self.methods: list[Method] = reading.methods(lm, asked.parse_names(methods), size)
        self.source = Source(lm.tokenizer, "".join(read_pieces(text)))
        self.note = None if size is None else ablation_note(lm.with_window(size).config)

    def measure(self, grid: Grid) -> tuple[list[Cell], bool]:
        """The cells, and whether Ctrl-C ended it before the last."""
        from sash.evaluation.trials import measure

        cells: list[Cell] = []
        total = sum(grid.n_trials * len(self.methods) * self._tokens(grid, place) for place in grid.places())
        with Interrupt() as interrupt, ReadingBar(total, None, label="asking") as bar:
            cells += measure(self.methods, self.source, grid, cancelled=interrupt, progress=bar.advance)
        return cells, interrupt.requested

    @staticmethod
    def _tokens(grid: Grid, place: tuple[str, int, float | None]) -> int:
        return place[1] + (grid.before if place[2] is None else 0)

    def show(self, cells: Sequence[Cell], title: str, interrupted: bool, as_json: bool) -> int:
        """Print what was found and write the files; the exit code."""
        if as_json:
            data = {"model": self.model, "window": self.window, "ablation": self.note is not None}
            data |= {"results": [cell.to_json(self.window) for cell in cells], "interrupted": interrupted}
            typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        elif cells:
            typer.echo("\n".join([title, *draw_cells(cells, self.window), *([self.note] if self.note else [])]))

        def draw(path: Path) -> None:
            from sash.evaluation.figures import draw_heat_maps

            draw_heat_maps(cells, self.window, title, path)

        self.files.write([cell.to_json(self.window) for cell in cells], draw)
        return ending(interrupted)


def ending(interrupted: bool) -> int:
    """The exit code, after a word about Ctrl-C."""
    if interrupted:
        typer.echo("interrupted: this is what was measured until then", err=True)
    return INTERRUPTED if interrupted else 0


def passkey_command(
    model: options.Model,
    text: asked.Text,
    window: asked.Window = None,
    lengths: asked.Lengths = "2w,4w,8w",
    depths: asked.Depths = "0,25,50,75,100",
    trials: asked.Trials = 10,
    methods: asked.Methods = "full,window,pins",
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
    """Ask for a key of 5 digits that stands somewhere in a long prompt.

    Prompts are made from the text and the seed; all methods are asked the same ones. An answer is right if its greedy
    tokens begin with the key. Ctrl-C ends it and shows what there is; the exit code is then 130.
    """
    how = settings(chunk, dtype, weights, kv, device, threads)
    run = Run(model, window=window, methods=methods, text=text, files=Files.of(csv, figure), settings=how)
    return _by_depth(run, "passkey", lengths, depths, trials, 1, seed, as_json)


def needles_command(
    model: options.Model,
    text: asked.Text,
    window: asked.Window = None,
    lengths: asked.Lengths = "2w,4w,8w",
    depths: asked.Depths = "0,25,50,75,100",
    trials: asked.Trials = 10,
    facts: Annotated[
        int, typer.Option("--facts", metavar="N", help="Facts in each prompt; one of them is asked for.")
    ] = 4,
    methods: asked.Methods = "full,window,pins",
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
    """Ask for one of several numbers that stand in a long prompt, each with a word.

    The fact that is asked for stands at the depth, the others at even distances. Else as `sash eval passkey`.
    """
    how = settings(chunk, dtype, weights, kv, device, threads)
    run = Run(model, window=window, methods=methods, text=text, files=Files.of(csv, figure), settings=how)
    return _by_depth(run, "needles", lengths, depths, trials, facts, seed, as_json)


def _by_depth(run: Run, task: str, lengths: str, depths: str, trials: int, facts: int, seed: int, as_json: bool) -> int:
    from sash.evaluation.trials import Grid

    sizes = asked.parse_lengths(lengths, run.window, "--lengths")
    if min(sizes) <= run.window:
        raise UsageError(
            f"a prompt of {min(sizes):,} tokens fits the window of {run.window:,}, so that nothing is lost: longer ones"
            " show what is"
        )
    grid = Grid(
        tasks=(task,), lengths=sizes, depths=asked.parse_depths(depths), n_trials=trials, n_facts=facts, seed=seed
    )  # fmt: skip
    cells, interrupted = run.measure(grid)
    title = f"{task}, window {run.window:,}: right answers in percent, by depth; {trials} prompts each"
    return run.show(cells, title, interrupted, as_json)


def distance_command(
    model: options.Model,
    text: asked.Text,
    window: asked.Window = None,
    distances: Annotated[
        str,
        typer.Option("-d", "--distances", metavar="N,...", help="How far back it stands, in tokens or windows (2w)."),
    ] = "0.5w,0.75w,1w,1.5w,2w,4w",
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="NAME,...", help="passkey, needles, copying, format.")
    ] = "copying",
    trials: asked.Trials = 10,
    methods: asked.Methods = "full,window",
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
    """Ask for what was said a given distance ago: where does knowing it end?

    At a distance of W - 1 its last token is just in sight when the answer begins. A window of filler comes before it.
    Else as `sash eval passkey`.
    """
    how = settings(chunk, dtype, weights, kv, device, threads)
    run = Run(model, window=window, methods=methods, text=text, files=Files.of(csv, figure), settings=how)
    from sash.evaluation.trials import Grid

    sizes = asked.parse_lengths(distances, run.window, "--distances")
    grid = Grid(tasks=asked.parse_names(tasks), distances=sizes, before=run.window, n_trials=trials, seed=seed)
    cells, interrupted = run.measure(grid)
    title = f"window {run.window:,}: right answers in percent, by distance in windows; {trials} prompts each"
    return run.show(cells, title, interrupted, as_json)


def settings(
    chunk: str, dtype: str | None, weights: str, kv: str, device: str, threads: int | None
) -> dict[str, str | int | None]:
    """How the model is loaded."""
    return {"chunk": chunk, "dtype": dtype, "weights": weights, "kv": kv, "device": device, "threads": threads}


def methods_command() -> None:
    """List the ways to read a prompt that is longer than the window."""
    from sash.evaluation.methods import DESCRIPTIONS
    from sash.explain.labels import table

    typer.echo("\n".join(table([[name, words] for name, words in DESCRIPTIONS.items()], right=[False, False])))
