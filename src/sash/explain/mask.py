"""Who sees whom in one layer, as a matrix: rows are queries, columns are keys, a letter says why a pair is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sash.attention.pattern import AttentionPattern, TokenMeta
from sash.errors import UsageError
from sash.explain.labels import numbers, padded, visible, widest

MOST_TOKENS = 64
_GAP = 6
Letter = Literal["X", "P", "G", "."]


@dataclass(frozen=True, slots=True, kw_only=True)
class BandMatrix:
    """The pairs of one layer.

    Attributes:
        pattern: the layer's pattern.
        labels: one a token, or empty to number the tokens from 1.
        rows: one string a query, one letter a key: X through the window, P a pin beyond it, G a global token beyond
            both, "." not computed.
        layers: numbers, from 1, of the model's layers that have this pattern; empty where there is no model.
    """

    pattern: AttentionPattern
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    layers: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of the sequence."""
        return len(self.rows)

    @property
    def pairs(self) -> int:
        """(query, key) pairs that are computed."""
        return sum(len(row) - row.count(".") for row in self.rows)

    @property
    def title(self) -> str:
        """What the drawing is headed by."""
        pattern = self.pattern
        facts = [f"N={self.n_tokens}"]
        facts += [] if pattern.window is None else [f"W={pattern.window}"]
        facts += [f"pins={pattern.pins}"] if pattern.pins else []
        facts += [f"dilation={pattern.dilation}"] if pattern.dilation > 1 else []
        facts += [] if pattern.causal else ["symmetric"]
        name = "Full Attention" if pattern.window is None else "Sliding Window"
        which = f", layers {numbers(self.layers)}" if self.layers else ""
        return f"{name} ({', '.join(facts)}){which}:"

    def keys_of(self, query: int) -> tuple[int, ...]:
        """Positions, from 0, that the query at position `query` sees."""
        return tuple(key for key, letter in enumerate(self.rows[query]) if letter != ".")

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class; `sees` lists, for each query, the positions (from 0) of its keys."""
        return {
            "window": self.pattern.window,
            "pins": self.pattern.pins,
            "dilation": self.pattern.dilation,
            "causal": self.pattern.causal,
            "layers": list(self.layers),
            "labels": list(self.labels),
            "rows": list(self.rows),
            "sees": [list(self.keys_of(query)) for query in range(self.n_tokens)],
            "pairs": self.pairs,
        }


def band_matrix(
    pattern: AttentionPattern,
    n_tokens: int,
    *,
    labels: Sequence[str] = (),
    global_positions: Sequence[int] = (),
    pinned_positions: Sequence[int] = (),
    layers: Sequence[int] = (),
) -> BandMatrix:
    """The matrix of `pattern` over a sequence of `n_tokens`, at most `MOST_TOKENS`.

    Raises:
        UsageError: no tokens, more than can be drawn, labels that do not match, or a flag outside the sequence.

    >>> band_matrix(AttentionPattern(window=2, pins=1), 4).rows
    ('X...', 'XX..', 'PXX.', 'P.XX')
    """
    if n_tokens < 1:
        raise UsageError(f"a mask needs 1 token or more; got {n_tokens}")
    if n_tokens > MOST_TOKENS:
        raise UsageError(f"a mask is drawn for at most {MOST_TOKENS} tokens; got {n_tokens:,}: give fewer")
    if labels and len(labels) != n_tokens:
        raise UsageError(f"{len(labels)} labels for {n_tokens} tokens: give one each, or none")
    for position in (*global_positions, *pinned_positions):
        if not 0 <= position < n_tokens:
            raise UsageError(f"position {position} is not in a sequence of {n_tokens} tokens, which starts at 0")
    tokens = [
        TokenMeta(position=i, pinned=i in pinned_positions, is_global=i in global_positions) for i in range(n_tokens)
    ]
    window = replace(pattern, pins=0, global_tokens=False, global_reach=None)
    held = replace(pattern, global_tokens=False, global_reach=None)

    def letter(query: TokenMeta, key: TokenMeta) -> Letter:
        if not pattern.allows(query, key):
            return "."
        return "X" if window.allows(query, key) else "P" if held.allows(query, key) else "G"

    rows = tuple("".join(letter(query, key) for key in tokens) for query in tokens)
    return BandMatrix(pattern=pattern, labels=tuple(visible(text) for text in labels), rows=rows, layers=tuple(layers))


def draw_masks(matrices: Sequence[BandMatrix], width: int = 120) -> str:
    """The matrices of one sequence side by side where `width` allows it, else one below the other.

    >>> full, window = AttentionPattern(), AttentionPattern(window=2)
    >>> print(draw_masks([band_matrix(full, 3), band_matrix(window, 3)]))
    Full Attention (N=3):      Sliding Window (N=3, W=2):
      1 2 3                      1 2 3   (Columns = Keys)
    1 X                        1 X
    2 X X                      2 X X
    3 X X X                    3   X X     <-- Token 3 attends to 2,3
    (Rows = Queries)           (X = Calculated Attention)
    """
    blocks = [_block(matrix) for matrix in matrices]
    letters = "".join(sorted({letter for matrix in matrices for row in matrix.rows for letter in row}))
    meanings = {"X": "X = Calculated Attention", "P": "P = Pinned", "G": "G = Global"}
    legend = "(" + ", ".join(text for letter, text in meanings.items() if letter in letters or letter == "X") + ")"
    blocks = [[*block, "(Rows = Queries)" if i == 0 else legend] for i, block in enumerate(blocks)]
    if len(blocks) == 1:
        blocks[0][-1] += " " + legend
    sides = [widest(block) for block in blocks]
    lefts = [sum(sides[:i]) + i * _GAP for i in range(len(blocks))]
    keys = "   (Columns = Keys)"
    if lefts[-1] + max(sides[-1], widest([blocks[-1][1]]) + len(keys)) > width and len(blocks) > 1:
        return "\n\n".join(draw_masks([matrix], width) for matrix in matrices)
    bare = [
        "".join(padded(block[row], side + _GAP) for block, side in zip(blocks[:-1], sides[:-1], strict=True))
        + blocks[-1][row]
        for row in range(len(blocks[-1]))
    ]
    edge = lefts[-1] + widest([blocks[-1][1]])
    notes = _notes(matrices[-1])
    if edge + widest(notes) > width:
        notes = [""] * len(notes)
    noted = ["", keys, *notes, ""]
    return "\n".join(
        (padded(line, edge) + note if note else line).rstrip() for line, note in zip(bare, noted, strict=True)
    )


def _block(matrix: BandMatrix) -> list[str]:
    """Title, header and one line a query; the header is as wide as the matrix."""
    numbered = not matrix.labels
    names = list(matrix.labels) or [str(i + 1) for i in range(matrix.n_tokens)]
    edge = widest(names)
    columns = [edge] * len(names) if numbered else [widest([name]) for name in names]

    def line(head: str, cells: Sequence[str]) -> str:
        fields = [head, *cells]
        return " ".join(padded(f, w, right=numbered) for f, w in zip(fields, [edge, *columns], strict=True))

    rows = [line(name, row.replace(".", " ")) for name, row in zip(names, matrix.rows, strict=True)]
    return [matrix.title, line("", names), *rows]


def _notes(matrix: BandMatrix) -> list[str]:
    """Beside each row, what a query that does not see all is left with."""
    names = list(matrix.labels) or [str(i + 1) for i in range(matrix.n_tokens)]
    notes = []
    for query, name in enumerate(names):
        keys = matrix.keys_of(query)
        everything = query + 1 if matrix.pattern.causal else matrix.n_tokens
        listed = ",".join(names[key] for key in keys)
        notes.append(f"     <-- Token {name} attends to {listed}" if len(keys) < everything else "")
    return notes
