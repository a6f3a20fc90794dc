"""Where pulled models live, and how a model gets there whole or not at all.

    $SASH_HOME/models/NAME/            the files of a model and its manifest.json
    $SASH_HOME/models/.partial/NAME/   what an unfinished pull has got so far; the next pull goes on from it
    $SASH_HOME/models/.locks/NAME      held while a model is pulled or removed

Without SASH_HOME the user's cache directory is used. NAME is the model's name; the slash of `org/name` becomes `--`,
which no name of a hub contains. A model appears by one rename of a finished directory, so that a reader never sees
half a model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from sash.errors import DiskFullError, ModelNotFoundError, is_disk_full

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
SPARE_BYTES = 16 << 20
"""Room that is left free beside what a pull needs."""

_SEGMENT = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<repo>{_SEGMENT}(?:/{_SEGMENT})?)(?:@(?P<revision>{_SEGMENT}(?:/{_SEGMENT}){{0,3}}))?")


class Progress(Protocol):
    """What a pull tells its caller. Both methods may be called from the thread that pulls only."""

    def begin(self, label: str, total: int) -> None:
        """A phase starts: `label` names it for people, `total` is in bytes."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the phase are done."""


class Unwatched:
    """A `Progress` that nobody looks at."""

    def begin(self, label: str, total: int) -> None:
        """Do nothing."""

    def advance(self, count: int) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file of a model: its name in the model's directory, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says of a pulled model.

    Attributes:
        name: the name that it was pulled by.
        source: where it came from, for people.
        licence: name of its licence.
        load: what to load, relative to the model's directory: a file, or "." for the directory itself.
        files: every file but the manifest.
        pulled_at: time of the pull, ISO 8601, UTC.
    """

    name: str
    source: str
    licence: str
    load: str
    files: tuple[StoredFile, ...]
    pulled_at: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def parse_name(name: str) -> tuple[str, str | None]:
    """The repository and the revision of a model's name.

    Raises:
        ModelNotFoundError: a name that no model can have. Whatever passes can stand in a path.

    >>> parse_name("gemma-3-270m"), parse_name("mistralai/Mistral-7B-v0.1@main")
    (('gemma-3-270m', None), ('mistralai/Mistral-7B-v0.1', 'main'))
    """
    match = _NAME.fullmatch(name)
    if match is None or ".." in name or "--" in name:
        raise ModelNotFoundError(f"{name!r} is not a model's name: use a name of `sash ls`, org/name[@rev] or a path")
    return match["repo"], match["revision"]


def directory_name(name: str) -> str:
    """The directory of a model, relative to the store.

    >>> directory_name("mistralai/Mistral-7B-v0.1@refs/pr/3")
    'mistralai--Mistral-7B-v0.1@refs--pr--3'
    """
    parse_name(name)
    return name.replace("/", "--")


def models_root() -> Path:
    """The directory of all models: `$SASH_HOME/models`, or `models` in the user's cache directory."""
    home = os.environ.get("SASH_HOME")
    if home:
        return Path(home).expanduser() / "models"
    import platformdirs

    return Path(platformdirs.user_cache_dir("sash", appauthor=False)) / "models"


def model_directory(name: str) -> Path:
    """Where the model of that name lies or would lie."""
    return models_root() / directory_name(name)


def partial_directory(name: str) -> Path:
    """Where an unfinished pull of that model keeps what it has."""
    return models_root() / ".partial" / directory_name(name)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a model that is there whole: readable, and every file of the size that it states.

    Raises:
        PermissionError: the store is somebody else's.
    """
    try:
        raw = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files = tuple(StoredFile(**file) for file in raw.pop("files"))
        manifest = Manifest(**raw, files=files)
        names = [file.path for file in files] + [manifest.load]
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("a file outside of the model's directory")
        whole = all((directory / file.path).stat().st_size == file.size for file in files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("the manifest in %s cannot be used (%s); pull the model again", directory, error)
        return None
    return manifest if whole else None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` and make sure that it has reached the disk."""
    with (directory / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.write("\n")
        flush_to_disk(file)


def flush_to_disk(file: IO[Any]) -> None:
    """Flush a file and wait until the disk has it."""
    file.flush()
    os.fsync(file.fileno())


def publish(source: Path, name: str) -> Path:
    """Make a finished directory the model of that name by one rename; what stood there before is removed."""
    target = model_directory(name)
    old = models_root() / ".partial" / f".old-{uuid.uuid4().hex}"
    if target.exists():
        target.rename(old)
    source.rename(target)
    if os.name == "posix":
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    shutil.rmtree(old, ignore_errors=True)
    return target


def discard(directory: Path) -> int:
    """Remove a directory, out of sight first; returns the bytes freed."""
    if not directory.is_dir():
        return 0
    freed = directory_bytes(directory)
    hidden = models_root() / ".partial" / f".old-{uuid.uuid4().hex}"
    hidden.parent.mkdir(parents=True, exist_ok=True)
    directory.rename(hidden)
    shutil.rmtree(hidden)
    return freed


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory, which may be changing meanwhile."""
    total = 0
    for folder, _, files in os.walk(directory):
        for file in files:
            try:
                total += os.lstat(os.path.join(folder, file)).st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of a model; a second process waits here until the first is done."""
    from filelock import FileLock, Timeout

    path = models_root() / ".locks" / directory_name(name)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is pulling or removing %s: waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def ensure_room(directory: Path, needed: int) -> None:
    """Check that a directory's disk has room for `needed` bytes more.

    Raises:
        DiskFullError: it has not.
    """
    free = shutil.disk_usage(directory).free
    if free < needed + SPARE_BYTES:
        raise DiskFullError(
            f"{size_text(needed + SPARE_BYTES)} are needed in {directory} and {size_text(free)} are free: "
            "make room, or point SASH_HOME at another disk"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk that is met while writing below `path` into its one-line error; other errors pass."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(models_root()).free if models_root().is_dir() else 0
        raise DiskFullError(
            f"the disk is full ({size_text(free)} are free) while writing {path}: make room, or point SASH_HOME at "
            "another disk, and pull again; what arrived is kept"
        ) from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex, read in bounded pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(count: int) -> str:
    """Bytes for people, in binary units.

    >>> size_text(999), size_text(253113024), size_text(14_483_464_192)
    ('999 B', '241.4 MiB', '13.5 GiB')
    """
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
