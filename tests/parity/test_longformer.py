"""The Longformer encoder against transformers: small random models, float32, texts of at least four windows."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from sash.families import describe
from sash.network.batch import Batch
from sash.network.longformer import Longformer, encode

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

VOCABULARY = 101
TOLERANCE = 1e-4

SEERS = {
    "none": (),
    "first": (0,),
    "scattered": (0, 37, 111, 190, 222),
    "adjacent and within each other's window": (50, 51, 52, 55, 63, 180, 181),
    "last": (222,),
    "all of a stretch": tuple(range(90, 130)),
}


def oracle(windows: list[int] | int, **changes: object) -> nn.Module:
    """A LongformerForMaskedLM whose every parameter, biases too, is random and large enough to matter."""
    torch.manual_seed(len(str(windows)))
    values: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 36,
        "num_hidden_layers": len(windows) if isinstance(windows, list) else 2,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "max_position_embeddings": 400,
        "attention_window": windows,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-5,
    }
    model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**{**values, **changes})).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.lower().endswith("norm.weight") else 0.0, std=0.25)
    return model


def ours(model: nn.Module) -> Longformer:
    tied = model.config.tie_word_embeddings
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (tied and name.startswith("lm_head.decoder."))
    }
    description = describe("huggingface", model.config.to_dict(), frozenset(state))
    network = Longformer(description.config)  # type: ignore[arg-type]
    network.load_state_dict({name: state[theirs] for name, theirs in description.weights.items()})
    return network.eval()


def ids(n_tokens: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def theirs_of(
    model: nn.Module, runs: list[list[int]], seers: list[Sequence[int]], **more: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of the unpadded positions of a padded batch, one sequence after the other.

    The oracle pads to a multiple of its largest window but needs one of every window, so the rest is done here.
    """
    step = math.lcm(*model.config.attention_window)
    longest = -(-max(len(run) for run in runs) // step) * step
    tokens, seen, flagged = (torch.zeros(len(runs), longest, dtype=torch.int64) for _ in range(3))
    tokens.fill_(model.config.pad_token_id)
    for row, run in enumerate(runs):
        tokens[row, : len(run)] = torch.tensor(run)
        seen[row, : len(run)] = 1
        flagged[row, list(seers[row])] = 1
    with torch.no_grad():
        result = model(
            input_ids=tokens, attention_mask=seen, global_attention_mask=flagged, output_hidden_states=True, **more
        )
    return result.hidden_states[-1][seen.bool()], result.logits[seen.bool()]


def assert_close(network: Longformer, hidden_TD: Tensor, expected: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        logits_TV = network.lm_logits(hidden_TD)
    assert (hidden_TD - expected[0]).abs().max() <= TOLERANCE
    assert (logits_TV - expected[1]).abs().max() <= TOLERANCE
    assert torch.equal(logits_TV.argmax(-1), expected[1].argmax(-1))
    assert expected[1].std() > 0.5  # or agreement would say little


@pytest.mark.parametrize("seers", SEERS.values(), ids=SEERS.keys())
@pytest.mark.parametrize("windows", [[8, 20, 50], [32, 8, 4], 16], ids=str)
def test_one_sequence(windows: list[int] | int, seers: tuple[int, ...]) -> None:
    model, tokens = oracle(windows), ids(223, seed=1)
    network = ours(model)
    assert len(tokens) >= 4 * network.config.window
    assert_close(network, encode(network, tokens, seers), theirs_of(model, [tokens], [seers]))


def test_several_blocks_of_queries() -> None:
    model, tokens, seers = oracle([64, 24], max_position_embeddings=620), ids(601, seed=2), (0, 200, 255, 256, 257, 590)
    network = ours(model)
    assert_close(network, encode(network, tokens, seers), theirs_of(model, [tokens], [seers]))


@pytest.mark.parametrize(
    "seers", [[(), ()], [(0,), (0,)], [(), (0, 60, 61)], [(5, 170), ()]], ids=["none", "first", "second", "first only"]
)
def test_ragged_batch(seers: list[Sequence[int]]) -> None:
    model, runs = oracle([8, 20, 16]), [ids(187, seed=3), ids(93, seed=4)]
    network = ours(model)
    flags = [[index in seen for index in range(len(run))] for run, seen in zip(runs, seers, strict=True)]
    with torch.no_grad():
        hidden_TD = network(Batch.pack(runs, is_global=flags))
    assert_close(network, hidden_TD, theirs_of(model, runs, seers))


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"hidden_act": "silu"},
        {"pad_token_id": 7, "type_vocab_size": 1, "layer_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_variants(changes: dict[str, object]) -> None:
    model, tokens, seers = oracle([8, 12], **changes), ids(131, seed=5), (0, 70, 71)
    network = ours(model)
    if changes.get("pad_token_id") is not None:
        tokens[40] = tokens[90] = network.config.pad_id  # a token with this id takes no position
    assert_close(network, encode(network, tokens, seers), theirs_of(model, [tokens], [seers]))


def test_token_types() -> None:
    model, tokens, seers = oracle([8, 12]), ids(131, seed=6), (0,)
    network = ours(model)
    types_T = (torch.arange(144) >= 60).long()
    flags = [[index in seers for index in range(131)]]
    with torch.no_grad():
        hidden_TD = network(Batch.pack([tokens], is_global=flags), types_T[:131])
    assert_close(network, hidden_TD, theirs_of(model, [tokens], [seers], token_type_ids=types_T[None]))


def test_as_long_as_there_are_positions() -> None:
    model, tokens = oracle([8, 12], max_position_embeddings=130), ids(128, seed=7)
    network = ours(model)
    assert network.config.context == len(tokens)
    assert_close(network, encode(network, tokens, [0]), theirs_of(model, [tokens], [(0,)]))
