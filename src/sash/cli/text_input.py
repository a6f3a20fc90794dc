"""Text that a user names on the command line: a file, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from sash.errors import InputNotFoundError, TextEncodingError


def read_text(name: str) -> str:
    """The text of a file, or of standard input for "-". Line ends stay as they are; a byte order mark is dropped.

    Raises:
        InputNotFoundError: no such file, or it cannot be read.
        TextEncodingError: it is not UTF-8; the message says where it stops being so.
    """
    if name == "-":
        raw = sys.stdin.buffer.read()
    else:
        try:
            raw = Path(name).expanduser().read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InputNotFoundError(f"cannot read {name}: {reason}") from error
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        where = "standard input" if name == "-" else name
        raise TextEncodingError(
            f"{where} is not UTF-8 (byte {error.start:,}): convert it, e.g. iconv -f LATIN1 -t UTF-8"
        ) from error
