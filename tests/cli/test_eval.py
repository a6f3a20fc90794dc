"""`sash eval`: perplexity and parity of a small model, as a user asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sash.evaluation.perplexity import perplexity
from sash.loading import load_decoder

Sash = Callable[..., tuple[int, str, str]]
TEXT = "It was the best of times,\nit was the worst of times.\n\n" * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_perplexity_is_that_of_the_library(sash: Sash, windowed_model: Path, text: Path):
    code, out, err = sash("eval", "perplexity", windowed_model, "--text", text, "--json")
    found, lm = json.loads(out), load_decoder(windowed_model)
    expected = perplexity(lm, lm.tokenizer.encode(TEXT))
    assert (code, err) == (0, "")
    assert found["nll"] == pytest.approx(expected.nll)
    assert (found["tokens"], found["bytes"]) == (len(TEXT), len(TEXT.encode()))
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte)
    assert (found["window"]["by_layer"], found["window"]["ablation"]) == ([16, 16], False)


def test_only_so_many_tokens_are_read(sash: Sash, windowed_model: Path, text: Path):
    _, out, _ = sash("eval", "perplexity", windowed_model, "--text", text, "-n", "50", "--chunk", "7", "--json")
    lm = load_decoder(windowed_model)
    assert json.loads(out)["nll"] == pytest.approx(perplexity(lm, lm.tokenizer.encode(TEXT)[:50]).nll, abs=1e-5)
    assert json.loads(out)["tokens"] == 49


def test_window_and_pins_are_labelled(sash: Sash, full_model: Path, text: Path):
    code, out, err = sash("eval", "perplexity", full_model, "--text", text, "--window", "8", "--pins", "2")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[:1] + out.splitlines()[3:6])
    assert code == 0
    assert rows["window"] == "8 in 2 of 2 layers"
    assert rows["pins"] == "2"
    assert "--window 8 is an ablation" in out
    assert "tok/s" in err
    lm = load_decoder(full_model, window=8, pins=2)
    assert float(rows["perplexity"]) == pytest.approx(perplexity(lm, lm.tokenizer.encode(TEXT)).perplexity, rel=1e-3)


def test_what_the_cache_keeps_shows_in_the_figures(sash: Sash, windowed_model: Path, text: Path):
    flags = ["eval", "perplexity", windowed_model, "--text", text]
    plain = json.loads(sash(*flags, "--json")[1])
    found = json.loads(sash(*flags, "--kv", "int8", "--json")[1])
    assert (plain["kv_dtype"], found["kv_dtype"]) == ("float32", "int8")
    assert 0 < abs(found["nll"] - plain["nll"]) < 0.02
    assert "keys and values  int8" in sash(*flags, "--kv", "int8")[1]


def test_overlapping_windows(sash: Sash, full_model: Path, text: Path):
    flags = ["eval", "perplexity", full_model, "--text", text, "--window", "8", "--overlap", "4"]
    found, lm = json.loads(sash(*flags, "--json")[1]), load_decoder(full_model, window=8).with_overlap(4)
    ids = lm.tokenizer.encode(TEXT)
    assert found["nll"] == pytest.approx(perplexity(lm, ids).nll)
    assert found["overlap"] == {"window": 8, "stride": 4, "pins": 0}
    assert found["tokens_read_per_token"] == found["tokens_read"] / (len(ids) - 1) > 1.9
    assert "at most 8 tokens a reading, 4 of them new: 1.9" in sash(*flags)[1]
    assert found["nll"] != json.loads(sash(*flags, "--kv", "int8", "--json")[1])["nll"]


def test_summaries(sash: Sash, full_model: Path, tmp_path: Path):
    long = tmp_path / "long.txt"
    long.write_text(TEXT * 6)
    flags = ["eval", "perplexity", full_model, "--text", long, "--window", "80"]
    found, plain = (json.loads(sash(*flags, *more, "--json")[1]) for more in (["--hierarchy", "3"], []))
    lm = load_decoder(full_model, window=80).with_hierarchy(per_level=3)
    assert found["nll"] == pytest.approx(perplexity(lm, lm.tokenizer.encode(TEXT * 6)).nll)
    assert found["hierarchy"] == {"block": 64, "per_level": 3, "levels": 16}
    assert (plain["hierarchy"], abs(plain["nll"] - found["nll"]) > 1e-5) == (None, True)
    assert "3 of 64 tokens, 3 of twice as many" in sash(*flags, "--hierarchy", "3")[1]


def test_standard_input(sash: Sash, windowed_model: Path):
    _, out, _ = sash("eval", "perplexity", windowed_model, "--text", "-", "--json", stdin=TEXT.encode())
    assert json.loads(out)["tokens"] == len(TEXT)


def test_parity_with_transformers(sash: Sash, windowed_model: Path, text: Path):
    pytest.importorskip("transformers", reason="transformers is what is compared with")
    code, out, _ = sash("eval", "parity", windowed_model, "--text", text, "-n", "130", "--chunk", "50", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["n_tokens"], found["vocab_size"]) == (130, 260)
    assert found["max_difference"] < 1e-4
    assert found["argmax_agreement"] == 1.0
    assert found["nll"] == pytest.approx(found["nll_other"], abs=1e-5)
    code, out, _ = sash("eval", "parity", windowed_model, "-n", "40")
    assert code == 0
    assert "40 (drawn at random), 260 logits each" in out
    assert "100.00% of positions" in out


def test_parity_sees_a_wrong_window(sash: Sash, windowed_model: Path, text: Path, tmp_path: Path):
    pytest.importorskip("transformers", reason="transformers is what is compared with")
    from sash.evaluation.parity import parity

    folder = tmp_path / "other"
    folder.mkdir()
    for file in windowed_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 15}))
    lm = load_decoder(windowed_model)
    assert parity(lm, folder, lm.tokenizer.encode(TEXT)).max_difference > 1e-2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["perplexity", "MODEL"], 2),
        (["perplexity", "MODEL", "--text", "nothing.txt"], 6),
        (["perplexity", "MODEL", "--text", "-"], 11),
        (["perplexity", "MODEL", "--text", "TEXT", "-n", "1"], 2),
        (["perplexity", "MODEL", "--text", "TEXT", "--window", "0"], 10),
        (["perplexity", "MODEL", "--text", "TEXT", "--pins", "17"], 12),
        (["perplexity", "MODEL", "--text", "TEXT", "--window", "full", "--overlap", "4"], 2),
        (["perplexity", "MODEL", "--text", "TEXT", "--window", "8", "--overlap", "9"], 2),
        (["perplexity", "MODEL", "--text", "TEXT", "--hierarchy", "0"], 2),
        (["perplexity", "MODEL", "--text", "TEXT", "--window", "8", "--pins", "8", "--overlap", "2"], 12),
        (["positions", "MODEL", "--text", "TEXT", "--max-tokens", "-5"], 2),
        (["parity", "MODEL", "-n", "0"], 2),
        (["parity", "no-such-model"], 4),
        (["parity", "MODEL", "--text", "nothing.txt"], 6),
        (["guess", "MODEL"], 2),
    ],
)
def test_what_cannot_be_is_one_line(sash: Sash, windowed_model: Path, text: Path, arguments: list[str], code: int):
    names = {"MODEL": str(windowed_model), "TEXT": str(text)}
    found, out, err = sash("eval", *(names.get(word, word) for word in arguments))
    assert (found, out, err.count("\n")) == (code, "", 1)


def test_without_a_verb_it_lists_its_verbs(sash: Sash):
    code, out, _ = sash("eval")
    assert code == 0
    assert "perplexity" in out
    assert "parity" in out
