"""Longformer's configuration and tensor names, and masks from text to words."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sash.errors import CheckpointError, ConfigError, SashError, TokenizerError, UsageError
from sash.families import Description, describe
from sash.masked import Candidate, MaskedLM, encode_masked, fill
from sash.network.encoder_config import EncoderConfig, encoder_shapes
from sash.network.longformer import Longformer, encode

BASE_4096 = {
    "attention_mode": "longformer",
    "attention_probs_dropout_prob": 0.1,
    "attention_window": [512] * 12,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "ignore_attention_mask": False,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4098,
    "model_type": "longformer",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "sep_token_id": 2,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
"""What the published base model's config.json holds."""

SMALL = BASE_4096 | {
    "attention_window": 8,
    "hidden_size": 12,
    "intermediate_size": 20,
    "max_position_embeddings": 60,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": 40,
}


def described(names: frozenset[str] = frozenset(), **changes: object) -> Description:
    return describe("huggingface", {**SMALL, **changes}, names)


def encoder(names: frozenset[str] = frozenset(), **changes: object) -> EncoderConfig:
    config = described(names, **changes).config
    assert isinstance(config, EncoderConfig)
    return config


def test_the_published_base_model() -> None:
    description = describe("huggingface", BASE_4096)
    config = description.config
    assert isinstance(config, EncoderConfig)
    assert (config.architecture, config.windows, config.context) == ("longformer", (513,) * 12, 4096)
    assert (config.dim, config.n_heads, config.head_dim, config.hidden_dim) == (768, 12, 64, 3072)
    assert (config.pad_id, config.end_id, config.n_types, config.norm_eps) == (1, 2, 1, 1e-5)
    assert (config.has_head, config.tied_embeddings, config.activation) == (True, True, "gelu")
    assert set(description.weights) == set(encoder_shapes(config))
    parameters = sum(torch.Size(shape).numel() for shape in encoder_shapes(config).values())
    assert parameters == 148_711_257  # 148,659,456 of LongformerModel without its pooler, and the head's own


def test_windows_and_dilations() -> None:
    assert encoder(attention_window=8).windows == (9, 9)
    config = encoder(attention_window=[8, 20], attention_dilation=[1, 3])
    assert config.windows == (9, 21)
    assert [pattern.dilation for pattern in config.patterns] == [1, 3]
    assert [pattern.reach_back for pattern in config.patterns] == [4, 30]
    assert all(pattern.global_tokens and not pattern.causal for pattern in config.patterns)
    assert [pattern.dilation for pattern in encoder(attention_dilation=2).patterns] == [2, 2]
    assert encoder(attention_window=None).windows == (513, 513)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_window": 7}, "attention_window must be even"),
        ({"attention_window": [8, 9]}, "attention_window must be even"),
        ({"attention_window": [8]}, "a list of 2 of them"),
        ({"attention_window": [8, 8, 8]}, "a list of 2 of them"),
        ({"attention_window": 0}, "whole number above 0"),
        ({"attention_window": [8, -8]}, "whole number above 0"),
        ({"attention_window": "8"}, "whole number above 0"),
        ({"attention_window": [8, True]}, "whole number above 0"),
        ({"attention_dilation": [1]}, "a list of 2 of them"),
        (
            {"attention_dilation": [[1, 1, 2], [1, 1, 2]]},
            "attention_dilation must be .*dilation by head is not supported",
        ),
        ({"attention_dilation": 0}, "attention_dilation must be a whole number above 0"),
        ({"attention_mode": "sliding_chunks"}, "attention_mode = 'sliding_chunks' would change the result"),
        ({"autoregressive": True}, "autoregressive = True would change the result"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "quick_gelu"}, "hidden_act must be one of"),
        ({"hidden_size": 13}, "hidden_size must be a multiple of num_attention_heads = 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"max_position_embeddings": 2}, "leaves no position"),
        ({"pad_token_id": 40}, "pad_id = 40"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"rope_theta": 10000.0}, "rope_theta = 10000.0 is not understood"),
    ],
    ids=str,
)
def test_refused_configurations(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        described(**changes)


def usual_names(**changes: object) -> frozenset[str]:
    return frozenset(described(**changes).weights.values())


def test_a_head_that_is_stored_is_used() -> None:
    stored = usual_names() | {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    weights = described(stored).weights
    assert weights["output.weight"] == "lm_head.decoder.weight"
    assert weights["head.bias"] == "lm_head.decoder.bias"
    assert described(stored).ignored == {"lm_head.bias"}
    untied = described(tie_word_embeddings=False).weights
    assert (untied["output.weight"], untied["head.bias"]) == ("lm_head.decoder.weight", "lm_head.decoder.bias")
    assert described().weights["head.bias"] == "lm_head.bias"


def test_a_model_without_a_head() -> None:
    bare = frozenset(name.removeprefix("longformer.") for name in usual_names() if not name.startswith("lm_head.")) | {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "embeddings.position_ids",
    }
    description = described(bare)
    assert isinstance(description.config, EncoderConfig)
    assert not description.config.has_head
    assert description.ignored == {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}
    assert set(description.weights) == set(encoder_shapes(description.config))


def test_tensors_are_accounted_for() -> None:
    names = usual_names()
    with pytest.raises(ConfigError, match=r"tensor classifier\.dense\.weight is not understood"):
        described(names | {"classifier.dense.weight"})
    with pytest.raises(
        CheckpointError, match=r"tensor longformer\.encoder\.layer\.1\.attention\.self\.key_global\.bias"
    ):
        described(names - {"longformer.encoder.layer.1.attention.self.key_global.bias"})
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.decoder\.weight"):
        described(names, tie_word_embeddings=False)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["LongformerForMaskedLM", "LongformerModel"])
def test_folders_that_transformers_writes(tmp_path: Path, kind: str, tie: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers writes these folders")
    from sash.checkpoint import open_checkpoint
    from sash.checkpoint.load import read_description

    theirs = {key: value for key, value in SMALL.items() if key != "attention_mode"}
    model = getattr(transformers, kind)(transformers.LongformerConfig(**theirs, tie_word_embeddings=tie)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "longformer"
    with open_checkpoint(tmp_path) as checkpoint:
        description = read_description(checkpoint)
        cpu = torch.device("cpu")
        loaded = MaskedLM.build(description, checkpoint, Letters(), torch.float32, cpu, "small")
    ids = [0, *range(5, 38), 2]
    with torch.no_grad():
        result = model(torch.tensor([ids]), global_attention_mask=torch.tensor([[1] + [0] * 34]))
        hidden_TD = loaded.encode(ids, [0])
        if kind == "LongformerModel":
            assert (hidden_TD - result.last_hidden_state[0]).abs().max() <= 1e-4
        else:
            assert (loaded.network.lm_logits(hidden_TD) - result.logits[0]).abs().max() <= 1e-4
    assert loaded.config.has_head == (kind == "LongformerForMaskedLM")
    assert (loaded.name, loaded.dtype, loaded.device) == ("small", torch.float32, cpu)


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


@pytest.fixture(scope="module")
def small() -> Longformer:
    torch.manual_seed(0)
    network = Longformer(encoder(vocab_size=56))
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
