"""`--save` and `--resume`: files of what a model here has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sash.cli.interrupt import Interrupt
from sash.cli.model_options import LOADING
from sash.errors import CheckpointError, UsageError
from sash.explain.budget import binary

if TYPE_CHECKING:
    from sash.conversation import Conversation
    from sash.lm import LM
    from sash.session import Session

Save = Annotated[str | None, typer.Option("--save", metavar="FILE", help="Keep what was read and written in a file.")]
Resume = Annotated[
    str | None, typer.Option("--resume", metavar="FILE", help="Go on from a file of --save; nothing is read again.")
]

_TOLD = ("dtype", "kv", "weights")
"""Options of loading that decide the numbers; the others are those of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Where a session comes from, and where it goes.

    Attributes:
        save: where it is saved; None for nowhere.
        resume: what is gone on from; None for nothing.
        model: its model's name, as the file tells it.
        notes: what was noted in that file.
    """

    save: Path | None = None
    resume: Path | None = None
    model: str = ""
    notes: Mapping[str, Any]

    @staticmethod
    def of(save: str | None, resume: str | None) -> Kept:
        """Checked: before anything is loaded, so that no hour of reading is for nothing.

        Raises:
            UsageError, InputNotFoundError, CheckpointError: a place that cannot be written, or a file that is none.
        """
        if save is None and resume is None:
            return Kept(notes={})
        from sash import saved

        place = None if save is None else Path(save).expanduser()
        if place is not None:
            saved.check_place(place)
        if resume is None:
            return Kept(save=place, notes={})
        path = Path(resume).expanduser()
        header = saved.peek(path)
        model, notes = header.get("model"), header.get("notes")
        if not isinstance(model, str) or not isinstance(notes, dict):
            raise CheckpointError(f"{path} contradicts itself: it has to be made anew")
        return Kept(save=place, resume=path, model=model, notes=notes)

    def __bool__(self) -> bool:
        return self.save is not None or self.resume is not None

    def named(self, model: str | None) -> str:
        """The model to load: the one that is named, or else the file's.

        Raises:
            UsageError: there is neither.
        """
        if model is None and not self.model:
            raise UsageError("name a MODEL: `sash ls` lists those that are here")
        return model or self.model

    def loading(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """How to load it: as was said, and where nothing was, as it was loaded for the file."""
        told = self.notes.get("loading")
        noted = told if isinstance(told, dict) else {}
        unsaid = {name for name in _TOLD if said[name] == LOADING[name] and isinstance(noted.get(name), str)}
        return {**said, **{name: noted[name] for name in unsaid}}

    def view(self, window: int | Literal["full"] | None, pins: int) -> tuple[int | Literal["full"] | None, int]:
        """The window and the first pins: those that were said, or else the file's."""
        size, first = self.notes.get("window"), self.notes.get("pins")
        if window is None and (size == "full" or type(size) is int):
            window = size
        return window, first if not pins and type(first) is int else pins

    def number(self, name: str) -> int | None:
        """A number that was noted."""
        value = self.notes.get(name)
        return value if type(value) is int else None


def noted(said: Mapping[str, Any], window: int | Literal["full"] | None, pins: int, **more: Any) -> dict[str, Any]:
    """What is noted in a file, so that it can be gone on from without saying it again."""
    return {"loading": {name: said[name] for name in _TOLD if name in said}, "window": window, "pins": pins, **more}


def save_to(path: Path, lm: LM, what: Session | Conversation, notes: Mapping[str, Any]) -> str:
    """Save, and say so in a line; Ctrl-C waits until it is done.

    Raises:
        SashError: as `LM.save_session` does; an older file is as it was.
    """
    from sash.lm import TURNS_BACK

    with Interrupt():
        size = lm.save_session(what, path, back=TURNS_BACK, notes=notes)
    return f"saved in {path} ({binary(size)})"


def is_saved(path: Path) -> bool:
    """Whether a file begins as those of `--save` do."""
    from sash import saved

    try:
        with path.open("rb") as file:
            return file.read(len(saved.KIND.magic)) == saved.KIND.magic
    except OSError:
        return False


def conversation_of(path: Path, lm: LM) -> Conversation:
    """The conversation of a file.

    Raises:
        SashError: as `LM.load_session` does.
        UsageError: it is no conversation.
    """
    from sash.conversation import Conversation

    what = lm.load_session(path)
    if not isinstance(what, Conversation):
        raise UsageError(f"{path} is no chat: go on with it by `sash run --resume {path} QUESTION`")
    return what
