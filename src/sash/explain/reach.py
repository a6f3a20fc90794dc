"""What the last token can know of: directly, as a pin, through deeper layers only, or not at all.

In one layer a query sees the keys that its pattern allows. Stacked, what position j told position k in one layer can
go on from k in the next (Mistral 7B, arXiv 2310.06825, figure 1): the cone of reach widens layer by layer, from the
output down to the input. That a path exists says what the model can know at most, not how much of it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.explain.labels import padded, table, visible, widest
from sash.explain.spans import Spans
from sash.explain.visible_keys import Beside, Flagged

MOST_COLUMNS = 64
Kind = Literal["direct", "pinned", "global", "recalled", "summarised", "relay", "out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How the last token can know of a position.

    Attributes:
        kind: "direct" where the window of at least one layer shows it; else "pinned" or "global" where a layer shows it
            for that reason; else "recalled" where one has brought it back; else "summarised" where a layer shows a
            summary of it; else "relay" where only other positions can pass it on; else "out".
        hops: layers in which it must move from one position to another: 0 for the last token itself, 1 for all that is
            seen in one layer, 2 or more for a relay; None where it is out.
    """

    kind: Kind
    hops: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReach:
    """One layer of the cone.

    Attributes:
        layer: its number, from 1 at the input.
        pattern: who sees whom in it.
        direct: positions that its window shows to the last token.
        held: positions that it shows to the last token for being pinned or global, in the window or not.
        reached: positions of its input from which something can get to the last token's output.
        through_windows: `reached` as it were without pins and global tokens.
    """

    layer: int
    pattern: AttentionPattern
    direct: Spans
    held: Spans
    reached: Spans
    through_windows: Spans

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class; spans as [first, end] pairs of positions from 0; `earliest_*` are their minima."""
        return {
            "layer": self.layer,
            "window": self.pattern.window,
            "pins": self.pattern.pins,
            "earliest_direct": self.direct.first,
            "earliest_reached": self.through_windows.first,
            "direct": self.direct.to_json(),
            "reached": self.reached.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Cone:
    """What the last token of a sequence can know of.

    Attributes:
        n_tokens: tokens of the sequence; positions run from 0 to n_tokens - 1.
        layers: from the output down to the input.
        direct, pinned, global_seen, recalled, summarised: positions of these kinds (see `Sight`), each in one set only.
        hops: hops[h] are the positions that need h moves at the least; see `Sight`.
    """

    n_tokens: int
    layers: tuple[LayerReach, ...]
    direct: Spans
    pinned: Spans
    global_seen: Spans
    recalled: Spans
    summarised: Spans
    hops: tuple[Spans, ...]

    @property
    def seen(self) -> Spans:
        """Positions that are shown in one layer or more, if only as a part of a summary."""
        return self.direct | self.pinned | self.global_seen | self.recalled | self.summarised

    @property
    def relay(self) -> Spans:
        """Positions that only other positions can pass on."""
        return self.layers[-1].reached - self.seen

    @property
    def out(self) -> Spans:
        """Positions that the last token cannot know of."""
        return Spans.of([(0, self.n_tokens)]) - self.layers[-1].reached

    def classify(self, position: int) -> Sight:
        """How the last token can know of `position`.

        Raises:
            UsageError: a position outside the sequence.
        """
        if not 0 <= position < self.n_tokens:
            raise UsageError(f"position {position} is not in a sequence of {self.n_tokens} tokens, which starts at 0")
        hops = next((h for h, spans in enumerate(self.hops) if position in spans), None)
        if hops is None:
            return Sight(kind="out", hops=None)
        one_hop: tuple[tuple[Kind, Spans], ...] = (
            ("direct", self.direct),
            ("pinned", self.pinned),
            ("global", self.global_seen),
            ("recalled", self.recalled),
            ("summarised", self.summarised),
        )
        return Sight(kind=next((kind for kind, spans in one_hop if position in spans), "relay"), hops=hops)

    def counts(self) -> dict[str, int]:
        """Positions of each kind; they add up to n_tokens."""
        return {
            "direct": len(self.direct),
            "pinned": len(self.pinned),
            "global": len(self.global_seen),
            "recalled": len(self.recalled),
            "summarised": len(self.summarised),
            "relay": len(self.relay),
            "out": len(self.out),
        }

    def to_json(self) -> dict[str, Any]:
        """Layers from the output down; spans as [first, end] pairs of positions from 0; `relay` by number of hops."""
        relay = [
            {"hops": hops, "spans": (spans - self.seen).to_json()}
            for hops, spans in enumerate(self.hops)
            if hops > 1 and spans.pairs
        ]
        return {
            "n_tokens": self.n_tokens,
            "layers": [layer.to_json() for layer in self.layers],
            "direct": self.direct.to_json(),
            "pinned": self.pinned.to_json(),
            "global": self.global_seen.to_json(),
            "recalled": self.recalled.to_json(),
            "summarised": self.summarised.to_json(),
            "relay": relay,
            "out": self.out.to_json(),
            "counts": self.counts(),
        }


def cone(
    patterns: Sequence[AttentionPattern],
    n_tokens: int,
    *,
    global_positions: Sequence[int] = (),
    pinned_positions: Sequence[int] = (),
    beside: Beside | None = None,
) -> Cone:
    """What the last of `n_tokens` tokens can know of through layers with these `patterns`, given from the input up.

    Exact: position j is reached if and only if a path of pairs that `allows` allows leads from it to the last token,
    one pair at most a layer. Time depends on the number of layers, flags and the logarithm of windows, not on
    `n_tokens` (with dilation: on how far the windows reach back).

    `beside` is what annexes show. Summaries count for every token. What was brought back counts for the last one only,
    where it is known; what an earlier one had of it may have been passed on, too.

    Raises:
        UsageError: no tokens, no layers, or a flag outside the sequence.

    >>> seen = cone((AttentionPattern(window=4096),) * 32, 200_000)
    >>> seen.layers[-1].reached, seen.classify(190_000), seen.classify(0)  # doctest: +NORMALIZE_WHITESPACE
    (Spans(pairs=((68959, 200000),)), Sight(kind='relay', hops=3), Sight(kind='out', hops=None))
    """
    beside = beside or Beside()
    flags = _flagged(patterns, n_tokens, pinned_positions, global_positions, beside)
    last = Spans.points([n_tokens - 1])
    kinds = {kind: Spans() for kind in ("direct", "pinned", "global_seen", "recalled", "summarised")}
    reached = through_windows = last
    at_most = [last]
    layers: list[LayerReach] = []
    for number, pattern in reversed(list(enumerate(patterns, start=1))):
        shown = flags.window_keys(pattern, last)
        pins, globals_ = flags.pin_keys(pattern, last), flags.global_keys(pattern, last)
        back = beside.recalled[number - 1].within(0, n_tokens) if beside.recalled else Spans()
        ways = (shown, pins, globals_, back, flags.summary_keys(pattern, last))
        kinds = {kind: spans | more for (kind, spans), more in zip(kinds.items(), ways, strict=True)}
        reached = flags.keys(pattern, reached) | back
        through_windows = flags.window_keys(replace(pattern, pins=0), through_windows)
        at_most = [
            last,
            *(a | flags.keys(pattern, b) | back for a, b in zip([*at_most[1:], at_most[-1]], at_most, strict=True)),
        ]
        layers.append(
            LayerReach(
                layer=number,
                pattern=pattern,
                direct=shown,
                held=pins | globals_,
                reached=reached,
                through_windows=through_windows,
            )
        )
    hops = [last, *(more - fewer for fewer, more in pairwise(at_most))]
    while not hops[-1].pairs:
        hops.pop()
    return Cone(
        n_tokens=n_tokens,
        layers=tuple(layers),
        hops=tuple(hops),
        **_apart(kinds),
    )


def _apart(kinds: Mapping[str, Spans]) -> dict[str, Spans]:
    """Each set without those before it."""
    found, taken = {}, Spans()
    for kind, spans in kinds.items():
        found[kind] = spans - taken
        taken |= spans
    return found


def _flagged(
    patterns: Sequence[AttentionPattern], n: int, pinned: Sequence[int], is_global: Sequence[int], beside: Beside
) -> Flagged:
    """The sequence with its flags, checked."""
    if n < 1:
        raise UsageError(f"reach needs 1 token or more; got {n}")
    if not patterns:
        raise UsageError("reach needs 1 layer or more")
    for position in (*is_global, *pinned):
        if not 0 <= position < n:
            raise UsageError(f"position {position} is not in a sequence of {n} tokens, which starts at 0")
    flags = Spans.points(pinned), Spans.points(is_global)
    return Flagged(n=n, pinned=flags[0], is_global=flags[1], hierarchy=beside.hierarchy)


def draw_cone(seen: Cone, labels: Sequence[str] = ()) -> str:
    """The cone as text: one row a layer, from the output down to the input; beyond 64 tokens as spans of positions.

    Raises:
        UsageError: labels that do not match the tokens.
    """
    if labels and len(labels) != seen.n_tokens:
        raise UsageError(f"{len(labels)} labels for {seen.n_tokens} tokens: give one each, or none")
    counts = seen.counts()
    words = {
        "direct": "seen directly",
        "pinned": "pinned",
        "global": "global",
        "recalled": "brought back",
        "summarised": "in summaries only",
        "relay": "through deeper layers only",
        "out": "out of reach",
    }
    total = ", ".join(f"{counts[kind]:,} {text}" for kind, text in words.items() if counts[kind] or kind == "direct")
    drawing = _as_columns(seen, labels) if seen.n_tokens <= MOST_COLUMNS else _as_spans(seen)
    return "\n".join([*drawing, "", f"Of {seen.n_tokens:,} tokens: {total}."])


def _window(pattern: AttentionPattern) -> str:
    return ("full" if pattern.window is None else f"W={pattern.window:,}") + (
        f" pins={pattern.pins}" if pattern.pins else ""
    )


def _as_spans(seen: Cone) -> list[str]:
    rows = [["layer", "window", "sees directly", "reached through layers down to it"]]
    rows += [[str(r.layer), _window(r.pattern), str(r.direct), str(r.reached)] for r in seen.layers]
    return table(rows, right=[True, False, False, False])


def _as_columns(seen: Cone, labels: Sequence[str]) -> list[str]:
    """A matrix of layers and tokens; the bottom lines tell how many moves each token of the input needs."""
    n = seen.n_tokens
    names = [visible(text) for text in labels] or [str(i + 1) for i in range(n)]
    columns = [widest([name]) for name in names]
    heads = [f"layer {r.layer}" for r in seen.layers] + ["input", "moves"]
    edge = widest([*heads, "output"])

    def line(head: str, cells: Sequence[str]) -> str:
        fields = [padded(cell, width) for cell, width in zip(cells, columns, strict=True)]
        return " ".join([padded(head, edge), *fields])

    def letter(reach: LayerReach, position: int) -> str:
        if position not in reach.reached:
            return "."
        return "X" if position in reach.through_windows else "+"

    outputs = [["."] * (n - 1) + ["X"], *([letter(r, i) for i in range(n)] for r in seen.layers)]
    notes = [f"  reads with {_window(r.pattern)}" for r in seen.layers] + [""]
    lines = [line("", names)]
    lines += [line(head, row) + note for head, row, note in zip(heads[:-1], outputs, notes, strict=True)]
    lines.append(line("moves", ["-" if (s := seen.classify(i)).hops is None else str(s.hops) for i in range(n)]))
    held = any(r.reached != r.through_windows for r in seen.layers)
    key = "X: the last token's output can depend on what this layer says of the token" + (
        "; +: through pins or global tokens only" if held else ""
    )
    return [text.rstrip() for text in [*lines, "", key, "moves: layers in which it must be passed on; -: out of reach"]]
