"""Sessions and conversations in files: what was read once need not be read again, by the same model.

Of a conversation that reads by overlapping windows the messages are kept: its last window is read again, as ever.

A file holds tokens, pins, messages and the keys and values that the window needs; its size does not depend on the
length of the text where all layers have windows. It is written whole or not at all (`sash.engine.sealed_file`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sash.conversation import Conversation, Mark
from sash.engine import sealed_file
from sash.engine.sealed_file import Kind
from sash.errors import (
    CheckpointError,
    DiskFullError,
    DoesNotFitError,
    InputNotFoundError,
    PinsError,
    SashError,
    UsageError,
    is_disk_full,
)
from sash.network.identity import differences, identity
from sash.network.snapshot import RowState
from sash.session import Session
from sash.session_state import SessionState, pin_room
from sash.text.pins import Contract, runs_of
from sash.text.sight import Sight

if TYPE_CHECKING:
    from sash.lm import LM

logger = logging.getLogger(__name__)

KIND = Kind(magic=b"SASHSESS", version=1, words="saved session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a file holds.

    Attributes:
        what: the session or the conversation.
        model: the name that its model was loaded as.
        notes: whatever was saved with it.
    """

    what: Session | Conversation
    model: str
    notes: dict[str, Any] = field(default_factory=dict)


def save(
    path: Path,
    what: Session | Conversation,
    *,
    model: str,
    back: int | None = 0,
    notes: Mapping[str, Any] | None = None,
) -> int:
    """Write a session or a conversation to a file, in the place of an older one; its bytes.

    `back` says how many tokens it can go back once it is loaded, as far as its log reaches; None for all.

    Raises:
        UsageError: the session stopped in the midst of a step, or the path is something else's.
        InputNotFoundError: there is no such folder.
        DiskFullError: no room; the older file is as it was.
        SashError: it cannot be written.
    """
    session = what.session if isinstance(what, Conversation) else what
    header: dict[str, Any] = {"model": model, "notes": dict(notes or {})}
    tensors: list[Tensor] = []
    if isinstance(what, Conversation) and session is not None and session.overlap is not None:
        session = None  # what was said suffices: of the text no more than a window of tokens is read again
    if session is not None and session.intact:
        state = session.state(back)
        header["network"] = identity(session.network, session.cache)
        header["session"] = {
            "tokens": state.tokens,
            "kept": state.ids is not None,
            "history": session.history,
            "log": session.log,
            "room": pin_room(session.config),
            "sees": pin_room(session.config, sees=True) > 0,
            "seers": [[span.start, span.stop] for span in runs_of(state.seers)],
            "pinned": [[span.start, span.stop] for span in runs_of(state.pinned)],
            "row": state.row.describe(),
        }
        known = (state.ids or (), state.unread, state.seen)
        tensors = [*(torch.tensor(ids, dtype=torch.int32) for ids in known), *state.row.tensors()]
    elif not isinstance(what, Conversation):
        raise UsageError("the session stopped in the midst of a step: it cannot be saved")
    if isinstance(what, Conversation):
        header["conversation"] = _conversation(what, read="session" in header)
    with _told(path, "write"):
        return sealed_file.write(path, KIND, header, tensors)


def check_place(path: Path) -> None:
    """Refuse a path that a session could not be saved at.

    Raises:
        UsageError, InputNotFoundError, SashError: as `save` does.
    """
    with _told(path, "write"):
        sealed_file.check_place(path, KIND)


def load(path: Path, lm: LM) -> Saved:
    """What a file holds, to go on with `lm`, which has to be the model that it was saved with.

    Raises:
        InputNotFoundError: no such file, or it cannot be read.
        CheckpointError: it is no saved session of this version, or torn or damaged.
        UsageError: it was saved with another model, window, pins or numbers; the message says which.
        DoesNotFitError: there is no memory for it.
    """
    header = peek(path)
    how = _how(path, header)
    session = None
    if "session" in header:
        try:
            session = lm.open_session(**how)
        except PinsError as error:
            raise UsageError(
                f"{path} holds {how['pins']:,} pins, which {lm.name} has no room for: load it with the same --window"
            ) from error
        _check_same(path, header, session, lm.name)
    with _told(path, "read"):
        header, tensors = sealed_file.read(path, KIND)
    try:
        if session is not None:
            session.take_up(_state(header["session"], tensors))
        what = session if "conversation" not in header else _converse(header["conversation"], lm, session)
        notes = header["notes"]
        if what is None or not isinstance(notes, dict):
            raise TypeError("another type")
    except DoesNotFitError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, SashError) as error:
        raise CheckpointError(f"{path} contradicts itself: it has to be made anew") from error
    return Saved(what=what, model=str(header.get("model")), notes=notes)


def peek(path: Path) -> dict[str, Any]:
    """What a file says about itself, without its keys and values: "model" and "notes" among others.

    Raises:
        InputNotFoundError, CheckpointError: as `load` does.
    """
    with _told(path, "read"):
        return sealed_file.read_header(path, KIND)


@contextmanager
def _told(path: Path, doing: str) -> Iterator[None]:
    """Tell what the system refuses in one line."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            left = "is as it was before" if path.exists() else "is not written"
            raise DiskFullError(f"the disk is full: {path} {left}; make room, or save to another disk") from error
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            what = f"no folder {path.parent}: make it first" if doing == "write" else f"no file {path}"
            raise InputNotFoundError(f"there is {what}") from error
        if doing == "read":
            raise InputNotFoundError(f"cannot read {path}: {reason}") from error
        raise SashError(f"cannot write {path}: {reason}; what was there is as it was") from error


def _check_same(path: Path, header: Mapping[str, Any], session: Session, name: str) -> None:
    before, now = header.get("network"), identity(session.network, session.cache)
    if not isinstance(before, dict):
        raise CheckpointError(f"{path} does not say which network it is of")
    different = differences(before, now)
    if different:
        words, remedy = different[0]
        raise UsageError(
            f"{path} cannot go on with {name}: it was saved with {words}: {remedy}, or read the text again"
        )
    if before.get("by") != now["by"]:
        logger.warning("%s was saved by another version or processor: numbers may differ in their last digits", path)


def _how(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """How the session is opened: `LM.open_session`."""
    said = header.get("session")
    if not isinstance(said, dict):
        return {"pins": 0}
    how = {"pins": said.get("room"), "sees": said.get("sees"), "history": said.get("history"), "log": said.get("log")}
    log, pins = how["log"], how["pins"]
    typed = type(pins) is int and pins >= 0 and type(how["sees"]) is bool and type(how["history"]) is bool
    if not typed or not (type(log) is bool or (type(log) is int and log >= 0)):
        raise CheckpointError(f"{path} contradicts itself: it has to be made anew")
    return how


def _state(said: Mapping[str, Any], tensors: list[Tensor]) -> SessionState:
    known = [tensor for tensor in tensors[:3] if tensor.dtype == torch.int32 and tensor.dim() == 1]
    ids, unread, seen = (tuple(tensor.tolist()) for tensor in known)
    pinned = tuple(at for span in _spans(said["pinned"], said["room"]) for at in span)
    if type(said["kept"]) is not bool or type(said["tokens"]) is not int:
        raise TypeError("another type")
    return SessionState(
        tokens=said["tokens"],
        ids=ids if said["kept"] else None,
        unread=unread,
        seen=seen,
        pinned=pinned,
        seers=tuple(at for span in _spans(said["seers"], said["room"]) for at in span),
        row=RowState.rebuild(said["row"], tensors[3:]),
    )


def _conversation(talk: Conversation, *, read: bool) -> dict[str, Any]:
    """What was said; and, if what has `read` it is kept too, where answers end in it."""
    contract = talk.contract
    said = [dict(message) for message in talk.messages]
    marks = [mark for mark in talk.marks if read and list(mark.said) == said[: len(mark.said)]]
    return {
        "messages": said,
        "safe_prompt": talk.safe_prompt,
        "contract": {**asdict(contract), "pins": [pin.words for pin in contract.pins]},
        "room": talk.room,
        "sight": list(talk.sight.words),
        "marks": [[len(mark.said), mark.end, _pairs(mark.pins), _pairs(mark.seers)] for mark in marks],
    }


def _pairs(spans: tuple[range, ...]) -> list[list[int]]:
    return [[span.start, span.stop] for span in spans]


def _spans(pairs: Any, room: int) -> tuple[range, ...]:
    """Positions that are pinned: no more than there is room for, whatever a file says."""
    spans = tuple(range(first, end) for first, end in pairs)
    if any(span.start < 0 for span in spans) or sum(span.stop - span.start for span in spans) > room:
        raise ValueError("more pins than there is room for")
    return spans


def _converse(said: Mapping[str, Any], lm: LM, session: Session | None) -> Conversation:
    messages = said["messages"]
    if not all(isinstance(text, str) for message in messages for text in (message["role"], message["content"])):
        raise TypeError("messages are texts")
    room = said["room"]
    if type(room) is not int or type(said["safe_prompt"]) is not bool:
        raise TypeError("another type")
    marks = [
        Mark(tuple(map(dict, messages[:count])), end, *(_spans(one, room) for one in flags))
        for count, end, *flags in said["marks"]
    ]
    if not all(type(mark.end) is int and 0 < mark.end <= (session.tokens if session else 0) for mark in marks):
        raise ValueError("marks lie in the session")
    told = said["contract"]
    contract = Contract.of(told["pins"], first=told["first"], budget=told["budget"], overflow=told["overflow"])
    talk = lm.converse(contract, Sight.of(said.get("sight", [])), room=room, safe_prompt=said["safe_prompt"])
    talk.take_up(messages, session, marks)
    return talk
