"""Masks from text to words, and encoders as a user loads them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import sash
from sash.attention.pattern import AttentionPattern
from sash.errors import (
    PromptOverflowError,
    SashError,
    TokenizerError,
    UnsupportedError,
    UsageError,
)
from sash.masked import Candidate, MaskedLM, encode_masked, fill
from sash.network.encoder_config import EncoderConfig
from sash.network.longformer import Longformer, encode

transformers = pytest.importorskip("transformers", reason="transformers writes the folders that are loaded here")

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def write_tokenizer(folder: Path) -> Tokenizer:
    """A byte-level tokenizer as RoBERTa's and Longformer's folders have it, trained on one sentence."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>", "sep_token": "</s>"}
    names |= {"cls_token": "<s>", "unk_token": "<unk>", "tokenizer_class": "LongformerTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return backend


def write_model(folder: Path, vocab_size: int, kind: str = "LongformerForMaskedLM", **changes: object) -> nn.Module:
    """A small random model of transformers, saved."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 2}
    rest = {"vocab_size": vocab_size, "attention_window": [8, 4], "max_position_embeddings": 130, "type_vocab_size": 1}
    config = transformers.LongformerConfig(**{**sizes, **rest, **changes})
    model: nn.Module = getattr(transformers, kind)(config).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.lower().endswith("norm.weight") else 0.0, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["LongformerForMaskedLM", "LongformerModel"])
def test_folders_that_transformers_writes(tmp_path: Path, kind: str, tie: bool) -> None:
    vocab_size = write_tokenizer(tmp_path).get_vocab_size()
    model = write_model(tmp_path, vocab_size, kind, tie_word_embeddings=tie)
    loaded = sash.load(tmp_path)
    assert isinstance(loaded, MaskedLM)
    assert (loaded.name, loaded.dtype, loaded.device) == (str(tmp_path), torch.float32, torch.device("cpu"))
    assert loaded.config.has_head == (kind == "LongformerForMaskedLM")
    ids = [0, *range(5, 103), 2]
    with torch.no_grad():
        result = model(torch.tensor([ids]), global_attention_mask=torch.tensor([[1] + [0] * 99]))
        hidden_TD = loaded.encode(ids, [0])
        if kind == "LongformerModel":
            assert (hidden_TD - result.last_hidden_state[0]).abs().max() <= 1e-4
        else:
            assert (loaded.network.lm_logits(hidden_TD) - result.logits[0]).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("longformer")
    write_model(path, write_tokenizer(path).get_vocab_size())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a truth <mask> acknowledged,",
        "<mask> is a truth",
        "in want of a <mask>",
        "a<mask>b  <mask><mask> c",
        "<mask>",
        "a single\n<mask>  man",
    ],
)
def test_masked_texts_are_read_as_the_original_tokenizer_reads_them(folder: Path, text: str) -> None:
    loaded = sash.load(folder)
    assert isinstance(loaded, MaskedLM)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert encode_masked(loaded.tokenizer, text, loaded.config.end_id) == expected
    found = loaded.fill(text, top_k=4)
    assert [len(words) for words in found] == [4] * text.count("<mask>")
    assert all(words[0].probability >= words[1].probability >= words[2].probability for words in found)


def test_an_encoder_is_refused_what_only_decoders_do(folder: Path) -> None:
    for options in ({"window": 8}, {"pins": 2}):
        with pytest.raises(UnsupportedError, match="encoder"):
            sash.load(folder, **options)  # type: ignore[arg-type]
    loaded = sash.load(folder)
    with pytest.raises(PromptOverflowError, match="more than the 128"):
        loaded.fill("<mask>" * 200)


class Letters:
    """A tokenizer of letters, each with the spaces before it: <s> 0, </s> 2, <mask> 3, a to z 4 to 29, " a" 30 ..."""

    def __init__(self, mask_id: int | None = 3, bos_id: int | None = 0) -> None:
        self.mask_id, self.bos_id = mask_id, bos_id

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        ids = [0] if bos and self.bos_id is not None else []
        for index, letter in enumerate(text):
            if letter != " ":
                ids.append(ord(letter) - ord("a") + (30 if index and text[index - 1] == " " else 4))
        return ids

    def decode(self, ids: Sequence[int], *, skip_control: bool = True, continues: bool = False) -> str:
        parts = [chr(ord("a") + i - 4) if i < 30 else " " + chr(ord("a") + i - 30) for i in ids if i > 3]
        return "".join(parts) if continues else "".join(parts).lstrip()

    def token_text(self, token_id: int) -> str:
        return {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<mask>"}.get(token_id) or self.decode([token_id], continues=True)


def test_text_with_masks_to_ids() -> None:
    assert encode_masked(Letters(), "ab <mask> c", 2) == [0, 4, 5, 3, 32, 2]
    assert encode_masked(Letters(), "<mask>", 2) == [0, 3, 2]
    assert encode_masked(Letters(bos_id=None), "a  <mask><mask>b") == [4, 3, 3, 5]
    with pytest.raises(UsageError, match="there is no <mask> in the text"):
        encode_masked(Letters(), "a <mask b", 2)
    with pytest.raises(TokenizerError, match="no mask token"):
        encode_masked(Letters(mask_id=None), "a <mask> b", 2)


LOCAL = AttentionPattern(causal=False, window=9, global_tokens=True)
CONFIG = EncoderConfig(
    vocab_size=56, dim=12, n_heads=3, head_dim=4, hidden_dim=20, patterns=(LOCAL, LOCAL), max_positions=60
)


@pytest.fixture(scope="module")
def small() -> Longformer:
    torch.manual_seed(0)
    network = Longformer(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return network.eval()


def test_fill(small: Longformer) -> None:
    text = "ab <mask> c d <mask>e"
    ids = encode_masked(Letters(), text, small.config.end_id)
    assert ids.count(3) == 2
    with torch.no_grad():
        expected_MV = small.lm_logits(encode(small, ids, [0])[[3, 6]]).softmax(-1)
    found = fill(small, Letters(), text, top_k=3)
    assert [[candidate.token_id for candidate in mask] for mask in found] == expected_MV.topk(3).indices.tolist()
    for mask, probabilities_V in zip(found, expected_MV, strict=True):
        assert [word.probability for word in mask] == pytest.approx(probabilities_V.topk(3).values.tolist())
    everything = fill(small, Letters(), text, top_k=1000)
    assert [len(mask) for mask in everything] == [56, 56]
    assert sum(word.probability for word in everything[0]) == pytest.approx(1.0, abs=1e-5)
    assert Candidate(31, " b", pytest.approx(float(expected_MV[0, 31]))) in everything[0]


def test_fill_takes_the_first_token_as_global(small: Longformer) -> None:
    text = "a" * 20 + " <mask>"
    default = fill(small, Letters(), text)
    assert fill(small, Letters(), text, global_positions=[0]) == default
    assert fill(small, Letters(), text, global_positions=[]) != default
    without = fill(small, Letters(bos_id=None), text)
    assert fill(small, Letters(bos_id=None), text, global_positions=[]) == without
    assert MaskedLM(small, Letters()).fill(text) == default


@pytest.mark.parametrize(
    ("text", "options"),
    [("a b", {}), ("<mask>", {"top_k": 0}), ("<mask>", {"global_positions": [3]}), ("a" * 57 + "<mask>", {})],
)
def test_fill_refuses(small: Longformer, text: str, options: dict[str, object]) -> None:
    with pytest.raises(SashError):
        fill(small, Letters(), text, **options)  # type: ignore[arg-type]
