"""The files of `sash run --save` and `--resume`: when they make sense, and what is put into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import typer

from sash import hub
from sash.cli import model_options as options
from sash.cli.kept_session import Kept, noted, save_to
from sash.cli.kept_text import Going
from sash.errors import SashError, UsageError

if TYPE_CHECKING:
    from sash.cli.pin_options import Watched
    from sash.cli.prompt_reader import Prompt, Reading
    from sash.lm import LM


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What is gone on with and what is saved, of one reading.

    Attributes:
        kept: the files.
        loading, window, pins: how the model was loaded, as it is noted.
    """

    kept: Kept
    loading: Mapping[str, Any]
    window: int | Literal["full"] | None
    pins: int

    @staticmethod
    def of(kept: Kept, loading: Mapping[str, Any], window: int | Literal["full"] | None, pins: int) -> Keeping:
        """With what was said, and where nothing was, as the file has it."""
        size, first = kept.view(window, pins)
        return Keeping(kept=kept, loading=kept.loading(loading), window=size, pins=first)

    def load_lm(self, model: str | None) -> LM:
        """The model.

        Raises:
            SashError: as `options.load_lm` does, or there is no name.
        """
        window = None if self.window is None else str(self.window)
        return options.load_lm(self.kept.named(model), window=window, pins=str(self.pins), **self.loading)

    def writes(self, prompt: Prompt) -> bool:
        """Whether an answer is wanted: not where a text without a question is read only to be saved."""
        return self.kept.save is None or prompt.text is not None

    def begin(self, lm: LM, prompt: Prompt) -> Going:
        """The text, from the beginning or from where it was saved."""
        if self.kept.resume is not None:
            return Going.resume(lm, self.kept.resume, self.kept.notes, prompt)
        return Going.begin(lm, prompt, chat=prompt.is_chat(lm.tokenizer, lm.name))

    def save(self, lm: LM, reading: Reading, going: Going, *, answered: bool) -> None:
        """Save what was read, if it is to be."""
        if self.kept.save is not None:
            notes = noted(self.loading, self.window, self.pins, **going.noted(answered=answered))
            typer.echo(
                f"{reading.session.tokens:,} tokens {save_to(self.kept.save, lm, reading.session, notes)}", err=True
            )


def keeping_of(save: str | None, resume: str | None, server: str | None, watched: Watched, *, may_slide: bool) -> Kept:
    """The files of --save and --resume, where they make sense."""
    if (save is not None or resume is not None) and server is not None:
        raise UsageError("--save and --resume need the model here: leave out --server")
    if resume is not None and (watched.whole or not may_slide):
        raise UsageError("pins, marks and audits are of a text that is read from its beginning: leave out --resume")
    if save is not None and watched.sight:
        raise UsageError("global tokens are of one reading: leave out --save")
    return Kept.of(save, resume)


def is_model(name: str | None, kept: Kept) -> bool:
    """Whether what stands alone names a model."""
    if name is None or name == kept.model:
        return True
    try:
        hub.resolve(name)
    except SashError:
        return False
    return True
