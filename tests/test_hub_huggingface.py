"""Pulling from the Hugging Face hub: against a local server of its protocol, interrupted, refused, lying."""

import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from sash import hub
from sash.errors import DownloadError, ModelNotFoundError, UnsupportedError
from sash.hub import huggingface, store

COMMIT = "1" * 40
OTHER = "2" * 40
WEIGHTS = os.urandom(300_000)
REPO = {
    "config.json": b'{"model_type": "mistral"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "LICENSE": b"free",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle",
    "consolidated.safetensors": b"the same weights again",
    "params.json": b"{}",
    "onnx/model.onnx": b"another format",
    "manifest.json": b"in the way of ours",
    "../../evil.json": b"outside",
    ".gitattributes": b"",
}


class Hub(ThreadingHTTPServer):
    """One repository, `org/tiny`, behind the hub's protocol; tests set its faults."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = dict(REPO)
        self.commits = {"main": COMMIT, "v1": OTHER, COMMIT: COMMIT, OTHER: OTHER}
        self.refusal = None  # (status, X-Error-Code) that every request is answered with
        self.cut_once_after = None  # bytes of the weights after which the connection is dropped, once
        self.damaged = None  # name of a file that is served with one byte changed
        self.asked = []  # (method, path, Range header, Authorization header)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def gets(self, file):
        """The Range headers of all downloads of a file."""
        return [span for method, path, span, _ in self.asked if method == "GET" and path.endswith(f"/{file}")]


class Answer(BaseHTTPRequestHandler):
    """Answers /api/models/ID[/revision/REV] and /ID/resolve/REV/FILE."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Say nothing."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.server.refusal:
            status, code = self.server.refusal
            return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused"})
        if match := re.fullmatch(r"/api/models/org/tiny(?:/revision/(.+))?", path):
            return self.send_listing(self.server.commits.get(match[1] or "main"))
        if match := re.fullmatch(r"/org/tiny/resolve/([0-9a-f]{40})/(.+)", path):
            return self.send_file(match[1], match[2])
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send_listing(self, commit):
        if commit is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, data in self.server.files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            siblings.append({"rfilename": name, "size": len(data), "blobId": blob})
            if name.endswith(".safetensors"):
                siblings[-1]["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134
                }  # fmt: skip
        body = {
            "id": "org/tiny", "modelId": "org/tiny", "sha": commit, "private": False, "tags": [], "downloads": 0,
            "cardData": {"license": "apache-2.0"}, "siblings": siblings,
        }  # fmt: skip
        return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def send_file(self, commit, name):
        data = self.server.files.get(name)
        if data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(data).hexdigest()
        if name == self.server.damaged:
            data = bytes([data[0] ^ 1]) + data[1:]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(span[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.server.cut_once_after if name == "model.safetensors" else None
        if cut is not None and self.command == "GET":
            self.server.cut_once_after = None
        return self.send(status, data[start:], headers, cut)

    def send(self, status, body, headers, cut=None):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))
    for name in ("SASH_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    with Hub() as hub_server:
        thread = threading.Thread(target=hub_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
        yield hub_server
        hub_server.shutdown()
        thread.join()


def no_waiting(monkeypatch):
    """Retries of the hub's client follow at once."""
    for module in ("huggingface_hub.file_download", "huggingface_hub.utils._http"):
        import importlib
        import time

        monkeypatch.setattr(
            importlib.import_module(module), "time", SimpleNamespace(**(vars(time) | {"sleep": lambda seconds: None}))
        )


class Watcher:
    """A progress that counts, and raises `error` once more than `patience` bytes have come."""

    def __init__(self, patience=10**9, error=KeyboardInterrupt):
        self.total = self.told = 0
        self.patience, self.error = patience, error

    def begin(self, label, total):
        self.total, self.told = total, 0

    def advance(self, count):
        self.told += count
        if self.told > self.patience:
            raise self.error


def test_a_pull_takes_what_a_model_needs_and_nothing_else(server):
    watcher = Watcher()
    path = hub.pull("org/tiny", watcher)
    wanted = {"config.json", "generation_config.json", "tokenizer.json", "LICENSE", "model.safetensors"}
    assert {file.name for file in path.iterdir()} == wanted | {"manifest.json"}
    assert all((path / name).read_bytes() == REPO[name] for name in wanted)
    assert watcher.told == watcher.total == sum(len(REPO[name]) for name in wanted)
    (model,) = hub.installed()
    assert (model.name, model.path, model.licence) == ("org/tiny", path, "apache-2.0")
    assert COMMIT in model.source
    manifest = store.read_manifest(path)
    assert {file.path: file.sha256 for file in manifest.files} == {
        name: hashlib.sha256(REPO[name]).hexdigest() for name in wanted
    }
    assert not store.partial_directory("org/tiny").exists()
    assert not (path.parents[1] / "evil.json").exists()
    asked = len(server.asked)
    assert hub.pull("org/tiny") == hub.resolve("org/tiny") == path
    assert len(server.asked) == asked


def test_a_revision_is_a_model_of_its_own(server):
    hub.pull("org/tiny")
    path = hub.pull("org/tiny@v1")
    assert OTHER in next(model.source for model in hub.installed() if model.name == "org/tiny@v1")
    assert hub.resolve("org/tiny@v1") == path != hub.resolve("org/tiny")


def test_an_interrupted_file_is_continued_by_the_next_pull(server):
    small = sum(len(REPO[name]) for name in ("LICENSE", "config.json", "generation_config.json"))
    with pytest.raises(KeyboardInterrupt):
        hub.pull("org/tiny", Watcher(patience=small + 120_000))
    assert not hub.is_pulled("org/tiny")
    have = (store.partial_directory("org/tiny") / COMMIT / "model.safetensors.part").stat().st_size
    assert 0 < have < len(WEIGHTS)
    watcher = Watcher()
    path = hub.pull("org/tiny", watcher)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert server.gets("model.safetensors") == [None, f"bytes={have}-"]
    assert server.gets("config.json") == [None]
    assert watcher.told == watcher.total


def test_a_dropped_connection_is_taken_up_within_the_same_pull(server, monkeypatch):
    no_waiting(monkeypatch)
    server.cut_once_after = 100_000
    path = hub.pull("org/tiny")
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    first, again = server.gets("model.safetensors")
    assert first is None
    assert re.fullmatch(r"bytes=\d+-", again)


def test_leftovers_of_another_commit_are_not_continued(server):
    with pytest.raises(KeyboardInterrupt):
        hub.pull("org/tiny", Watcher(patience=150_000))
    server.commits["main"] = OTHER
    server.files["model.safetensors"] = newer = os.urandom(200_000)
    assert (hub.pull("org/tiny") / "model.safetensors").read_bytes() == newer
    assert server.gets("model.safetensors") == [None, None]


def test_a_file_that_arrives_broken_is_dropped_and_fetched_again(server):
    for name in ("config.json", "model.safetensors"):
        server.damaged = name
        with pytest.raises(DownloadError, match=f"{re.escape(name)} of org/tiny arrived broken"):
            hub.pull("org/tiny")
        assert not hub.is_pulled("org/tiny")
        assert not (store.partial_directory("org/tiny") / COMMIT / f"{name}.part").exists()
    server.damaged = None
    assert (hub.pull("org/tiny") / "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_of_the_environment_is_sent(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.pull("org/tiny")
    assert {authorization for *_, authorization in server.asked} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("refusal", "error", "words"),
    [
        ((401, "RepoNotFound"), ModelNotFoundError, "the hub has no org/tiny, or it is private"),
        ((404, "RepoNotFound"), ModelNotFoundError, "the hub has no org/tiny, or it is private"),
        ((403, "GatedRepo"), ModelNotFoundError, "org/tiny is gated: accept its terms"),
        ((403, ""), ModelNotFoundError, "the hub refuses org/tiny (403): set HF_TOKEN"),
        ((500, ""), DownloadError, "the hub answered 500 for org/tiny"),
    ],
)
def test_refusals_become_one_line_with_a_remedy(server, monkeypatch, refusal, error, words):
    no_waiting(monkeypatch)
    server.refusal = refusal
    with pytest.raises(error, match=re.escape(words)) as caught:
        hub.pull("org/tiny")
    assert "\n" not in str(caught.value)
    assert not hub.is_pulled("org/tiny")


def test_a_missing_revision_is_named(server):
    with pytest.raises(ModelNotFoundError, match="org/tiny has no revision 'v9'"):
        hub.pull("org/tiny@v9")


def test_a_hub_that_cannot_be_reached_is_a_download_error(server, monkeypatch):
    no_waiting(monkeypatch)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"the hub cannot be reached .* check the network and HF_ENDPOINT"):
        hub.pull("org/tiny")


def test_a_single_gguf_is_what_is_loaded(server):
    server.files = {"tiny.Q4_0.gguf": b"GGUF", "README.md": b"# Tiny", "config.json": b"{}"}
    path = hub.pull("org/tiny")
    assert path.name == "tiny.Q4_0.gguf"
    assert path.read_bytes() == b"GGUF"
    assert hub.installed()[0].path == path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a.gguf", "b.gguf"], "holds 2 GGUF files (a.gguf, b.gguf) and Sash cannot choose"),
        (["pytorch_model.bin", "config.json"], "only pickle checkpoints"),
        (["consolidated.00.pth"], "only pickle checkpoints"),
        (["README.md"], "holds no weights"),
        (["sub/model.safetensors"], "holds no weights"),
    ],
)
def test_repositories_without_one_readable_model_are_refused(files, words):
    with pytest.raises(UnsupportedError, match=re.escape(words)):
        huggingface.wanted("org/tiny", files)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json", "config.json"],
            "all",
        ),
        (["consolidated.safetensors", "params.json", "tokenizer.model.v3"], "all"),
        (["model.safetensors", "sash.json", "tokenizer.gguf", "LICENSE"], "all"),
        (["model.safetensors", "x.gguf", "config.json", "flax_model.msgpack"], ["config.json", "model.safetensors"]),
        (["consolidated.safetensors", "params.json", "model.safetensors"], ["consolidated.safetensors", "params.json"]),
    ],
)
def test_what_is_taken_from_a_repository(files, taken):
    assert huggingface.wanted("org/tiny", files) == (".", sorted(files if taken == "all" else taken))


def test_no_room_is_said_before_a_file_is_fetched(server, monkeypatch):
    from sash.errors import DiskFullError

    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match="are needed in"):
        hub.pull("org/tiny")
    assert server.gets("model.safetensors") == []
