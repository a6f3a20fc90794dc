"""Models of the Hugging Face hub: which files of a repository are wanted, and bringing them here.

Listing, credentials and retries are `huggingface_hub`'s (HF_ENDPOINT and HF_TOKEN are honoured). Unlike its own
downloads into a directory, which drop a half-finished file, an interrupted file is continued where it stopped.
Pickle checkpoints are never fetched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sash.errors import DownloadError, ModelNotFoundError, UnsupportedError
from sash.hub.store import (
    CHUNK_BYTES,
    MANIFEST,
    Progress,
    StoredFile,
    disk_errors,
    ensure_room,
    flush_to_disk,
    parse_name,
)

_SIDE_FILE = re.compile(
    r"[\w.-]+\.json|[\w.-]+\.jinja|merges\.txt|vocab\.txt|tokenizer\.model(\.v\d\w*)?|tokenizer\.gguf"
    r"|(LICENSE|LICENCE|NOTICE)[\w.]*|README\.md"
)
_PICKLE = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository.

    Attributes:
        path: its name; only files at the top of a repository are ever wanted.
        size: bytes; None where the hub does not say.
        sha256: of a large file, in hex; None for a small one.
        blob: of a small file, the SHA-1 that git gives its content; None where the hub does not say.
    """

    path: str
    size: int | None
    sha256: str | None
    blob: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A repository at one commit: the wanted files, the licence, and what to load."""

    commit: str
    licence: str
    load: str
    files: tuple[RemoteFile, ...]


def offline() -> bool:
    """Whether the user forbade the network, by SASH_OFFLINE=1 or HF_HUB_OFFLINE=1."""
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in ("SASH_OFFLINE", "HF_HUB_OFFLINE")
    )


def wanted(name: str, paths: Iterable[str]) -> tuple[str, list[str]]:
    """Which files of a repository to fetch, and what to load: a GGUF file, or "." for the directory.

    Safetensors win over GGUF, and the Hugging Face layout over Mistral's own where a repository has both (each is
    the whole model). A folder that `sash quantize` wrote has its tokenizer in a GGUF file that is no model.

    Raises:
        UnsupportedError: only pickle checkpoints, several GGUF files to choose from, or no weights at all.

    >>> wanted("a/b", ["model.safetensors", "consolidated.safetensors", "pytorch_model.bin", "config.json"])
    ('.', ['config.json', 'model.safetensors'])
    """
    top = sorted(path for path in paths if re.fullmatch(r"[\w-][\w.-]*", path) and path != MANIFEST)
    side = [path for path in top if _SIDE_FILE.fullmatch(path)]
    tensors = [path for path in top if path.endswith(".safetensors")]
    native = [path for path in tensors if path.startswith("consolidated")]
    own = [path for path in tensors if path not in native]
    if own and "config.json" in top:
        return ".", sorted([path for path in side if path != "params.json"] + own)
    if tensors:
        return ".", sorted(side + (native or own))
    ggufs = [path for path in top if path.endswith(".gguf") and path not in side]
    if len(ggufs) == 1:
        return ggufs[0], sorted(side + ggufs)
    if ggufs:
        raise UnsupportedError(
            f"{name} holds {len(ggufs)} GGUF files ({', '.join(ggufs[:4])}{', ...' if len(ggufs) > 4 else ''}) and "
            "Sash cannot choose: download the one you want and give its path"
        )
    if any(path.endswith(_PICKLE) for path in top):
        raise UnsupportedError(
            f"{name} has only pickle checkpoints, which can run code when they are read: convert it to safetensors "
            "(with transformers: `model.save_pretrained(DIR)`) and give the directory"
        )
    raise UnsupportedError(f"{name} holds no weights that Sash reads (.safetensors, .gguf) at its top")


def look_up(name: str) -> Snapshot:
    """Ask the hub for a repository's commit, licence and files.

    Raises:
        ModelNotFoundError: no such repository or revision, or it is not yours to read.
        DownloadError: the hub cannot be reached.
        UnsupportedError: see `wanted`.
    """
    import huggingface_hub

    repo, revision = parse_name(name)
    with _hub_errors(name):
        api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        info = api.model_info(repo, revision=revision, files_metadata=True)
    if not info.sha or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
        raise DownloadError(f"the hub names no commit for {name}: try again later")
    remote = {
        sibling.rfilename: RemoteFile(
            path=sibling.rfilename,
            size=sibling.size,
            sha256=sibling.lfs.sha256 if sibling.lfs else None,
            blob=None if sibling.lfs else sibling.blob_id,
        )
        for sibling in info.siblings or ()
    }
    load, paths = wanted(name, remote)
    licence = info.card_data.get("license") if info.card_data else None
    return Snapshot(
        commit=info.sha,
        licence=str(licence or "see the model's page"),
        load=load,
        files=tuple(remote[path] for path in paths),
    )


def fetch(name: str, snapshot: Snapshot, work: Path, progress: Progress) -> tuple[Path, tuple[StoredFile, ...]]:
    """Bring the files of a snapshot into a directory below `work`.

    Unfinished files stay in `work` and are continued by the next pull. `progress` is told of one phase, in bytes.

    Returns:
        The directory and what a manifest says of its files.

    Raises:
        DownloadError: the hub cannot be reached, or a file is not what the hub states.
        DiskFullError: no room.
    """
    files = work / snapshot.commit
    with disk_errors(files):
        for other in work.iterdir():
            # Another commit's leftovers can no longer be continued.
            if other != files:
                shutil.rmtree(other)
        files.mkdir(exist_ok=True)
    done = {file.path: _size(files / file.path) + _size(_part(files, file)) for file in snapshot.files}
    total = sum(file.size or 0 for file in snapshot.files)
    ensure_room(files, max(0, total - sum(done.values())))
    progress.begin(f"downloading (licence: {snapshot.licence})", total)
    return files, tuple(_fetch_file(name, snapshot.commit, file, files, progress) for file in snapshot.files)


def _part(directory: Path, file: RemoteFile) -> Path:
    return directory / f"{file.path}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_file(name: str, commit: str, file: RemoteFile, directory: Path, progress: Progress) -> StoredFile:
    """Bring one file, going on from its `.part`, check it, and give it its name."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    target, part = directory / file.path, _part(directory, file)
    if target.is_file():
        progress.advance(_size(target))
        return StoredFile(path=file.path, size=_size(target), sha256=_digests(target)[0])
    have = _size(part)
    if file.size is not None and have > file.size:
        part.unlink()
        have = 0
    progress.advance(have)
    repo, _ = parse_name(name)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    with _hub_errors(name), disk_errors(part), part.open("ab" if have else "wb") as out, _quiet_bars():
        http_get(
            hf_hub_url(repo, file.path, revision=commit, endpoint=endpoint),
            _Counted(out, progress),  # type: ignore[arg-type]
            resume_size=have,
            headers=build_hf_headers(),
            expected_size=file.size,
        )
        flush_to_disk(out)
    sha256, blob = _digests(part)
    if (file.sha256 and sha256 != file.sha256) or (file.blob and blob != file.blob):
        part.unlink()
        raise DownloadError(f"{file.path} of {name} arrived broken (its checksum differs): pull again")
    part.rename(target)
    return StoredFile(path=file.path, size=_size(target), sha256=sha256)


def _digests(path: Path) -> tuple[str, str]:
    """The SHA-256 of a file, and the SHA-1 that git gives its content."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {_size(path)}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            sha256.update(piece)
            blob.update(piece)
    return sha256.hexdigest(), blob.hexdigest()


class _Counted:
    """A file that tells a `Progress` of every write; all else is the file's own."""

    def __init__(self, file: IO[bytes], progress: Progress) -> None:
        self._file = file
        self._progress = progress

    def write(self, piece: bytes) -> int:
        """Write, and tell of it."""
        self._progress.advance(len(piece))
        return self._file.write(piece)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Without the hub client's own progress bars."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    group = "huggingface_hub.http_get"
    shown = not are_progress_bars_disabled(group)
    if shown:
        disable_progress_bars(group)
    try:
        yield
    finally:
        if shown:
            enable_progress_bars(group)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises into one-line errors with a remedy."""
    from huggingface_hub import errors

    repo, revision = parse_name(name)
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo} is gated: accept its terms on its page, then set HF_TOKEN to a token of your account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the hub has no {repo}, or it is private: check the name, or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo} has no revision {revision!r}: leave out @{revision} for the newest"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ModelNotFoundError(
                f"the hub refuses {repo} ({status}): set HF_TOKEN to a token that may read it"
            ) from error
        raise DownloadError(f"the hub answered {status} for {repo}: pull again later; what arrived is kept") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise DownloadError(
            f"the hub cannot be reached ({type(error).__name__}: {error}): check the network and HF_ENDPOINT, then "
            "pull again; what arrived is kept"
        ) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(f"{repo!r} is not a name of the hub ({error})") from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE forbids the network: unset it and pull again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DownloadError(f"{repo} did not arrive whole ({error}): pull again to go on") from error
