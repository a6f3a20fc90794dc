"""`sash ls`."""

import json

import pytest

from sash import cli, hub
from sash.hub import store


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SASH_HOME", str(tmp_path))
    directory = store.model_directory("org/tiny")
    directory.mkdir(parents=True)
    (directory / "model.gguf").write_bytes(bytes(2048))
    store.write_manifest(
        directory,
        store.Manifest(
            name="org/tiny",
            source="a test",
            licence="MIT",
            load="model.gguf",
            files=(store.StoredFile(path="model.gguf", size=2048, sha256="0" * 64),),
            pulled_at="2026-01-01T00:00:00+00:00",
        ),
    )
    return tmp_path


def test_the_table_shows_what_is_here_and_what_can_be_pulled(capsys):
    assert cli.execute(["ls"]) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split() == ["NAME", "SIZE", "LICENCE", "PATH"]
    assert [row.split()[0] for row in rows] == sorted(["org/tiny", *hub.catalogue()])
    here = next(row for row in rows if row.startswith("org/tiny"))
    assert here.split()[1:] == ["2.0", "KiB", "MIT", str(hub.resolve("org/tiny"))]
    gemma = next(row for row in rows if row.startswith("gemma-3-270m"))
    assert "Gemma Terms of Use" in gemma
    assert gemma.endswith("(sash pull gemma-3-270m)")
    assert len({row.index(path) for row, path in ((here, "/"), (gemma, "(sash"))} | {head.index("PATH")}) <= 2
    assert err == ""


def test_json_carries_the_same_with_sizes_in_bytes(capsys):
    assert cli.execute(["ls", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["org/tiny"] == {
        "name": "org/tiny",
        "pulled": True,
        "size": 2048,
        "licence": "MIT",
        "path": str(hub.resolve("org/tiny")),
        "source": "a test",
        "pulled_at": "2026-01-01T00:00:00+00:00",
    }
    gemma = rows["gemma-3-270m"]
    assert (gemma["pulled"], gemma["path"], gemma["size"]) == (False, None, hub.catalogue()["gemma-3-270m"].size)
    assert set(rows) == {"org/tiny", *hub.catalogue()}
