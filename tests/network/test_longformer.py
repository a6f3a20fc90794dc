"""The Longformer encoder against a dense computation, and what each of its tokens can see."""

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sash.attention import plan, reference
from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.attention.segment import Segment
from sash.attention.torch_backend import attend_explicit, attend_segment
from sash.errors import (
    ConfigError,
    EmptyPromptError,
    PinsError,
    PromptOverflowError,
    SashError,
    UnsupportedError,
    UsageError,
    WindowError,
)
from sash.network.batch import Batch
from sash.network.encoder_config import EncoderConfig, encoder_shapes
from sash.network.longformer import EncoderAttention, Longformer, encode, local_blocks

VOCABULARY = 61


def local(window: int, dilation: int = 1) -> AttentionPattern:
    return AttentionPattern(causal=False, window=window, dilation=dilation, global_tokens=True)


def config(*patterns: AttentionPattern, **changes: object) -> EncoderConfig:
    values: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "dim": 24,
        "n_heads": 3,
        "head_dim": 8,
        "hidden_dim": 40,
        "patterns": patterns or (local(5), local(9)),
        "max_positions": 3000,
    }
    return EncoderConfig(**{**values, **changes})  # type: ignore[arg-type]


def network(*patterns: AttentionPattern, **changes: object) -> Longformer:
    """An encoder whose every parameter, biases too, is random and large enough to matter."""
    torch.manual_seed(0)
    made = Longformer(config(*patterns, **changes))
    for name, parameter in made.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return made.eval()


def ids(n_tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCABULARY, (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def flags(n_tokens: int, positions: Sequence[int]) -> list[bool]:
    return [index in set(positions) for index in range(n_tokens)]


def dense_hidden(net: Longformer, tokens: list[int], seers: Sequence[int]) -> Tensor:
    """The encoder by its definition: N x N scores, `allows` as the mask, global queries with their own projections."""
    cfg = net.config
    n = len(tokens)
    positions_T = torch.arange(n)
    global_T = torch.tensor(flags(n, seers))
    meta = TokenMeta(position=positions_T, is_global=global_T)
    x_TD = net.tok_embeddings(torch.tensor(tokens)) + net.position_embeddings(positions_T + cfg.pad_id + 1)
    x_TD = net.embedding_norm(x_TD + net.type_embeddings(torch.zeros(n, dtype=torch.int64)))

    def scores_and_values(layer: EncoderAttention, kind: str) -> tuple[Tensor, Tensor]:
        q, k, v = (
            getattr(layer, f"{w}{kind}")(x_TD).view(n, cfg.n_heads, cfg.head_dim).transpose(0, 1)
            for w in ("wq", "wk", "wv")
        )
        return q @ k.transpose(1, 2) / math.sqrt(cfg.head_dim), v

    for block, pattern in zip(net.layers, cfg.patterns, strict=True):
        scores, v = scores_and_values(block.attention, "")
        own, v_global = scores_and_values(block.attention, "_global")
        allowed_TS = pattern.allows(meta.reshape(-1, 1), meta.reshape(1, -1))
        local_HTK = scores.masked_fill(~allowed_TS, -math.inf).softmax(-1) @ v
        global_HTK = own.masked_fill(~allowed_TS, -math.inf).softmax(-1) @ v_global
        out_HTK = torch.where(global_T[:, None], global_HTK, local_HTK)
        x_TD = block.attention_norm(x_TD + block.attention.wo(out_HTK.transpose(0, 1).reshape(n, -1)))
        act = F.gelu(block.feed_forward.w1(x_TD))
        x_TD = block.ffn_norm(x_TD + block.feed_forward.w2(act))
    return x_TD


PATTERNS = {
    "plain": (local(5), local(9), local(31)),
    "one key": (local(1), local(3)),
    "dilated": (local(5, 1), local(7, 3), local(9, 4)),
    "wider than the text": (local(2001), local(301, 5)),
}
SEERS = {
    "none": (),
    "first": (0,),
    "scattered": (3, 140, 255, 256, 290),
    "adjacent": (10, 11, 12, 100, 102),
    "last": (300,),
    "all": tuple(range(301)),
}


@torch.no_grad()
@pytest.mark.parametrize("seers", SEERS.values(), ids=SEERS.keys())
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS.keys())
def test_equals_the_dense_computation(patterns: tuple[AttentionPattern, ...], seers: tuple[int, ...]) -> None:
    net, tokens = network(*patterns), ids(301)
    assert len(tokens) > plan.QUERY_BLOCK  # several blocks of queries, and an odd rest
    torch.testing.assert_close(encode(net, tokens, seers), dense_hidden(net, tokens, seers), atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("backend", [attend_explicit, reference.attend_segment], ids=["explicit", "reference"])
def test_backends_agree(backend: object) -> None:
    net, tokens, seers = network(local(7, 2), local(9)), ids(277), (0, 40, 41, 270)
    expected = encode(net, tokens, seers)
    net.backend = backend  # type: ignore[assignment]
    torch.testing.assert_close(encode(net, tokens, seers), expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_packed_sequences_never_meet() -> None:
    net = network(local(5), local(7, 2))
    runs = [ids(270, seed=1), ids(1, seed=2), ids(83, seed=3), ids(40, seed=4)]
    seers: list[tuple[int, ...]] = [(0, 7, 269), (), (82, 3), ()]
    packed = Batch.pack(runs, is_global=[flags(len(run), seen) for run, seen in zip(runs, seers, strict=True)])
    apart = torch.cat([encode(net, run, seen) for run, seen in zip(runs, seers, strict=True)])
    torch.testing.assert_close(net(packed), apart, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("window", "dilation"), [(1, 1), (3, 1), (9, 1), (5, 3), (7, 2)])
@torch.no_grad()
def test_the_last_key_of_the_window_matters_and_the_next_does_not(window: int, dilation: int) -> None:
    """One layer: a token at distance W // 2 on either side changes the output, one at W // 2 + 1 does not."""
    net, query = network(local(window, dilation)), 30
    tokens = ids(64)
    before = encode(net, tokens)[query]
    seen = []
    for key in range(len(tokens)):
        changed = list(tokens)
        changed[key] = 3 + (tokens[key] - 2) % (VOCABULARY - 3)
        assert changed[key] != tokens[key]
        if not torch.equal(encode(net, changed)[query], before):
            seen.append(key)
    half = window // 2
    assert seen == [query + step * dilation for step in range(-half, half + 1)]
    assert len(seen) == window
    assert (query - half * dilation in seen, query - (half + 1) * dilation in seen) == (True, False)


@torch.no_grad()
def test_a_global_token_sees_all_and_is_seen_by_all() -> None:
    net, tokens, seer = network(local(3)), ids(600), 300
    before = encode(net, tokens, [seer])
    tokens[seer] = 3 + (tokens[seer] - 2) % (VOCABULARY - 3)
    assert (encode(net, tokens, [seer]) != before).any(1).all()
    before = encode(net, tokens, [seer])
    for far in (0, 17, 299, 555, 599):
        changed = list(tokens)
        changed[far] = 3 + (tokens[far] - 2) % (VOCABULARY - 3)
        moved = (encode(net, changed, [seer]) != before).any(1).nonzero().flatten().tolist()
        assert moved == sorted({seer, *(near for near in (far - 1, far, far + 1) if 0 <= near < 600)})


@torch.no_grad()
def test_which_projections_are_used_where() -> None:
    """Keys and values of a global token are local ones for others; only its own query and what it reads are global."""
    net, tokens = network(local(5)), ids(40)
    plain, flagged = encode(net, tokens), encode(net, tokens, [20])
    for name in ("wq_global", "wk_global", "wv_global"):
        projection = getattr(net.layers[0].attention, name)
        projection.weight.mul_(-1.7)
        moved = (encode(net, tokens, [20]) != flagged).any(1).nonzero().flatten().tolist()
        assert moved == [20], name
        projection.weight.div_(-1.7)
    for name in ("wq_global", "wk_global", "wv_global"):
        getattr(net.layers[0].attention, name).weight.fill_(math.nan)
    assert torch.equal(encode(net, tokens), plain)  # without global tokens they are not even computed


def test_a_global_token_does_not_widen_its_block() -> None:
    """Memory stays O(block x (window + block)): no segment is longer than its band, beside the global tokens."""
    pattern, n = local(33), 4000
    seers = torch.zeros(n, dtype=torch.bool)
    seers[::200] = True
    blocks = local_blocks(pattern, TokenMeta(position=torch.arange(n), is_global=seers), 0, torch.float32)
    assert [(block.start, block.stop) for block in blocks] == [
        (a, min(a + plan.QUERY_BLOCK, n)) for a in range(0, n, plan.QUERY_BLOCK)
    ]
    for block in blocks:
        band, *rest = block.runs
        assert band.stop - band.start <= plan.QUERY_BLOCK + 32
        assert band.mask is not None
        assert band.mask.allowed_TS.shape == (block.stop - block.start, band.stop - band.start)
        assert [run.mask for run in rest] == [None]
        assert rest[0].index is not None
        assert rest[0].index.tolist() == [key for key in range(0, n, 200) if not band.start <= key < band.stop]


@torch.no_grad()
def test_work_is_linear_in_the_length() -> None:
    """Scores that are computed, counted at the backend: twice the text with as many global tokens is twice the work."""
    pairs = 0

    def counting(q_THK: Tensor, segment: Segment, scale: float) -> tuple[Tensor, Tensor]:
        nonlocal pairs
        pairs += q_THK.shape[0] * segment.keys_GSK.shape[1]
        return attend_segment(q_THK, segment, scale)

    net = network(local(9))
    net.backend = counting
    counts = []
    for n in (512, 1024, 2048):
        pairs = 0
        encode(net, ids(n), [0, 100])
        counts.append(pairs)
    assert counts[1] < 2.1 * counts[0]
    assert counts[2] < 2.1 * counts[1]
    assert counts[2] < 2048 * (plan.QUERY_BLOCK + 8 + 4)


@torch.no_grad()
def test_token_types_and_the_rows_of_the_position_table() -> None:
    net, tokens = network(n_types=2), ids(50)
    plain = net(Batch.pack([tokens]))
    assert torch.equal(net(Batch.pack([tokens]), torch.zeros(50, dtype=torch.int64)), plain)
    assert (net(Batch.pack([tokens]), torch.ones(50, dtype=torch.int64)) != plain).any(1).all()
    net.position_embeddings.weight[: net.config.pad_id + 1] = math.nan  # rows that no position of a text is at
    assert torch.equal(net(Batch.pack([tokens])), plain)


@torch.no_grad()
def test_length_limit() -> None:
    net = network(local(3), max_positions=66)
    assert net.config.context == 64
    assert encode(net, ids(64)).shape == (64, 24)
    with pytest.raises(PromptOverflowError, match=r"65 tokens are more than the 64 that"):
        encode(net, ids(65))
    with pytest.raises(PromptOverflowError, match="65 tokens"):
        net(Batch.pack([ids(10), ids(65)]))


@torch.no_grad()
def test_refusals() -> None:
    net = network()
    with pytest.raises(EmptyPromptError):
        encode(net, [])
    for wrong in ([-1], [5, VOCABULARY]):
        with pytest.raises(UsageError, match=f"token id {wrong[-1]} is not in the vocabulary"):
            encode(net, wrong)
    for wrong in ([-1], [0, 4]):
        with pytest.raises(UsageError, match=f"global position {wrong[-1]} is outside"):
            encode(net, [5, 6, 7, 8], wrong)
    with pytest.raises(UsageError, match="whole sequences"):
        net(Batch.pack([[5, 6]], positions=[3]))
    headless = network(has_head=False)
    with pytest.raises(UnsupportedError, match="no masked-LM head"):
        headless.lm_logits(encode(headless, [5, 6]))


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_masked_head(tied: bool) -> None:
    net = network(tied_embeddings=tied, norm_eps=1e-3)
    hidden = encode(net, ids(20)).clone()
    x = F.gelu(hidden @ net.head.dense.weight.T + net.head.dense.bias)
    x = F.layer_norm(x, (24,), net.head.norm.weight, net.head.norm.bias, 1e-3)
    weight = net.tok_embeddings.weight if tied else net.output.weight
    torch.testing.assert_close(net.lm_logits(hidden), x @ weight.T + net.head.bias, atol=1e-4, rtol=1e-5)
    half = network(tied_embeddings=tied).to(torch.bfloat16)
    logits = half.lm_logits(encode(half, ids(20), [0]))
    assert (logits.dtype, logits.shape) == (torch.float32, (20, VOCABULARY))


@pytest.mark.parametrize(("has_head", "tied", "n_types"), [*product([True, False], [True, False], [1, 2])])
def test_parameter_shapes(has_head: bool, tied: bool, n_types: int) -> None:
    net = network(has_head=has_head, tied_embeddings=tied, n_types=n_types)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == encoder_shapes(net.config)


def test_config_facts() -> None:
    cfg = config(local(5), local(9, 3), local(33))
    assert (cfg.n_layers, cfg.windows, cfg.window, cfg.context) == (3, (5, 9, 33), 33, 2998)
    assert cfg.reach == 2 + 12 + 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be 1 or more"),
        ({"n_types": 0}, "n_types must be 1 or more"),
        ({"patterns": ()}, "at least one layer"),
        ({"patterns": (AttentionPattern(window=5),)}, "layer 0: an encoder's pattern is a symmetric window"),
        ({"patterns": (local(5), AttentionPattern(causal=False, window=5))}, "layer 1"),
        ({"patterns": (AttentionPattern(causal=False, global_tokens=True),)}, "layer 0"),
        ({"pad_id": VOCABULARY}, "pad_id = 61 is not an id of a vocabulary of 61"),
        ({"pad_id": -1}, "pad_id = -1"),
        ({"end_id": -2}, "end_id = -2"),
        ({"max_positions": 2}, "leaves no position"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
        ({"activation": "swiglu"}, "activation 'swiglu' is not known"),
    ],
)
def test_config_is_validated(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "error"), [({"window": 4}, WindowError), ({"window": 0}, WindowError), ({"pins": 2}, PinsError)]
)
def test_patterns_that_an_encoder_cannot_have(changes: dict[str, int], error: type[SashError]) -> None:
    with pytest.raises(error):
        AttentionPattern(**{"causal": False, "window": 5, "global_tokens": True, **changes})  # type: ignore[arg-type]
