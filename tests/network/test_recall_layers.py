"""Which layers recall: where attention lands is counted against its definition, and the choice is kept and read."""

from __future__ import annotations

import json

import pytest
import torch

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.kernels import native
from sash.lm import LM
from sash.network import recall_layers
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.recall_layers import Probe
from tests.conftest import ByteTokenizer, small_config, small_decoder
from tests.network.test_annex import native_pair

WINDOW = 24


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("SASH_HOME", str(tmp_path))
    return tmp_path


def model() -> LM:
    patterns = [AttentionPattern(), AttentionPattern(window=WINDOW), AttentionPattern(), AttentionPattern()]
    config = small_config([*patterns, AttentionPattern(), AttentionPattern()], vocab_size=259, context=400)
    return LM(small_decoder(config, seed=5), ByteTokenizer())


def test_probes_tell_before_they_ask():
    encode = ByteTokenizer()._encode_text
    texts = recall_layers.probes(encode, [1], 300, 3)
    for text, number in zip(texts, ("48213", "90571", "26384"), strict=True):
        assert len(text.ids) == 300
        told = [text.ids[at] for at in text.told]
        assert bytes(byte - 3 for byte in told).decode() == f" {number}"
        assert text.ids[-5:] == told[:-1]
        assert text.told.stop < 200
    assert len({text.told for text in texts}) == 3
    with pytest.raises(UsageError, match="too short"):
        recall_layers.probes(encode, [1], 150)


@torch.inference_mode()
def test_mass_is_attention_by_its_definition():
    """A key within the window's own distance W - 1 counts, one at W does not."""
    config = small_config([AttentionPattern(window=WINDOW), AttentionPattern(window=60)])
    decoder = small_decoder(config)
    ids = torch.randint(0, 61, (60,), generator=torch.Generator().manual_seed(4)).tolist()
    told = range(34, 38)
    found = recall_layers.mass_on(decoder, [Probe(ids, told)])
    for layer, window in enumerate((WINDOW, 60)):
        cache = KVCache(decoder.config, 1, torch.float32, log=True)
        store = cache.stores[config.patterns[layer]]
        store.tap = recall_layers.QueryTap(1, config.n_heads, config.head_dim, 4)
        row = cache.allocate()
        decoder(Batch.pack([ids], [0], [row]), cache)
        (run,) = store.log.held(row, 0, 60)
        keys_GSK, total = store.log.slots(row, run)[0, 0, :, :60].numbers.double(), 0.0
        for at, query_HK in zip(range(56, 60), store.tap.of(row)[0].double(), strict=True):
            seen = range(max(0, at - window + 1), at + 1)
            for head, query_K in enumerate(query_HK):
                shares = (keys_GSK[head // 2, list(seen)] @ query_K * config.head_dim**-0.5).softmax(0)
                total += sum(float(share) for at, share in zip(seen, shares, strict=True) if at in told)
        assert found[layer] == pytest.approx(total / (4 * config.n_heads), abs=1e-5)
    assert 56 - told.start < WINDOW <= 59 - told.start  # the first query sees all of it, the last does not


@pytest.mark.skipif(not native.available(), reason="native kernels do not serve here: torch does")
def test_both_networks_see_the_same_mass():
    network, decoder = native_pair()
    ids = [at * 7 % 61 for at in range(50)]
    texts = [Probe(ids, range(38, 41))]
    assert recall_layers.mass_on(network, texts) == pytest.approx(recall_layers.mass_on(decoder, texts), abs=0.01)


def test_what_is_found_is_kept_and_used(home):
    lm = model()
    found = lm.calibrate_recall(300)
    (path,) = (home / "recall").iterdir()
    assert tuple(json.loads(path.read_text())["layers"]) == found
    assert len(found) >= recall_layers.LEAST
    assert lm.with_window(8).calibrate_recall(300) == found  # what was forced does not change it
    assert len(list((home / "recall").iterdir())) == 1
    path.write_text(json.dumps({"layers": [0, 3]}))
    assert recalling_layers(recall(lm)) == [0, 3]
    assert recalling_layers(recall(lm, layers=[2])) == [2]
    path.write_text(json.dumps({"layers": [9]}))  # of another model
    assert recalling_layers(recall(lm)) == [0, 1, 2, 3, 4, 5]
    path.write_text("nonsense")
    assert recalling_layers(recall(lm)) == [0, 1, 2, 3, 4, 5]


def recall(lm: LM, **how: object) -> LM:
    return lm.with_window(16).with_recall(block=4, **how)


def recalling_layers(lm: LM) -> list[int]:
    return [at for at, pattern in enumerate(lm.config.patterns) if pattern.annex]


def test_models_with_windows_alone_read_within_them():
    config = small_config([AttentionPattern(window=280)] * 5, vocab_size=259)
    lm = LM(small_decoder(config, seed=5), ByteTokenizer())
    assert len(lm.calibrate_recall()) >= recall_layers.LEAST
    short = LM(small_decoder(small_config([AttentionPattern(window=30)], vocab_size=259)), ByteTokenizer())
    with pytest.raises(UsageError, match="too short"):
        short.calibrate_recall()
