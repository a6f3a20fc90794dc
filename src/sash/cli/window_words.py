"""Windows in words: which layers see how far, what slid out of sight, and what can be done about it. Needs no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from sash.explain.labels import numbers
from sash.network.config import ModelConfig

if TYPE_CHECKING:
    from sash.completion import View


def tell_note(note: str | None) -> bool:
    """Say something beside the results, on standard error; whether there was anything to say."""
    if note is not None:
        typer.echo(f"note: {note}", err=True)
    return note is not None


def windows_by_layer(config: ModelConfig) -> str:
    """The window of every layer, in a few words.

    >>> from sash.explain.presets import PRESETS
    >>> windows_by_layer(PRESETS["mistral-7b"]), windows_by_layer(PRESETS["mixtral-8x7b"])
    ('4,096 in 32 of 32 layers', 'full in 32 of 32 layers')
    """
    counts = Counter(config.windows)
    if len(counts) == 1:
        (window,) = counts
        return f"{'full' if window is None else f'{window:,}'} in {config.n_layers} of {config.n_layers} layers"
    (first, often), *others = counts.most_common()
    words = [f"{'full' if first is None else f'{first:,}'} in {often} of {config.n_layers} layers"]
    for window, _ in others:
        layers = [number for number, size in enumerate(config.windows, start=1) if size == window]
        name = "full" if window is None else f"{window:,}"
        words.append(f"{name} in layer{'s' if len(layers) > 1 else ''} {numbers(layers)}")
    return ", ".join(words)


def slid_out(config: ModelConfig, length: int) -> int:
    """Of `length` tokens, how many the last one does not see in at least one windowed layer, pins put aside."""
    sizes = [(pattern.reach_back or 0) + 1 + pattern.pins for pattern in config.patterns if pattern.window is not None]
    return max(0, length - min(sizes)) if sizes else 0


def limit(config: ModelConfig) -> int | None:
    """Tokens that every layer sees at once, as far as the model was trained; None where nothing says.

    A model without windows is bounded by the positions that it was trained on.
    """
    sizes = [(pattern.reach_back or 0) + 1 + pattern.pins for pattern in config.patterns if pattern.window is not None]
    return min(sizes) if sizes else config.context or None


def overflow_note(config: ModelConfig, length: int, *, overlaps: bool = False) -> str | None:
    """One line for a prompt that is longer than the window: what slid out, and how to keep it; None if it is not.

    `overlaps` says that windows overlap, instead of rolling on.
    """
    gone = slid_out(config, length)
    if overlaps and config.window is not None and length > config.window:
        return (
            f"of {length:,} tokens the last {config.window:,} at most are read anew, and what is before them is out of "
            "reach; --pin keeps a part of it in every reading"
        )
    windowed = sum(window is not None for window in config.windows)
    full = config.n_layers - windowed
    pins = max(pattern.pins for pattern in config.patterns)
    if not gone:
        if full and config.context and length > config.context:
            return (
                f"the text has {length:,} tokens, and the model was trained on {config.context:,} positions: "
                "what it writes may be poor"
            )
        return None
    if windowed == config.n_layers:
        where = f"in all {windowed} layers"
        rest = "what it says reaches the answer through deeper layers only"
    else:
        where = f"in {windowed} of {config.n_layers} layers"
        rest = f"{full} full layer{'s' if full > 1 else ''} still see{'' if full > 1 else 's'} all of it"
    kept = f"the first {pins:,} are pinned" if pins else "--pins N keeps the first N in sight"
    return f"{gone:,} of {length:,} tokens slid out of direct sight {where}; {rest}; {kept}"


def view_words(config: ModelConfig, view: View) -> str:
    """What the last token sees of `view.length` tokens."""
    if view.window is None:
        return f"none: all {view.length:,} tokens visible directly"
    full = config.n_layers - view.windowed_layers
    sizes = Counter(min((pattern.reach_back or 0) + 1, view.length) for pattern in config.patterns if pattern.window)
    if view.length <= min((pattern.reach_back or 0) + 1 for pattern in config.patterns if pattern.window):
        return f"all {view.length:,} visible directly ({windows_by_layer(config)})"
    if full == 0 and len(sizes) == 1:
        words = [f"{view.direct:,} of {view.length:,} visible directly"]
    else:
        (size, count), *others = sorted(sizes.items())
        first = f"{size:,} of {view.length:,} visible directly in {count} of {config.n_layers} layers"
        rest = [f"{size:,} in {count}" for size, count in others] + ([f"all in {full}"] if full else [])
        words = [", ".join([first, *rest])]
    words += [f"{view.held:,} pinned"] if view.held else []
    words += [f"{view.global_seen:,} as or by global tokens"] if view.global_seen else []
    words += [f"{view.summarised:,} in summaries only"] if view.summarised else []
    words += [f"{view.relayed:,} only through deeper layers"] if view.relayed else []
    words += [f"{view.out_of_reach:,} out of reach"] if view.out_of_reach else []
    return "; ".join(words)


def ablation_note(config: ModelConfig) -> str | None:
    """The label of a forced window; None where the windows are the model's own."""
    if config.forced_window is None:
        return None
    return f"--window {config.forced_window} is an ablation: the model was not trained so"


def window_json(config: ModelConfig, view: View | None = None) -> dict[str, Any]:
    """The windows of a model, and what a view shows through them, as plain values."""
    return {
        "size": config.window,
        "by_layer": list(config.windows),
        "pins": max(pattern.pins for pattern in config.patterns),
        "forced": config.forced_window,
        "ablation": config.forced_window is not None,
        **({} if view is None else {"visible": asdict(view)}),
    }
