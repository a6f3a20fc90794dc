"""`sash serve` before it serves: what it refuses, and with which words."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sash.cli import serve as verb
from sash.errors import InputNotFoundError, UsageError

Sash = Callable[..., tuple[int, str, str]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that would be served by."""
    monkeypatch.delenv("SASH_API_KEY", raising=False)
    found: list[Any] = []

    def serve(settings: Any, load: Any) -> int:
        found.append(settings)
        return 0

    monkeypatch.setattr(verb, "serve", serve)
    return found


def test_the_settings_are_those_of_the_command_line(
    sash: Sash, served: list[Any], windowed_model: Path, tmp_path: Path
):
    flags = (
        "--port", "0", "--alias", "me", "--kv-memory", "2G", "--max-rows", "3", "--max-waiting", "0",
        "--snapshot-memory", "64M", "--snapshot-dir", tmp_path, "--strict-fields",
        "--origin", "https://example.org", "--drain", "1.5",
    )  # fmt: skip
    assert sash("serve", windowed_model, *flags)[0] == 0
    (settings,) = served
    assert (settings.model, settings.name, settings.names) == ("windowed", "me", ("me", "windowed"))
    assert (settings.host, settings.port, settings.kv_memory) == ("127.0.0.1", 0, 2 << 30)
    assert (settings.max_rows, settings.max_waiting, settings.drain_seconds) == (3, 0, 1.5)
    assert (settings.snapshot_memory, settings.snapshot_dir) == (64 << 20, tmp_path)
    assert (settings.strict_fields, settings.origins) == (True, ("https://example.org",))


def test_keys_come_from_everywhere_each_once(
    sash: Sash, served: list[Any], windowed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "keys").write_text("# ours\nk2\n\n  k3  \nk2\n")
    code, _, _ = sash("serve", windowed_model, "--port", "0", "--api-key", "k1", "--api-key-file", tmp_path / "keys")
    assert (code, served[-1].api_keys) == (0, ("k1", "k2", "k3"))
    assert "k1" not in repr(served[-1])
    monkeypatch.setenv("SASH_API_KEY", "k9")
    assert sash("serve", windowed_model, "--port", "0", "--host", "0.0.0.0")[0] == 0
    assert served[-1].api_keys == ("k9",)


def test_nobody_serves_everybody_by_mistake(sash: Sash, served: list[Any], windowed_model: Path):
    code, out, err = sash("serve", windowed_model, "--host", "0.0.0.0", "--port", "0")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--without-api-key" in err
    assert served == []
    assert sash("serve", windowed_model, "--host", "0.0.0.0", "--port", "0", "--without-api-key")[0] == 0
    assert len(served) == 1


def test_a_taken_port_is_told_before_anything_is_loaded(sash: Sash, served: list[Any], windowed_model: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, out, err = sash("serve", windowed_model, "--port", port)
    assert (code, out, served) == (2, "", [])
    assert err == (
        f"error: cannot listen on 127.0.0.1:{port} (address already in use): choose another --port or --host\n"
    )


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--port", "70000"), 2, "0 to 65535"),
        (("--host", "no such host", "--api-key", "k"), 2, "cannot listen on no such host"),
        (("--kv-memory", "much"), 2, "--kv-memory"),
        (("--drain", "-1"), 2, "--drain"),
        (("--drain", "nan"), 2, "--drain"),
        (("--origin", "example.org"), 2, "https://example.org"),
        (("--max-rows", "0"), 2, "max_rows"),
        (("--api-key-file", "/nowhere/keys"), 6, "/nowhere/keys"),
        (("--api-key", "schl\u00fcssel"), 2, "ASCII"),
        (("--window", "0"), 10, "window of 0"),
        (("--overlap", "8"), 2, "--overlap reads a window again for every few tokens, which a server does not"),
        (("--recall", "32", "--speculate", "lookup"), 2, "--recall and --speculate cannot be together"),
        (("--hierarchy", "4", "--snapshot-dir", "kept"), 2, "leave out --hierarchy or --snapshot-dir"),
    ],
)
def test_what_cannot_be_is_one_line(
    sash: Sash, served: list[Any], windowed_model: Path, flags: tuple[str, ...], code: int, words: str
):
    found, out, err = sash("serve", windowed_model, *(("--port", "0") if "--port" not in flags else ()), *flags)
    assert (found, out, err.count("\n"), served) == (code, "", 1, [])
    assert words in err


def test_a_model_that_is_none(sash: Sash, served: list[Any]):
    code, _, err = sash("serve", "nowhere", "--port", "0")
    assert (code, served) == (4, [])
    assert "nowhere" in err


@pytest.mark.parametrize("content", [b"", b"# none\n\n", b"\xff\xfe"])
def test_a_file_without_keys(tmp_path: Path, content: bytes):
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises((UsageError, InputNotFoundError), match="keys"):
        verb.keys(None, path)
