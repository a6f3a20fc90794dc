"""`sash eval passkey`, `needles` and `distance` on a small random model, as a user asks for them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

Sash = Callable[..., tuple[int, str, str]]
TEXT = "It was the best of times,\nit was the worst of times.\n\n" * 8
QUICK = ["-l", "2w,260", "-d", "0,50", "--trials", "2", "--window", "128"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_table_and_a_file_say_the_same(sash: Sash, full_model: Path, text: Path, tmp_path: Path):
    flags = ["eval", "passkey", full_model, "--text", text, *QUICK, "--methods", "full,window,truncate"]
    code, out, err = sash(*flags, "--csv", tmp_path / "cells.csv", "--json")
    found = json.loads(out)
    assert (code, err, found["window"], found["ablation"]) == (0, "", 128, True)
    kinds = {(cell["method"], cell["length"], cell["depth"]) for cell in found["results"]}
    assert kinds == {(m, n, d) for m in ("full", "window", "truncate") for n in (256, 260) for d in (0.0, 0.5)}
    with (tmp_path / "cells.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["method"], int(line["right"]), int(line["of"])) for line in lines] == [
        (cell["method"], cell["right"], cell["of"]) for cell in found["results"]
    ]
    code, out, err = sash(*flags)
    rows = out.splitlines()
    assert code == 0
    assert rows[0] == "passkey, window 128: right answers in percent, by depth; 2 prompts each"
    assert rows[1].split()[:5] == ["task", "length", "method", "0%", "50%"]
    assert len(rows) == 2 + 6 + 1
    assert "256 (2 W)" in out
    assert "--window 128 is an ablation" in rows[-1]


def test_the_same_seed_finds_the_same(sash: Sash, full_model: Path, text: Path):
    flags = ["eval", "needles", full_model, "--text", text, *QUICK, "-m", "window", "--facts", "2", "--json"]
    one, other = (json.loads(sash(*flags, "--seed", "5")[1])["results"] for _ in range(2))
    assert [cell | {"seconds": 0} for cell in one] == [cell | {"seconds": 0} for cell in other]


def test_distances_in_windows_and_tokens(sash: Sash, full_model: Path, text: Path):
    flags = ["--window", "128", "-d", "127,1w,2w", "--trials", "1", "--tasks", "copying,format"]
    code, out, _ = sash("eval", "distance", full_model, "--text", text, *flags, "--json")
    cells = json.loads(out)["results"]
    assert code == 0
    assert [cell["distance"] for cell in cells if cell["method"] == "full"] == [127, 127, 128, 128, 256, 256]
    assert {cell["task"] for cell in cells} == {"copying", "format"}
    assert {cell["depth"] for cell in cells} == {None}
    _, out, _ = sash("eval", "distance", full_model, "--text", text, *flags)
    assert out.splitlines()[1].split()[3:9] == ["0.992", "W", "1", "W", "2", "W"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-l", "1w"], "fits the window of 128"),
        (["-l", "ten"], "--lengths takes"),
        (["-l", ""], "--lengths takes sizes"),
        (["-d", "101"], "--depths takes percents"),
        (["-m", "window,hope"], "'hope' is no method"),
        (["--trials", "0"], "1 or more"),
        (["--csv", "none/cells.csv"], "no folder none"),
        (["--csv", "."], "is a folder"),
        (["--figure", "map.gif"], ".svg or .png"),
        (["-l", "2w", "-m", "pins", "--window", "100"], "the budget is 50"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(sash: Sash, full_model: Path, text: Path, flags, message: str):  # type: ignore[no-untyped-def]
    code, out, err = sash("eval", "passkey", full_model, "--text", text, "--window", "128", *flags)
    assert code != 0
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_model_without_a_window_wants_one(sash: Sash, full_model: Path, text: Path):
    code, _, err = sash("eval", "passkey", full_model, "--text", text)
    assert code != 0
    assert "no window of its own: give one (--window N)" in err
    code, _, err = sash("eval", "passkey", full_model, "--text", text, "--window", "full")
    assert code != 0
    assert "lengths are told in windows" in err


def test_without_matplotlib_a_figure_is_refused_before_anything_is_measured(
    sash: Sash, full_model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = sash("eval", "passkey", full_model, "--text", text, *QUICK, "--figure", tmp_path / "map.svg")
    assert (code != 0, out) == (True, "")
    assert "python -m pip install matplotlib" in err


def test_a_heat_map_is_drawn(sash: Sash, full_model: Path, text: Path, tmp_path: Path):
    pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, which is not installed")
    flags = ["-l", "2w", "-d", "0,100", "--trials", "1", "--window", "100", "-m", "window"]
    code, *_ = sash("eval", "passkey", full_model, "--text", text, *flags, "--figure", tmp_path / "map.svg")
    assert code == 0
    assert (tmp_path / "map.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


VERBS = {
    "passkey": (*QUICK, "-m", "window"),
    "needles": (*QUICK, "-m", "window"),
    "distance": ("--window", "100", "-d", "1w,2w", "--trials", "1"),
    "influence": ("--window", "16", "-d", "1w,40", "--trials", "1", "-m", "full,window"),
    "positions": ("--window", "16", "-n", "100", "--stretches", "2"),
    "ablate": ("--windows", "16,full", "--pins", "1", "-n", "100", "-l", "200", "--trials", "1", "-d", "0"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_writes_its_figures_as_a_table_and_as_pictures(
    sash: Sash, full_model: Path, text: Path, tmp_path: Path, verb: str
):
    pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, which is not installed")
    where = ("--csv", tmp_path / "f.csv", "--figure", tmp_path / "f.svg", "--figure", tmp_path / "f.png")
    code, out, _ = sash("eval", verb, full_model, "--text", text, *VERBS[verb], *where, "--json")
    assert (code, len(json.loads(out)["results"]) > 0) == (0, True)
    assert (tmp_path / "f.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "f.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    results = json.loads(out)["results"]
    if verb == "ablate":
        assert [(line["window"], line["passkey_of"]) for line in lines] == [("16", "1"), ("full", "1")]
    elif verb == "positions":
        assert [float(line["nll"]) for line in lines] == [nll for one in results for nll in one["nlls"]]
    else:
        assert [{name: str(value) for name, value in one.items() if value is not None} for one in results] == [
            {name: value for name, value in line.items() if value} for line in lines
        ]


def test_a_table_that_cannot_be_written_loses_nothing(sash: Sash, full_model: Path, text: Path):
    flags = ("eval", "ablate", full_model, "--text", text, *VERBS["ablate"])
    code, out, err = sash(*flags, "--csv", "/dev/full")
    assert (code, len(out.splitlines()) > 3) == (8, True)
    assert err == "error: the disk is full: /dev/full is not written; what was measured is printed above\n"
    code, out, err = sash(*flags, "--csv", "/dev/null/f.csv")
    assert (code, out, "no folder /dev/null" in err) == (2, "", True)


def test_the_methods_are_listed(sash: Sash):
    code, out, _ = sash("eval", "methods")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} >= {"full", "window", "sinks", "pins", "truncate"}


def test_influence_ends_where_the_layers_reach(sash: Sash, full_model: Path, text: Path):
    flags = ["--window", "16", "-d", "1w,30,31", "--trials", "2", "--changed", "2", "-m", "full,window"]
    code, out, _ = sash("eval", "influence", full_model, "--text", text, *flags, "--json")
    found = {(one["method"], one["distance"]): one for one in json.loads(out)["results"]}
    assert code == 0
    assert {key: one["reached"] for key, one in found.items()} == {
        ("full", 16): 2, ("full", 30): 2, ("full", 31): 2, ("window", 16): 2, ("window", 30): 2, ("window", 31): 0
    }  # fmt: skip
    assert found["window", 31]["mean"] == found["window", 31]["largest"] == 0.0
    _, out, _ = sash("eval", "influence", full_model, "--text", text, *flags)
    assert out.splitlines()[6].split() == ["window", "31", "1.94", "W", "0", "0", "0", "0/2"]


def test_windows_are_compared(sash: Sash, windowed_model: Path, text: Path):
    flags = ["--windows", "4,full,own", "--pins", "1", "-n", "200", "-l", "200", "--trials", "1", "-d", "0"]
    code, out, _ = sash("eval", "ablate", windowed_model, "--text", text, *flags, "--json")
    found = json.loads(out)["results"]
    assert code == 0
    assert [(one["window"], one["pins"], one["passkey"]["of"]) for one in found] == [
        (4, 1, 1),
        ("full", 0, 1),
        (None, 0, 1),
    ]
    assert found[0]["kv_bytes"] < found[2]["kv_bytes"] < found[1]["kv_bytes"]
    assert len({one["perplexity"] for one in found}) == 3
    code, out, _ = sash("eval", "ablate", windowed_model, "--text", text, *flags)
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["4", "full", "own"]
    assert out.splitlines()[-1] == "the model's own windows: 16 in 2 of 2 layers"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--windows", ""], "--windows takes sizes"),
        (["--windows", "0"], "window"),
        (["--windows", "2", "--pins", "3"], "pins"),
        (["-n", "1"], "2 or more"),
    ],
)
def test_windows_that_cannot_be_are_refused(sash: Sash, windowed_model: Path, text: Path, flags, message: str):  # type: ignore[no-untyped-def]
    code, out, err = sash("eval", "ablate", windowed_model, "--text", text, *flags)
    assert code != 0
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_perplexity_by_position(sash: Sash, full_model: Path, text: Path):
    flags = ["--window", "16", "-m", "full,window,sinks", "--max-tokens", "200", "--stretches", "4"]
    code, out, _ = sash("eval", "positions", full_model, "--text", text, *flags, "--json")
    found = json.loads(out)
    assert (code, found["window"], found["tokens"]) == (0, 16, 200)
    assert [(one["method"], len(one["nlls"]), sum(one["tokens"])) for one in found["results"]] == [
        ("full", 4, 199), ("window", 4, 199), ("sinks", 4, 199)
    ]  # fmt: skip
    _, out, _ = sash("eval", "positions", full_model, "--text", text, *flags)
    assert out.splitlines()[0] == "perplexity by position, window 16, 200 tokens"
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["method", "full", "window", "sinks"]


@pytest.mark.parametrize("verb", ["passkey", "distance", "influence", "ablate", "positions"])
def test_ctrl_c_shows_what_there_is_and_ends_with_130(
    sash: Sash, full_model: Path, text: Path, verb: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sash.cli.interrupt.Interrupt.__call__", lambda interrupt: True)
    monkeypatch.setattr(
        "sash.cli.interrupt.Interrupt.__enter__", lambda interrupt: setattr(interrupt, "requested", True) or interrupt
    )
    flags = [] if verb == "ablate" else ["--window", "128"]
    code, out, err = sash("eval", verb, full_model, "--text", text, *flags, "--json")
    assert code == 130
    assert (json.loads(out)["results"], json.loads(out)["interrupted"]) == ([], True)
    assert "interrupted: this is what was measured until then" in err
    assert sash("eval", verb, full_model, "--text", text, *flags)[1] == ""
