"""What a window costs and what it is worth: the same text and the same questions at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sash.evaluation.methods import Method, Reading
from sash.evaluation.perplexity import Perplexity, perplexity
from sash.evaluation.prompts import Source
from sash.evaluation.trials import Grid, ask, wilson
from sash.lm import LM
from sash.network.sizing import KV_BYTES, kv_bytes

Size = int | Literal["full"] | None
"""A window that is forced, full attention, or the model as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """A window.

    Attributes:
        window: its size.
        pins: first tokens that stay visible; none with full attention.
        perplexity: of the text, with what reading it took.
        kv_bytes: of keys and values that are held at the end of the text.
        right: passkeys that were told.
        of: passkeys that were asked for.
        key_tokens: tokens of a prompt that hides one.
    """

    window: Size
    pins: int
    perplexity: Perplexity
    kv_bytes: int
    right: int
    of: int
    key_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = wilson(self.right, self.of)
        return {
            "window": self.window,
            "pins": self.pins,
            **self.perplexity.to_json(),
            "kv_bytes": self.kv_bytes,
            "passkey": {"right": self.right, "of": self.of, "low": low, "high": high, "tokens": self.key_tokens},
        }


def ablations(
    lm: LM,
    sizes: Sequence[Size],
    ids: list[int],
    source: Source,
    grid: Grid,
    *,
    pins: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Ablation]:
    """Measure each window as it is done.

    Args:
        lm: the model, with no forced window.
        sizes: the windows.
        ids: the text that is predicted.
        source: what prompts are filled with.
        grid: the prompts that hide passkeys; of one length.
        pins: first tokens that stay visible wherever a window is forced.
        cancelled: asked between readings; a window that is not done is left out.
        progress: called with tokens that were read.

    Raises:
        WindowError, PinsError, UsageError: windows, pins or prompts that cannot be.
        EmptyPromptError: fewer than 2 tokens to predict.
    """
    ways = [_forced(lm, size, pins) for size in sizes]
    for size, way in zip(sizes, ways, strict=True):
        if cancelled():
            return
        found = perplexity(way.lm, ids, progress=progress)
        right: list[bool] = []
        for task, length, depth in grid.places():
            answers = ask(way, grid.trials(source, task, length, depth), cancelled=cancelled, progress=progress)
            if answers is None:
                return
            right += answers
        yield Ablation(
            window=size,
            pins=max(pattern.pins for pattern in way.lm.config.patterns),
            perplexity=found,
            kv_bytes=kv_bytes(way.lm.config, len(ids), *KV_BYTES[way.lm.kv_dtype]),
            right=sum(right),
            of=len(right),
            key_tokens=max(grid.lengths, default=0),
        )


def _forced(lm: LM, size: Size, pins: int) -> Method:
    forced = lm if size is None else lm.with_window(size, 0 if size == "full" else pins)
    return Method(name=str(size), lm=forced, reading=lambda trial: Reading(ids=list(trial.ids)))
