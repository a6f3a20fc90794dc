"""Text as it arrives: files and standard input in pieces, never held whole, checked to be UTF-8."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from sash.errors import InputNotFoundError, TextEncodingError

BLOCK_BYTES = 1 << 16

Waiting = Callable[[], AbstractContextManager[None]]


def check_file(name: str) -> int | None:
    """Bytes of a regular file that is UTF-8 throughout; None for what can be read only once: "-", pipes, terminals.

    Raises:
        InputNotFoundError: no such file, or it cannot be read.
        TextEncodingError: it is not UTF-8.
    """
    if name == "-":
        return None
    path = Path(name).expanduser()
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    for _ in read_pieces(name):
        pass
    return path.stat().st_size


def read_pieces(name: str, waiting: Waiting = nullcontext) -> Iterator[str]:
    """The text of a file, or of standard input for "-", block by block as it arrives; no piece is empty.

    Line ends stay as they are; a byte order mark at the start is dropped.

    Args:
        name: the file.
        waiting: entered while there is nothing to do but wait for more.

    Raises:
        InputNotFoundError: no such file, or it cannot be read.
        TextEncodingError: it is not UTF-8; the message says where it stops being so.
    """
    if name == "-":
        yield from _decoded("standard input", _blocks(sys.stdin.buffer, waiting))
        return
    try:
        with Path(name).expanduser().open("rb", buffering=0) as file:
            yield from _decoded(name, _blocks(file, waiting))
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _blocks(file: IO[bytes], waiting: Waiting) -> Iterator[bytes]:
    # read1 gives what is there; read would wait until a block is full.
    read = getattr(file, "read1", file.read)
    while True:
        with waiting():
            block = read(BLOCK_BYTES)
        if not block:
            return
        yield block


def _decoded(where: str, blocks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, started = 0, False
    for block, final in _with_end(blocks):
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final)
        except UnicodeDecodeError as error:
            byte = done - held + error.start
            raise TextEncodingError(
                f"{where} is not UTF-8 (byte {byte:,}): convert it, e.g. iconv -f LATIN1 -t UTF-8"
            ) from error
        done += len(block)
        if text and not started:
            started, text = True, text.removeprefix("\ufeff")
        if text:
            yield text


def _with_end(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    for block in blocks:
        yield block, False
    yield b"", True


def _unreadable(name: str, error: Exception) -> InputNotFoundError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputNotFoundError(f"cannot read {name}: {reason}")


def trimmed(pieces: Iterable[str]) -> Iterator[str]:
    r"""A text without the white space at its start and end; what may be at the end is held back.

    >>> list(trimmed(["\n a", " \n", "b ", "\n"]))
    ['a', ' \nb']
    """
    held, started = "", False
    for piece in pieces:
        text = held + (piece if started else piece.lstrip())
        kept = text.rstrip()
        held = text[len(kept) :]
        if kept:
            started = True
            yield kept


def joined(texts: Iterable[Iterable[str]], *, paragraphs: bool) -> Iterator[str]:
    r"""Several texts one after the other.

    Args:
        texts: each in pieces.
        paragraphs: trim them and put a blank line between; otherwise they stay as they are, and where one does not
            end its last line, a line end is put before the next.

    >>> "".join(joined([["a\n"], ["b"], ["c"]], paragraphs=False))
    'a\nb\nc'
    >>> "".join(joined([["a\n"], ["b"]], paragraphs=True))
    'a\n\nb'
    """
    last = ""
    for text in texts:
        separator = ""
        if last:
            separator = "\n\n" if paragraphs else "" if last.endswith("\n") else "\n"
        for piece in trimmed(text) if paragraphs else text:
            if piece:
                last = separator + piece
                separator = ""
                yield last
