"""`sash explain`: who sees whom, what can be known through the layers, where it is kept, what it costs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from sash.attention.pattern import AttentionPattern
from sash.cli.group import verb_app
from sash.cli.known_model import ITEMSIZE, KnownModel, look_up, parse_dtype
from sash.cli.sizes import parse_size, parse_window
from sash.errors import EmptyPromptError, UnsupportedError, UsageError
from sash.explain.budget import budget, draw_budget
from sash.explain.mask import band_matrix, draw_masks
from sash.explain.reach import cone, draw_cone
from sash.explain.rolling import draw_rolling_buffer, rolling_buffer
from sash.network.config import ModelConfig

app = verb_app()

Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Use a model's own windows and tokens; also mistral-7b.")
]
Prompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Label the drawing with a text's tokens.")]
Length = Annotated[str | None, typer.Option("--len", metavar="N", help="Tokens, where there is no --prompt.")]
Window = Annotated[
    str | None, typer.Option("--window", metavar="N|full", help="Keys that a query sees, its own included.")
]
Pins = Annotated[str, typer.Option("--pins", metavar="N", help="First positions that stay visible.")]
Dilation = Annotated[int | None, typer.Option("--dilation", help="Distance between the keys of the window.")]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="An encoder's window: as many keys after as before.")]
Global = Annotated[
    list[int] | None,
    typer.Option("--global", metavar="POSITION", help="A token that sees all and is seen by all, from 0; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

DEFAULT_WINDOW = "4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Layers over a sequence.

    Attributes:
        patterns: of each layer, from the input up.
        n_tokens: tokens of the sequence.
        labels: one a token, or empty.
        model: whose layers these are; None for layers made up on the command line.
        notes: what is to be said below a drawing.
    """

    patterns: tuple[AttentionPattern, ...]
    n_tokens: int
    labels: tuple[str, ...]
    model: KnownModel | None
    notes: tuple[str, ...] = ()

    def distinct(self) -> list[tuple[AttentionPattern, tuple[int, ...]]]:
        """Each pattern once, with the numbers (from 1) of the model's layers that have it; none without a model."""
        found: dict[AttentionPattern, list[int]] = {}
        for number, pattern in enumerate(self.patterns, start=1):
            found.setdefault(pattern, []).append(number)
        return [(pattern, tuple(numbers) if self.model else ()) for pattern, numbers in found.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Options that say what is looked at, as the user gave them."""

    model: str | None = None
    prompt: str | None = None
    length: str | None = None
    window: str | None = None
    pins: str = "0"
    layers: str | None = None
    dilation: int | None = None
    symmetric: bool = False
    global_positions: Sequence[int] = ()

    def stack(self, default_length: int, default_layers: int = 1) -> Stack:
        """The layers and the sequence that are asked for.

        Raises:
            UsageError: options that contradict each other, or a value out of its range.
            WindowError, PinsError: a window or pins that cannot be.
            EmptyPromptError: a prompt without a token.
        """
        if self.prompt is not None and self.length is not None:
            raise UsageError("give --prompt or --len, not both")
        known = None if self.model is None else look_up(self.model)
        labels = () if self.prompt is None else _tokens(self.prompt, known)
        n_tokens = len(labels) or (default_length if self.length is None else parse_size(self.length, "--len"))
        if n_tokens < 1:
            raise UsageError(f"--len counts tokens, so it is 1 or more; got {n_tokens}")
        if known is None:
            n_layers = default_layers if self.layers is None else parse_size(self.layers, "--layers")
            if not 1 <= n_layers <= MOST_LAYERS:
                raise UsageError(f"--layers takes 1 to {MOST_LAYERS}; got {n_layers}")
            return Stack(patterns=(self._pattern(),) * n_layers, n_tokens=n_tokens, labels=labels, model=None)
        if self.layers is not None or self.dilation is not None or self.symmetric:
            raise UsageError(
                "--layers, --dilation and --symmetric make up layers; with --model they are the model's own"
            )
        patterns, notes = _patterns_of(known, self.window, self.pins)
        if self.global_positions and not any(pattern.global_tokens for pattern in patterns):
            raise UsageError(f"{self.model} has no global tokens: leave --global out")
        return Stack(patterns=patterns, n_tokens=n_tokens, labels=labels, model=known, notes=notes)

    def _pattern(self) -> AttentionPattern:
        window = parse_window(self.window or DEFAULT_WINDOW)
        if window is None:
            raise UsageError("--window auto asks for a model's own window: add --model NAME")
        if self.symmetric and self.window is None:
            window = int(DEFAULT_WINDOW) + 1
        return AttentionPattern(
            window=None if window == "full" else window,
            pins=parse_size(self.pins, "--pins"),
            dilation=1 if self.dilation is None else self.dilation,
            causal=not self.symmetric,
            global_tokens=bool(self.global_positions),
        )


MOST_LAYERS = 512


def _patterns_of(
    known: KnownModel, window: str | None, pins: str
) -> tuple[tuple[AttentionPattern, ...], tuple[str, ...]]:
    """A model's patterns, with any forced window and pins, and what must be said of that."""
    forced, n_pins = parse_window(window), parse_size(pins, "--pins")
    if not isinstance(known.config, ModelConfig):
        if forced is not None or n_pins:
            raise UnsupportedError("--window and --pins are for decoders; an encoder's windows are part of its weights")
        return known.config.patterns, ()
    config = known.config.with_window(forced, n_pins)
    note = f"--window {config.forced_window} is an ablation: {known.name} was not trained so"
    return config.patterns, () if config.forced_window is None else (note,)


def _tokens(prompt: str, known: KnownModel | None) -> tuple[str, ...]:
    """The tokens of a prompt: a model's own, or its words."""
    from sash.text.tokenizer import check_unicode

    check_unicode(prompt)
    if known is None or not prompt:
        labels = tuple(prompt.split())
    else:
        tokenizer = known.tokenizer()
        labels = tuple(tokenizer.token_text(token_id) for token_id in tokenizer.encode(prompt))
    if not labels:
        raise EmptyPromptError("the prompt has no tokens: give some text, or --len N")
    return labels


def _print(as_json: bool, data: dict[str, Any], drawing: str, notes: Sequence[str] = ()) -> None:
    if as_json:
        typer.echo(json.dumps(data | ({"notes": list(notes)} if notes else {}), indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join([drawing, *notes]))


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Draw what a window does: who sees whom, what can be known, what is kept, what it costs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def mask(
    model: Model = None,
    prompt: Prompt = None,
    length: Length = None,
    window: Window = None,
    pins: Pins = "0",
    dilation: Dilation = None,
    symmetric: Symmetric = False,
    global_positions: Global = None,
    as_json: Json = False,
) -> None:
    """Draw who sees whom in a layer, full and windowed: rows are queries, columns are keys. Window 4 if not told."""
    flags = global_positions or []
    asked = Asked(
        model=model,
        prompt=prompt,
        length=length,
        window=window,
        pins=pins,
        dilation=dilation,
        symmetric=symmetric,
        global_positions=flags,
    )
    stack = asked.stack(default_length=8)
    distinct = stack.distinct()
    full = [pair for pair in distinct if pair[0].window is None]
    windowed = [pair for pair in distinct if pair[0].window is not None]
    compared = full or [(AttentionPattern(causal=windowed[0][0].causal), ())]
    matrices = [
        band_matrix(pattern, stack.n_tokens, labels=stack.labels, global_positions=flags, layers=layers)
        for pattern, layers in [*compared, *windowed]
    ]
    notes = list(stack.notes)
    if windowed and all(matrix.rows == matrices[0].rows for matrix in matrices):
        notes.append(f"All {stack.n_tokens} tokens are within the window: nothing slides out.")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    data = {"n_tokens": stack.n_tokens, "model": model, "matrices": [matrix.to_json() for matrix in matrices]}
    _print(as_json, data, draw_masks(matrices, width), notes)


@app.command()
def reach(
    model: Model = None,
    prompt: Prompt = None,
    length: Length = None,
    window: Window = None,
    pins: Pins = "0",
    layers: Annotated[str | None, typer.Option("--layers", metavar="N", help="Layers of the stack.")] = None,
    dilation: Dilation = None,
    symmetric: Symmetric = False,
    global_positions: Global = None,
    as_json: Json = False,
) -> None:
    """Draw what the last token can know of, layer by layer. Window 4 and 3 layers if not told."""
    flags = global_positions or []
    asked = Asked(
        model=model,
        prompt=prompt,
        length=length,
        window=window,
        pins=pins,
        layers=layers,
        dilation=dilation,
        symmetric=symmetric,
        global_positions=flags,
    )
    stack = asked.stack(default_length=12 if model is None else 2**17, default_layers=3)
    seen = cone(stack.patterns, stack.n_tokens, global_positions=flags)
    data = {"model": model, "labels": list(stack.labels)} | seen.to_json()
    _print(as_json, data, draw_cone(seen, stack.labels), stack.notes)


@app.command()
def cache(
    model: Model = None,
    prompt: Prompt = None,
    length: Length = None,
    window: Window = None,
    pins: Pins = "0",
    dilation: Dilation = None,
    as_json: Json = False,
) -> None:
    """Draw the slots of the rolling buffer, token by token. Window 4 if not told."""
    asked = Asked(model=model, prompt=prompt, length=length, window=window, pins=pins, dilation=dilation)
    stack = asked.stack(default_length=9)
    windowed = [pair for pair in stack.distinct() if pair[0].capacity() is not None]
    buffers = [
        rolling_buffer(pattern, stack.n_tokens, labels=stack.labels, layers=layers)
        for pattern, layers in windowed or stack.distinct()
    ]
    growing = [number for number, pattern in enumerate(stack.patterns, start=1) if pattern.capacity() is None]
    notes = [*stack.notes, *([f"{len(growing)} layers see everything, so they keep everything"] if growing else [])]
    data = {"n_tokens": stack.n_tokens, "model": model, "buffers": [buffer.to_json() for buffer in buffers]}
    _print(as_json, data, "\n\n".join(draw_rolling_buffer(buffer) for buffer in buffers), notes)


@app.command(name="budget")
def budget_command(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="A model, or the figures of mistral-7b or mixtral-8x7b.")
    ] = "mistral-7b",
    length: Annotated[str, typer.Option("--len", metavar="N", help="Tokens of the sequence, e.g. 32K.")] = "32K",
    window: Window = None,
    pins: Pins = "0",
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the cache: float32, float16 or bfloat16.")] = None,
    as_json: Json = False,
) -> None:
    """Compute memory and arithmetic, full against windowed: the cache, attention alone, the whole model."""
    known = look_up(model)
    if not isinstance(known.config, ModelConfig):
        raise UnsupportedError(f"{model} is an encoder and keeps no cache: budget is for models that write")
    patterns, notes = _patterns_of(known, window, pins)
    layers = tuple(replace(layer, pattern=p) for layer, p in zip(known.config.layers, patterns, strict=True))
    n_tokens = parse_size(length, "--len")
    if n_tokens < 1:
        raise UsageError(f"--len counts tokens, so it is 1 or more; got {n_tokens}")
    result = budget(replace(known.config, layers=layers), n_tokens, ITEMSIZE[parse_dtype(dtype, known.dtype)])
    _print(as_json, {"model": model} | result.to_json(), draw_budget(result, model), notes)
