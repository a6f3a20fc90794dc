"""`sash eval recall`: which layers of a model recall."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sash.cli import model_options as options
from sash.cli.sizes import parse_size

Length = Annotated[str, typer.Option("-l", "--length", metavar="N", help="Tokens of each of the four texts.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]


def recall_command(
    model: options.Model,
    length: Length = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: Json = False,
) -> int:
    """Find the layers whose attention lands on what is asked for: only those recall from then on, with --recall."""
    n_tokens = parse_size(length, "--length")
    lm = options.load_lm(model, dtype=dtype, weights=weights, device=device, threads=threads)
    layers = lm.calibrate_recall(n_tokens)
    if as_json:
        typer.echo(json.dumps({"layers": layers, "of": lm.config.n_layers}))
    else:
        numbers = ", ".join(str(layer) for layer in layers)
        typer.echo(f"{len(layers)} of {lm.config.n_layers} layers recall from now on, with --recall: {numbers}")
    return 0
