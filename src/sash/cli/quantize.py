"""`sash quantize`: a model as a folder of int8 or int4 weights, which loads at once."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from sash import hub
from sash.cli import model_options as options
from sash.errors import UsageError

if TYPE_CHECKING:
    import rich.progress

BITS = {8: "int8", 4: "int4"}


class WeightBar:
    """Draws on standard error how much is done, where that is a terminal."""

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> WeightBar:
        if sys.stderr.isatty():
            import rich.console
            import rich.progress as bars

            self._bar = bars.Progress(
                bars.TextColumn("quantise"),
                bars.BarColumn(bar_width=None),
                bars.TaskProgressColumn(),
                bars.TimeRemainingColumn(),
                console=rich.console.Console(stderr=True),
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("quantise", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` values are quantised."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)


def command(
    model: options.Model,
    bits: Annotated[int, typer.Option("--bits", metavar="8|4", help="Bits a weight; see below for which.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write; it must not exist yet.")],
    group: Annotated[
        int | None,
        typer.Option("--group", metavar="32|64", help="With --bits 4: inputs that share a scale; by default 64."),
    ] = None,
    threads: options.Threads = None,
) -> None:
    """Write a model with int8 or int4 weights, in a folder that holds all it needs and is mapped when it is loaded.

    With --bits 4 the embedding and the output head keep 8 bits, and so do weights that a GGUF file has in more than 5;
    what it has in 4 (Q4_0, Q4_1, Q4_K) stays as it is. Floats rounded to 4 bits cost a small model much: see what
    `sash eval perplexity` says of the folder. It appears whole or not at all.
    """
    if bits not in BITS:
        raise UsageError(f"--bits is 8 or 4; got {bits}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads counts CPU threads, so it is 1 or more; got {threads}")
    options.obtain(model)
    began = time.perf_counter()
    sizes, nbytes = _quantize(model, BITS[bits], out, group, threads)
    whole = sum(sizes.values())
    kinds = ", ".join(f"{kind} {100 * count / whole:.0f}%" for kind, count in Counter(sizes).most_common())
    typer.echo(f"{out}: {hub.size_text(nbytes)}, {kinds} of the weights", err=True)
    typer.echo(f"quantised in {time.perf_counter() - began:.1f} s; sash run {out} uses it", err=True)
    typer.echo(out)


def _quantize(
    model: str, weights: str, out: Path, group: int | None, threads: int | None
) -> tuple[dict[str, int], int]:
    """Quantise; how many weights became what, and the bytes of the folder."""
    import torch

    from sash.checkpoint.description import read_description
    from sash.checkpoint.header import storage_sizes
    from sash.checkpoint.quantized import save_quantized
    from sash.checkpoint.source import open_checkpoint

    if threads is not None:
        torch.set_num_threads(threads)
    with open_checkpoint(hub.resolve(model)) as checkpoint, WeightBar() as bar:
        header = save_quantized(
            checkpoint,
            read_description(checkpoint),
            out,
            weights="int8" if weights == "int8" else "int4",
            group=group,
            name=model,
            progress=bar.progress,
        )
    return storage_sizes(header.to_json()), sum(path.stat().st_size for path in out.iterdir())
