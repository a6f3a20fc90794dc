"""Audits of prompts, against a search of the layer graph, and against what real decoders let through."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.errors import UsageError
from sash.explain.audit import PartAudit, audit, audit_of, draw_audit
from sash.explain.reach import cone
from sash.explain.spans import Spans
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from tests.conftest import small_config, small_decoder

N_STACKS = 10_000


def random_stack(rng: random.Random, n: int) -> tuple[list[AttentionPattern], list[int], list[int]]:
    """Interleaved windows, full layers, pins of both kinds, dilation and global tokens, over `n` positions."""
    flagged = sorted(rng.sample(range(n), rng.randint(0, 3)))
    layers = []
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.12:
            layers.append(AttentionPattern(global_tokens=rng.random() < 0.2))
            continue
        window = rng.randint(1, 6)
        by_flag = rng.random() < 0.5 and window >= len(flagged)
        pins = len(flagged) if by_flag else rng.choice([0, 0, min(2, window)])
        dilation, global_tokens = rng.choice([1, 1, 1, 1, 2, 3]), rng.random() < 0.15
        bounded = global_tokens and (by_flag or not pins) and rng.random() < 0.5
        layers.append(
            AttentionPattern(
                window=window,
                pin_by="flag" if by_flag else "first",
                pins=pins,
                dilation=dilation,
                global_tokens=global_tokens,
                global_reach=(window - 1) * dilation + rng.randint(1, n) if bounded else None,
            )
        )
    return layers, flagged, rng.sample(range(n), rng.choice([0, 0, 0, 1, 2]))


def brute_force(
    layers: list[AttentionPattern], n: int, pinned: list[int], is_global: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What layer shows the last position what, [layers, n]; and the fewest moves from each position, -1 without a path.

    One matrix a layer says which inputs each output may depend on; a move costs 1, to stay costs nothing.
    """
    where = np.arange(n)
    tokens = TokenMeta(position=where, pinned=np.isin(where, pinned), is_global=np.isin(where, is_global))
    shown = np.zeros((len(layers), n), bool)
    far = 10 * n
    moves = np.full(n, far)
    moves[n - 1] = 0
    for depth in reversed(range(len(layers))):
        allowed = np.asarray(layers[depth].allows(tokens.reshape(-1, 1), tokens.reshape(1, -1)))
        shown[depth] = allowed[n - 1]
        cost = np.where(allowed, moves[:, None] + (where[:, None] != where[None, :]), far)
        moves = cost.min(axis=0)
    return shown, np.where(moves >= far, -1, moves)


def as_set(spans: Spans, n: int) -> np.ndarray:
    found = np.zeros(n, bool)
    for first, end in spans.pairs:
        found[first:end] = True
    return found


def test_ten_thousand_random_stacks_agree_with_brute_force_everywhere():
    rng = random.Random(5)
    verdicts = dict.fromkeys(("direct", "relay", "out", "mixed"), 0)
    for _ in range(N_STACKS):
        n = rng.randint(8, 20)  # more than most windows hold
        layers, pinned, is_global = random_stack(rng, n)
        shown, moves = brute_force(layers, n, pinned, is_global)
        seen = cone(layers, n, pinned_positions=pinned, global_positions=is_global)
        assert np.array_equal([as_set(layer.direct | layer.held, n) for layer in reversed(seen.layers)], shown)
        assert np.array_equal(as_set(seen.out, n), moves < 0)
        for count, spans in enumerate(seen.hops):
            assert np.array_equal(as_set(spans, n), moves == count)
        spans = [range(at, rng.randint(at + 1, n)) for at in rng.sample(range(n), 2)]
        for part in audit_of(seen, [("", span) for span in spans]).parts:
            check_part(part, shown[:, part.span.start : part.span.stop], moves[part.span.start : part.span.stop])
            verdicts[part.verdict] += 1
    assert min(verdicts.values()) > 500


def check_part(part: PartAudit, shown: np.ndarray, moves: np.ndarray) -> None:
    """A part against what brute force says of its positions."""
    directly = shown.any(axis=0)
    assert part.direct + part.pinned + part.global_seen == directly.sum()
    assert part.out == (moves < 0).sum()
    assert part.relay == ((moves >= 0) & ~directly).sum()
    whole = shown.all(axis=1)
    assert part.layers == tuple(np.flatnonzero(whole) + 1)
    assert part.layers_in_part == tuple(np.flatnonzero(shown.any(axis=1) & ~whole) + 1)
    reached = moves[moves >= 0]
    assert part.hops == ((reached.min(), reached.max()) if len(reached) else None)


def test_32_windows_of_4096_reach_131040_positions_back():
    patterns = [AttentionPattern(window=4096)] * 32
    position = 300_000
    back = [0, 1, 4095, 4096, 131_040, 131_041]
    parts = [(str(b), range(position - 1 - b, position - b)) for b in back]
    found = audit(patterns, position, parts).parts
    assert [part.verdict for part in found] == ["direct", "direct", "direct", "relay", "relay", "out"]
    assert [part.hops for part in found] == [(0, 0), (1, 1), (1, 1), (2, 2), (32, 32), None]
    edge = position - 1 - 131_040
    (mixed,) = audit(patterns, position, [("edge", range(edge - 5, edge + 7))]).parts
    assert (mixed.verdict, mixed.relay, mixed.out) == ("mixed", 7, 5)
    assert mixed.words(32) == "7 tokens through deeper layers only, 32 moves; 5 tokens out of reach"


def test_a_pinned_part_is_told_with_its_layers():
    local, full = AttentionPattern(window=8, pins=3, pin_by="flag"), AttentionPattern()
    parts = [("system", range(2, 5)), ("rest", range(30))]
    system, rest = audit([local, local, full], 40, parts, pinned_positions=[2, 3, 4, 90]).parts
    assert system.layers == (1, 2, 3)
    assert rest.layers == (3,)
    assert rest.layers_in_part == (1, 2)
    system, _ = audit([local, local], 40, parts, pinned_positions=[2, 3, 4]).parts
    assert (system.pinned, system.words(2)) == (3, "pinned in all 2 layers")


def test_what_a_pin_has_heard_is_relayed_however_long_ago():
    pattern = AttentionPattern(window=4, pins=1, pin_by="flag")
    heard, later = audit([pattern] * 3, 1000, [("a", range(5, 8)), ("b", range(9, 12))], pinned_positions=[8]).parts
    assert (heard.verdict, heard.hops) == ("relay", (2, 2))
    assert later.verdict == "out"


STACKS = [
    [AttentionPattern(window=4)] * 3,
    [AttentionPattern(window=3), AttentionPattern(window=6), AttentionPattern(window=2)],
    [AttentionPattern(window=4, pins=2)] * 2,
    [AttentionPattern(window=4, pins=3, pin_by="flag")] * 3,
    [AttentionPattern(window=3, dilation=2), AttentionPattern(window=3)],
    [AttentionPattern(window=3), AttentionPattern(), AttentionPattern(window=3)],
]


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("layers", STACKS)
def test_out_is_exactly_no_influence_and_all_else_is_some(layers: list[AttentionPattern], chunk: int | None):
    config = small_config(layers)
    decoder = small_decoder(config, seed=3)
    n, pinned = 24, [3, 4, 9]
    ids = torch.randint(0, config.vocab_size, (n,), generator=torch.Generator().manual_seed(1)).tolist()
    before = last_logits(decoder, config, ids, pinned, chunk)
    parts = [(str(at), range(at, at + 1)) for at in range(n)]
    verdicts = set()
    for part in audit(layers, n, parts, pinned_positions=pinned).parts:
        at = part.span.start
        changed = [*ids[:at], (ids[at] + 7) % config.vocab_size, *ids[at + 1 :]]
        after = last_logits(decoder, config, changed, pinned, chunk)
        assert torch.equal(before, after) == (part.verdict == "out"), (at, part)
        verdicts.add(part.verdict)
    assert verdicts >= ({"direct"} if any(layer.window is None for layer in layers) else {"direct", "relay", "out"})


def last_logits(
    decoder: Decoder, config: ModelConfig, ids: list[int], pinned: list[int], chunk: int | None
) -> torch.Tensor:
    cache = None if chunk is None else KVCache(config, 1)
    row = -1 if cache is None else cache.allocate()
    size = chunk or len(ids)
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        flags = [start + index in pinned for index in range(len(part))]
        batch = Batch.pack([part], [start], [row], pinned=[flags])
        hidden = decoder(batch, cache)
    return decoder.logits(hidden[-1:])


def test_parts_of_one_fate_share_a_row():
    patterns = [AttentionPattern(window=8)] * 2
    parts = [("system", range(4)), ("one", range(4, 6)), ("two", range(6, 10)), ("three", range(10, 13))]
    text = draw_audit(audit(patterns, 21, parts), audit(patterns, 23, parts))
    assert text.splitlines() == [
        "tokens  part                    for token 21, the first written      for 23, the last",
        "   0-5  system to one, 2 parts  out of reach                         same",
        "   6-9  two                     through deeper layers only, 2 moves  2 tokens through deeper layers only, 2 "
        "moves; 2 tokens out of reach",
        " 10-12  three                   through deeper layers only, 2 moves  same",
    ]


def test_an_audit_is_json():
    data = json.loads(json.dumps(audit([AttentionPattern(window=4)], 9, [("a", range(4, 7))]).to_json()))
    assert data["parts"][0]["verdict"] == "mixed"
    assert data["parts"][0]["span"] == [4, 7]
    assert data["parts"][0]["hops"] == [1, 1]


@pytest.mark.parametrize("span", [range(3, 3), range(5, 11), range(-1, 2), range(0, 4, 2)])
def test_parts_that_were_not_read_are_refused(span: range):
    with pytest.raises(UsageError, match="no part of the 10"):
        audit([AttentionPattern(window=4)], 10, [("a", span)])


def test_an_encoder_writes_nothing():
    with pytest.raises(UsageError, match="encoder"):
        audit([AttentionPattern(window=5, causal=False)], 10, [])
