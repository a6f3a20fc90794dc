from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.errors import UsageError
from sash.explain.mask import MOST_TOKENS, band_matrix, draw_masks

DRAWING = """\
Full Attention (N=8):      Sliding Window (N=8, W=4):
  1 2 3 4 5 6 7 8            1 2 3 4 5 6 7 8   (Columns = Keys)
1 X                        1 X
2 X X                      2 X X
3 X X X                    3 X X X
4 X X X X                  4 X X X X
5 X X X X X                5   X X X X           <-- Token 5 attends to 2,3,4,5
6 X X X X X X              6     X X X X         <-- Token 6 attends to 3,4,5,6
7 X X X X X X X            7       X X X X       <-- Token 7 attends to 4,5,6,7
8 X X X X X X X X          8         X X X X     <-- Token 8 attends to 5,6,7,8
(Rows = Queries)           (X = Calculated Attention)"""

SENTENCE = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]


def test_the_drawing_of_full_and_windowed_attention():
    drawn = draw_masks([band_matrix(AttentionPattern(), 8), band_matrix(AttentionPattern(window=4), 8)], width=80)
    assert drawn == DRAWING


def test_a_narrow_terminal_gets_one_below_the_other_and_the_same_marks():
    matrices = [band_matrix(AttentionPattern(), 8), band_matrix(AttentionPattern(window=4), 8)]
    drawn = draw_masks(matrices, width=45)
    assert max(map(len, drawn.splitlines())) <= 45
    assert "<--" not in drawn
    full, windowed = drawn.split("\n\n")
    assert full.splitlines()[2:10] == [line[:26].rstrip() for line in DRAWING.splitlines()[2:10]]
    assert windowed.splitlines()[2:10] == [line[27:44].rstrip() for line in DRAWING.splitlines()[2:10]]


def test_a_sentence_labels_rows_and_columns():
    lines = draw_masks([band_matrix(AttentionPattern(window=4), 9, labels=SENTENCE)]).splitlines()
    assert lines[1].split()[:9] == SENTENCE
    assert [line.split()[0] for line in lines[2:11]] == SENTENCE
    over = lines[7]
    marked = [word for word in SENTENCE if over[lines[1].index(f" {word} ") + 1] == "X"]
    assert marked == ["brown", "fox", "jumps", "over"]
    assert over.endswith("<-- Token over attends to brown,fox,jumps,over")


def test_pins_and_globals_have_letters_of_their_own():
    pinned = band_matrix(AttentionPattern(window=3, pins=1), 6)
    assert pinned.rows[5] == "P..XXX"
    assert pinned.rows[2] == "XXX..."
    assert "P = Pinned" in draw_masks([pinned])
    longformer = AttentionPattern(window=3, causal=False, global_tokens=True)
    seen = band_matrix(longformer, 6, global_positions=[0])
    assert seen.rows[0] == "XXGGGG"
    assert seen.rows[4] == "G..XXX"
    assert "G = Global" in draw_masks([seen])
    assert "symmetric" in seen.title


@st.composite
def drawn(draw: st.DrawFn) -> tuple[AttentionPattern, int, list[int], list[int]]:
    causal = draw(st.booleans())
    window = draw(st.integers(1, 8) if causal else st.sampled_from([1, 3, 5, 7]))
    pattern = AttentionPattern(
        window=window,
        causal=causal,
        pins=draw(st.integers(0, window)) if causal else 0,
        pin_by=draw(st.sampled_from(["first", "flag"])),
        global_tokens=draw(st.booleans()),
        dilation=draw(st.integers(1, 3)),
    )
    n = window + draw(st.integers(1, 16))
    places = st.integers(0, n - 1)
    return pattern, n, draw(st.lists(places, max_size=pattern.pins)), draw(st.lists(places, max_size=3))


@settings(max_examples=200, deadline=None)
@given(drawn())
def test_marks_are_what_the_pattern_allows(case: tuple[AttentionPattern, int, list[int], list[int]]):
    pattern, n, pinned, flagged = case
    matrix = band_matrix(pattern, n, pinned_positions=pinned, global_positions=flagged)

    def token(i: int) -> TokenMeta:
        return TokenMeta(position=i, pinned=i in pinned, is_global=i in flagged)

    for query in range(n):
        allowed = [key for key in range(n) if pattern.allows(token(query), token(key))]
        assert list(matrix.keys_of(query)) == allowed
    assert matrix.pairs == pattern.visible_pairs(n, flagged, pinned)


def test_the_data_is_json_and_complete():
    data = json.loads(json.dumps(band_matrix(AttentionPattern(window=2), 3, labels=["a", " b", "\n"]).to_json()))
    assert data == {
        "window": 2,
        "pins": 0,
        "dilation": 1,
        "causal": True,
        "layers": [],
        "labels": ["a", "▁b", "\\n"],
        "rows": ["X..", "XX.", ".XX"],
        "sees": [[0], [0, 1], [1, 2]],
        "pairs": 5,
    }


def test_columns_stay_aligned_under_wide_characters():
    lines = draw_masks([band_matrix(AttentionPattern(window=2), 3, labels=["窓", "a", "枠枠"])]).splitlines()
    assert lines[1].startswith("     窓 a 枠枠")
    assert lines[3].startswith("a    X  X")


@pytest.mark.parametrize(
    ("n", "options", "says"),
    [
        (0, {}, "1 token or more"),
        (MOST_TOKENS + 1, {}, f"at most {MOST_TOKENS}"),
        (10**9, {}, f"at most {MOST_TOKENS}"),
        (4, {"labels": ["a"]}, "1 labels for 4"),
        (4, {"global_positions": [4]}, "position 4"),
        (4, {"pinned_positions": [-1]}, "position -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(n: int, options: dict[str, list[int]], says: str):
    with pytest.raises(UsageError, match=says):
        band_matrix(AttentionPattern(window=3), n, **options)
