"""Reach, against a search through the graph of layers and positions."""

from __future__ import annotations

import json
from collections import deque
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern, TokenMeta, reach
from sash.errors import UsageError
from sash.explain.reach import Kind, Sight, cone, draw_cone
from sash.explain.spans import Spans


@st.composite
def stacks(draw: st.DrawFn) -> tuple[list[AttentionPattern], int, list[int], list[int]]:
    """Causal or symmetric stacks of full, windowed, pinned, dilated and global layers."""
    causal = draw(st.integers(0, 5)) > 0
    n = draw(st.integers(6, 14))
    flagged_pins = draw(st.lists(st.integers(0, n - 1), max_size=2, unique=True))
    layers = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.integers(0, 7)) == 0:
            layers.append(AttentionPattern(causal=causal))
            continue
        window = draw(st.integers(1, 4) if causal else st.sampled_from([1, 3, 5]))
        by_flag = draw(st.booleans()) and window >= len(flagged_pins)
        layers.append(
            AttentionPattern(
                window=window,
                causal=causal,
                pin_by="flag" if by_flag else "first",
                pins=0 if not causal else len(flagged_pins) if by_flag else draw(st.integers(0, min(2, window))),
                dilation=draw(st.sampled_from([1, 1, 1, 2, 3])),
                global_tokens=draw(st.integers(0, 3)) == 0,
            )
        )
    return layers, n, flagged_pins, draw(st.lists(st.integers(0, n - 1), max_size=2))


def search(
    layers: list[AttentionPattern], n: int, pinned: list[int], flagged: list[int]
) -> tuple[list[set[int]], dict[int, Sight]]:
    """Positions reached at the input of each layer, from the top down, and how each position is seen."""
    tokens = [TokenMeta(position=i, pinned=i in pinned, is_global=i in flagged) for i in range(n)]
    where = np.arange(n)
    together = TokenMeta(position=where, pinned=np.isin(where, pinned), is_global=np.isin(where, flagged))
    allowed = [layer.allows(together.reshape(-1, 1), together.reshape(1, -1)) for layer in layers]
    last = n - 1
    fewest = {(len(layers), last): 0}
    queue = deque([(len(layers), last)])
    while queue:
        depth, query = node = queue.popleft()
        if depth == 0:
            continue
        for key in np.flatnonzero(allowed[depth - 1][query]).tolist():
            after, moves = (depth - 1, key), fewest[node] + (key != query)
            if moves < fewest.get(after, n + 9):
                fewest[after] = moves
                queue.append(after)
    reached = [{p for d, p in fewest if d == depth} for depth in range(len(layers) - 1, -1, -1)]
    sights = {}
    for position in range(n):
        moves = fewest.get((0, position))
        kinds = {_kind(layer, tokens[last], tokens[position]) for layer in layers}
        shown = next((kind for kind in ("direct", "pinned", "global") if kind in kinds), None)
        sights[position] = Sight(kind=shown or ("out" if moves is None else "relay"), hops=moves)  # type: ignore[arg-type]
    return reached, sights


def _kind(layer: AttentionPattern, query: TokenMeta, key: TokenMeta) -> str | None:
    if not layer.allows(query, key):
        return None
    at = query.position, key.position
    window = AttentionPattern(window=layer.window, dilation=layer.dilation, causal=layer.causal)
    if window.allows(TokenMeta(position=at[0]), TokenMeta(position=at[1])):
        return "direct"
    pin = key.pinned if layer.pin_by == "flag" else key.position < layer.pins
    return "pinned" if layer.pins and pin else "global"


@settings(max_examples=700, deadline=None)
@given(stacks())
def test_the_cone_is_what_a_search_of_the_graph_finds(case: tuple[list[AttentionPattern], int, list[int], list[int]]):
    layers, n, pinned, flagged = case
    seen = cone(layers, n, pinned_positions=pinned, global_positions=flagged)
    reached, sights = search(layers, n, pinned, flagged)
    assert [layer.reached for layer in seen.layers] == [Spans.points(positions) for positions in reached]
    assert {position: seen.classify(position) for position in range(n)} == sights
    kinds = [sight.kind for sight in sights.values()]
    assert seen.counts() == {kind: kinds.count(kind) for kind in get_args(Kind)}


def test_mistral_7b_reaches_131040_positions_back():
    patterns = (AttentionPattern(window=4096),) * 32
    n = 1_000_000
    seen = cone(patterns, n)
    assert reach(patterns) == 131_040
    assert seen.layers[-1].reached.first == n - 1 - 131_040
    assert seen.classify(n - 1 - 131_040) == Sight(kind="relay", hops=32)
    assert seen.classify(n - 2 - 131_040) == Sight(kind="out", hops=None)
    assert seen.classify(n - 4096) == Sight(kind="direct", hops=1)
    assert seen.classify(n - 4097) == Sight(kind="relay", hops=2)
    assert seen.classify(n - 1) == Sight(kind="direct", hops=0)


def test_a_full_layer_shows_everything_directly():
    local = AttentionPattern(window=512)
    seen = cone((*(local,) * 5, AttentionPattern()), 10_000)
    assert seen.counts()["direct"] == 10_000
    assert seen.layers[0].layer == 6
    assert seen.layers[1].direct == Spans.of([(10_000 - 512, 10_000)])


def test_pins_are_told_from_what_the_windows_reach():
    seen = cone((AttentionPattern(window=4, pins=2),) * 2, 30)
    assert seen.classify(1) == Sight(kind="pinned", hops=1)
    assert seen.layers[-1].to_json()["earliest_reached"] == 29 - 2 * 3
    assert seen.counts() == dict.fromkeys(get_args(Kind), 0) | {"direct": 4, "pinned": 2, "relay": 3, "out": 21}


def test_the_drawing_of_a_sentence():
    sentence = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    assert draw_cone(cone((AttentionPattern(window=3),) * 3, 9), sentence) == (
        "        The quick brown fox jumps over the lazy dog\n"
        "layer 3 .   .     .     .   .     .    .   .    X    reads with W=3\n"
        "layer 2 .   .     .     .   .     .    X   X    X    reads with W=3\n"
        "layer 1 .   .     .     .   X     X    X   X    X    reads with W=3\n"
        "input   .   .     X     X   X     X    X   X    X\n"
        "moves   -   -     3     3   2     2    1   1    0\n"
        "\n"
        "X: the last token's output can depend on what this layer says of the token\n"
        "moves: layers in which it must be passed on; -: out of reach\n"
        "\n"
        "Of 9 tokens: 3 seen directly, 4 through deeper layers only, 2 out of reach."
    )


def test_a_long_sequence_is_told_in_spans():
    text = draw_cone(cone((AttentionPattern(window=4096, pins=4),) * 2, 30_000))
    assert "0-3, 21,809-29,999" in text
    assert "4,096 seen directly, 4 pinned, 4,095 through deeper layers only, 21,805 out of reach" in text


def test_the_data_is_json_and_adds_up():
    data = json.loads(json.dumps(cone((AttentionPattern(window=4, pins=1),) * 3, 40).to_json()))
    assert data["relay"] == [{"hops": 2, "spans": [[33, 36]]}, {"hops": 3, "spans": [[30, 33]]}]
    assert data["pinned"] == [[0, 1]]
    assert [layer["layer"] for layer in data["layers"]] == [3, 2, 1]
    assert [layer["earliest_reached"] for layer in data["layers"]] == [36, 33, 30]
    assert sum(data["counts"].values()) == 40


@pytest.mark.parametrize(
    ("patterns", "n", "flags", "says"),
    [
        ((AttentionPattern(),), 0, [], "1 token or more"),
        ((), 3, [], "1 layer or more"),
        ((AttentionPattern(),), 3, [3], "position 3"),
    ],
)
def test_what_cannot_be_asked_is_refused(patterns: tuple[AttentionPattern, ...], n: int, flags: list[int], says: str):
    with pytest.raises(UsageError, match=says):
        cone(patterns, n, global_positions=flags)


def test_positions_and_labels_outside_the_sequence_are_refused():
    seen = cone((AttentionPattern(window=2),), 5)
    for position in (-1, 5):
        with pytest.raises(UsageError, match=str(position)):
            seen.classify(position)
    with pytest.raises(UsageError, match="2 labels for 5"):
        draw_cone(seen, ["a", "b"])
