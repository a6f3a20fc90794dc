"""The store and the catalogue: names, what is found, what is refused, what removal frees."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sash import hub
from sash.errors import DownloadError, InputNotFoundError, ModelNotFoundError, SashError
from sash.hub import store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SASH_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


def put(name: str, content: bytes = b"weights", load: str = "model.gguf", **changes: object) -> Path:
    """Put a model into the store as a pull would."""
    directory = store.model_directory(name)
    directory.mkdir(parents=True)
    (directory / "model.gguf").write_bytes(content)
    manifest = {
        "name": name,
        "source": "a test",
        "licence": "MIT",
        "load": load,
        "files": [{"path": "model.gguf", "size": len(content), "sha256": "0" * 64}],
        "pulled_at": "2026-01-01T00:00:00+00:00",
    }
    (directory / store.MANIFEST).write_text(json.dumps(manifest | changes))
    return directory


def test_the_catalogue_is_complete_and_consistent():
    assert {"gemma-3-270m", "smollm2-135m-instruct"} <= set(hub.catalogue())
    for name, entry in hub.catalogue().items():
        assert store.parse_name(name) == (name, None)
        packages = {package.name for package in entry.packages}
        assert entry.load in {file.path for file in entry.files}
        assert {part.package for file in entry.files for part in file.parts} == packages
        for stated in (*entry.packages, *entry.files):
            assert stated.size > 0
            assert re.fullmatch("[0-9a-f]{64}", stated.sha256)
        assert entry.download_bytes == sum(package.size for package in entry.packages)
        assert entry.licence
        assert entry.licence_url.startswith("https://")


def test_a_path_that_exists_wins_over_a_pulled_model(tmp_path, monkeypatch):
    directory = put("gemma-3-270m")
    assert hub.resolve("gemma-3-270m") == directory / "model.gguf"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma-3-270m").mkdir()
    assert hub.resolve("gemma-3-270m") == Path("gemma-3-270m")


def test_a_model_that_loads_as_a_directory_resolves_to_it():
    directory = put("org/name@v1", load=".")
    assert hub.resolve("org/name@v1") == directory
    assert directory.name == "org--name@v1"
    with pytest.raises(ModelNotFoundError):
        hub.resolve("org/name")


def test_a_catalogue_model_that_is_not_pulled_names_the_remedy_with_size_and_licence():
    with pytest.raises(
        ModelNotFoundError, match=r"`sash pull gemma-3-270m` \(227\.2 MiB to download, licence: Gemma Terms of Use\)"
    ):
        hub.resolve("gemma-3-270m")


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("gema-3-270", ModelNotFoundError, "did you mean gemma-3-270m?"),
        ("Gemma-3-270M", ModelNotFoundError, "did you mean gemma-3-270m"),
        ("zzzz", ModelNotFoundError, "`sash ls` shows"),
        ("org/name", ModelNotFoundError, "`sash pull org/name`"),
        ("./nothing", InputNotFoundError, "no file or directory ./nothing"),
        ("nothing.gguf", InputNotFoundError, "no file or directory nothing.gguf"),
        ("", ModelNotFoundError, "not a model's name"),
    ],
)
def test_what_cannot_be_resolved_says_why_in_one_line(name, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "a/../b",
        "a/b/c",
        "/etc",
        "a//b",
        "-rf",
        ".partial",
        "a\\b",
        "a\0b",
        "a b",
        "a--b",
        "x@",
        "@x",
        "a\n",
    ],
)
@pytest.mark.parametrize("verb", [hub.is_pulled, hub.pull, hub.remove, store.model_directory])
def test_names_that_no_model_can_have_are_refused_by_every_verb(verb, name):
    with pytest.raises(ModelNotFoundError):
        verb(name)


@given(st.text(alphabet=st.sampled_from("ab/.@-_\\\0 ~:C"), max_size=12) | st.text(max_size=12))
def test_no_name_escapes_the_store(name):
    try:
        directory = store.model_directory(name)
    except ModelNotFoundError:
        return
    assert directory.parent == store.models_root()
    assert directory.resolve().parent == store.models_root().resolve()
    assert not directory.name.startswith(".")


def test_a_model_is_there_only_while_it_is_whole():
    directory = put("tiny")
    assert hub.is_pulled("tiny")
    assert [(model.name, model.path, model.size) for model in hub.installed()] == [
        ("tiny", directory / "model.gguf", len(b"weights"))
    ]
    (directory / "model.gguf").write_bytes(b"weight")
    assert not hub.is_pulled("tiny")
    assert hub.installed() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [{"path": "../../secret", "size": 6, "sha256": ""}]},
        {"load": "/etc/passwd"},
        {"load": "../other"},
        {"files": 3},
        {"files": [{"size": 1}]},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_lies_or_reaches_outside_counts_as_not_pulled(home, changes):
    (home / "models").mkdir(parents=True)
    (home / "secret").write_bytes(b"secret")
    put("tiny", **changes)
    assert not hub.is_pulled("tiny")
    assert hub.installed() == []


def test_removing_frees_the_model_and_what_an_unfinished_pull_left():
    directory = put("tiny", content=b"x" * 1000)
    manifest_bytes = (directory / store.MANIFEST).stat().st_size
    partial = store.partial_directory("tiny")
    partial.mkdir(parents=True)
    (partial / "half").write_bytes(b"y" * 50)
    assert hub.remove("tiny") == 1000 + manifest_bytes + 50
    assert not directory.exists()
    assert not partial.exists()
    with pytest.raises(ModelNotFoundError, match="tiny is not in the store"):
        hub.remove("tiny")


def test_a_similar_name_that_is_pulled_and_in_the_catalogue_is_named_once():
    put("gemma-3-270m")
    with pytest.raises(ModelNotFoundError, match=r"\(did you mean gemma-3-270m\?\)"):
        hub.resolve("gemma-3-270")


def test_removing_a_misspelt_name_suggests_what_is_there():
    put("org/tiny")
    with pytest.raises(ModelNotFoundError, match=r"did you mean org/tiny\?"):
        hub.remove("org/tinny")
    assert hub.is_pulled("org/tiny")


@pytest.mark.parametrize("switch", ["SASH_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("name", ["gemma-3-270m", "org/name"])
def test_offline_pulls_are_refused_before_anything_is_tried(home, monkeypatch, switch, name):
    monkeypatch.setenv(switch, "1")
    with pytest.raises(DownloadError, match="forbids the network"):
        hub.pull(name)
    assert not home.exists()
    put(name)
    assert hub.pull(name) == hub.resolve(name)


def test_pulling_an_unknown_name_names_the_closest(home):
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2-135m-instruct"):
        hub.pull("smollm2")
    assert not home.exists()


def test_without_sash_home_the_users_cache_directory_is_used(monkeypatch):
    import platformdirs

    monkeypatch.delenv("SASH_HOME")
    assert store.models_root() == Path(platformdirs.user_cache_dir("sash", appauthor=False)) / "models"


def test_every_error_here_is_one_that_the_command_line_knows():
    for error in (ModelNotFoundError, InputNotFoundError, DownloadError):
        assert issubclass(error, SashError)
        assert error.exit_code > 2
