"""What became of the parts of a prompt: can the token that is written now still see them, and through which layers?

A token that is written at position p is drawn from what the network says at position p - 1. A part of the prompt is
seen DIRECTLY by it if some layer shows that position the part's keys, through its window or because they are pinned or
global; it is RECALLED if a layer has brought it back for that position, and SUMMARISED if all that is shown of it is a
summary that it is a part of; it is a RELAY if only other positions, which saw it in layers below, can pass it on; else
it is OUT, and no change to it can change what is written. All of it follows from the patterns, and no model is run; but
for what is recalled, which only a running model knows, of the token that comes next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from sash.attention.pattern import AttentionPattern
from sash.errors import UsageError
from sash.explain.labels import numbers, table
from sash.explain.reach import Cone, cone
from sash.explain.spans import Spans
from sash.explain.visible_keys import Beside

Verdict = Literal["direct", "recalled", "summarised", "relay", "out", "mixed"]
WIDEST = 42
"""Terminal cells that a part's name takes in a table."""

RECALLS = "what recall brought back for earlier tokens is not counted: they may have passed it on"
"""What is said below an audit of a model that recalls."""

Part = tuple[str, range]
"""A part of a prompt: what it is called, and the positions of its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartAudit:
    """What a token that is written can know of one part of what was read.

    Attributes:
        name: of the part.
        span: positions of its tokens.
        direct: tokens of it that some layer shows through its window.
        pinned, global_seen: tokens beyond all windows that some layer shows for being pinned, or global.
        relay: tokens that only other positions can pass on.
        out: tokens that nothing leads from.
        layers: numbers, from 1 at the input, of the layers that show all of it.
        layers_in_part: of those that show some of it, but not all.
        hops: the fewest moves from position to position that its nearest and its farthest reached token need; None
            where nothing of it is reached.
        recalled: tokens that nothing else shows, and that some layer has brought back for one head or more.
        summarised: tokens of which only summaries are shown.
    """

    name: str
    span: range
    direct: int
    pinned: int
    global_seen: int
    relay: int
    out: int
    layers: tuple[int, ...]
    layers_in_part: tuple[int, ...]
    hops: tuple[int, int] | None
    recalled: int = 0
    summarised: int = 0

    @property
    def counts(self) -> dict[Verdict, int]:
        """Tokens of each kind."""
        return {
            "direct": self.direct + self.pinned + self.global_seen,
            "recalled": self.recalled,
            "summarised": self.summarised,
            "relay": self.relay,
            "out": self.out,
        }

    @property
    def verdict(self) -> Verdict:
        """What all its tokens are, or "mixed"."""
        kinds = [kind for kind, count in self.counts.items() if count]
        return kinds[0] if len(kinds) == 1 else "mixed"

    def words(self, n_layers: int) -> str:
        """The verdict for people.

        >>> audit([AttentionPattern(window=4)] * 3, 20, [("a", range(12, 15))]).parts[0].words(3)
        'through deeper layers only, 2-3 moves'
        """
        shown = self.direct + self.pinned + self.global_seen
        n_tokens = len(self.span)
        said = []
        if shown:
            why = "pinned" if not self.direct and not self.global_seen else "seen directly"
            where = "" if shown < n_tokens else f" in {_layers(self.layers, self.layers_in_part, n_layers)}"
            said.append(why + where)
        if self.recalled:
            said.append("brought back")
        if self.summarised:
            said.append("in summaries only")
        if self.relay:
            low, high = max(2, self.hops[0]) if self.hops else 2, self.hops[1] if self.hops else 2
            said.append(f"through deeper layers only, {low if low == high else f'{low}-{high}'} moves")
        if self.out:
            said.append("out of reach")
        counts = [count for count in self.counts.values() if count]
        if len(said) == 1:
            return said[0]
        return "; ".join(
            f"{count:,} token{'s' if count > 1 else ''} {text}" for count, text in zip(counts, said, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class, and the verdict; `span` as [first, end] positions from 0."""
        return {
            "name": self.name,
            "span": [self.span.start, self.span.stop],
            "verdict": self.verdict,
            "direct": self.direct,
            "pinned": self.pinned,
            "global": self.global_seen,
            "recalled": self.recalled,
            "summarised": self.summarised,
            "relay": self.relay,
            "out": self.out,
            "layers": list(self.layers),
            "layers_in_part": list(self.layers_in_part),
            "hops": None if self.hops is None else list(self.hops),
        }

    @staticmethod
    def of_json(told: Mapping[str, Any]) -> PartAudit:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        first, end = map(int, told["span"])
        hops = None if told["hops"] is None else tuple(map(int, told["hops"]))
        if hops is not None and len(hops) != 2:
            raise ValueError(f"{len(hops)} numbers of moves")
        return PartAudit(
            name=str(told["name"]),
            span=range(first, end),
            global_seen=int(told["global"]),
            layers=tuple(map(int, told["layers"])),
            layers_in_part=tuple(map(int, told["layers_in_part"])),
            hops=hops,
            recalled=int(told.get("recalled", 0)),
            summarised=int(told.get("summarised", 0)),
            **{name: int(told[name]) for name in ("direct", "pinned", "relay", "out")},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the token written at one position can know of parts of what was read before it.

    Attributes:
        position: where the token is written; it is drawn from what was said at the position before.
        n_layers: layers of the model.
        parts: in the order in which they were given.
        recalls: whether layers bring back what they want: then an earlier token may have had, and passed on, what
            nothing here leads from.
    """

    position: int
    n_layers: int
    parts: tuple[PartAudit, ...]
    recalls: bool = False

    def to_json(self) -> dict[str, Any]:
        """Fields as in the class."""
        return {
            "position": self.position,
            "n_layers": self.n_layers,
            "recalls": self.recalls,
            "parts": [part.to_json() for part in self.parts],
        }

    @staticmethod
    def of_json(told: Mapping[str, Any]) -> Audit:
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.

        >>> seen = audit([AttentionPattern(window=4)] * 3, 20, [("a", range(12, 15)), ("b", range(2, 18))])
        >>> Audit.of_json(seen.to_json()) == seen
        True
        """
        parts = tuple(map(PartAudit.of_json, told["parts"]))
        recalls = told.get("recalls") is True
        return Audit(position=int(told["position"]), n_layers=int(told["n_layers"]), parts=parts, recalls=recalls)


def audit(
    patterns: Sequence[AttentionPattern],
    position: int,
    parts: Sequence[Part],
    *,
    pinned_positions: Sequence[int] = (),
    global_positions: Sequence[int] = (),
    beside: Beside | None = None,
) -> Audit:
    """What the token written at `position` can know of each part, exactly; see `PartAudit`.

    Flags at `position` and after are not read: they cannot matter to a causal model. Time grows with layers and parts,
    not with positions or windows.

    Args:
        patterns: of the layers, from the input up; all causal.
        position: 1 or more; tokens 0 to position - 1 were read.
        parts: none of them empty, none past `position`.
        pinned_positions, global_positions: flagged tokens.
        beside: what annexes show beside windows and pins.

    Raises:
        UsageError: a position or part that cannot be, or an encoder's layer.

    >>> window = [AttentionPattern(window=4096)] * 32
    >>> [part.verdict for part in audit(window, 200_000, [("a", range(9)), ("b", range(196_000, 196_010))]).parts]
    ['out', 'direct']
    """
    if not all(pattern.causal for pattern in patterns):
        raise UsageError("an audit is of tokens that are written, and an encoder writes none")
    before = [at for at in pinned_positions if at < position], [at for at in global_positions if at < position]
    seen = cone(patterns, position, pinned_positions=before[0], global_positions=before[1], beside=beside)
    return replace(audit_of(seen, parts), recalls=beside is not None and beside.recalls)


def audit_of(seen: Cone, parts: Sequence[Part]) -> Audit:
    """What the token that follows the last token of a cone can know of each part; see `audit`.

    Raises:
        UsageError: a part that was not read.
    """
    told = tuple(_part(seen, name, span) for name, span in parts)
    return Audit(position=seen.n_tokens, n_layers=len(seen.layers), parts=told)


def audit_reading(
    patterns: Sequence[AttentionPattern],
    position: int,
    in_sight: Sequence[int],
    parts: Sequence[Part],
    pinned_positions: Sequence[int] = (),
) -> Audit:
    """The audit of a text of which only some tokens were read (again) in a row of their own: all others are out.

    Args:
        patterns: of the layers, from the input up.
        position: as in `audit`.
        in_sight: positions of the tokens in the row, in its order.
        parts: as in `audit`.
        pinned_positions: flagged tokens.

    >>> parts = [("a", range(2)), ("b", range(2, 9))]
    >>> found = audit_reading([AttentionPattern(window=4)] * 9, 20, [0, 17, 18, 19], parts)
    >>> [part.verdict for part in found.parts], found.parts[0].direct
    (['mixed', 'out'], 1)
    """
    index_of = {at: index for index, at in enumerate(in_sight)}
    seen = cone(patterns, len(in_sight), pinned_positions=[index_of[at] for at in pinned_positions if at in index_of])
    told = []
    for name, span in parts:
        ranges: list[range] = []
        for index in (index_of[at] for at in span if at in index_of):
            if ranges and ranges[-1].stop == index:
                ranges[-1] = range(ranges[-1].start, index + 1)
            else:
                ranges.append(range(index, index + 1))
        told.append(_joined(name, span, [_part(seen, name, piece) for piece in ranges]))
    return Audit(position=position, n_layers=len(patterns), parts=tuple(told))


def _joined(name: str, span: range, pieces: Sequence[PartAudit]) -> PartAudit:
    """A part of which only some pieces were read."""
    n_read = sum(len(piece.span) for piece in pieces)
    whole = set[int].intersection(*(set(piece.layers) for piece in pieces)) if n_read == len(span) else set()
    some = {layer for piece in pieces for layer in (*piece.layers, *piece.layers_in_part)}
    hops = [hop for piece in pieces if piece.hops is not None for hop in piece.hops]
    return PartAudit(
        name=name,
        span=span,
        direct=sum(piece.direct for piece in pieces),
        pinned=sum(piece.pinned for piece in pieces),
        global_seen=sum(piece.global_seen for piece in pieces),
        relay=sum(piece.relay for piece in pieces),
        recalled=sum(piece.recalled for piece in pieces),
        summarised=sum(piece.summarised for piece in pieces),
        out=len(span) - n_read + sum(piece.out for piece in pieces),
        layers=tuple(sorted(whole)),
        layers_in_part=tuple(sorted(some - whole)),
        hops=(min(hops), max(hops)) if hops else None,
    )


def _part(seen: Cone, name: str, span: range) -> PartAudit:
    if not 0 <= span.start < span.stop <= seen.n_tokens or span.step != 1:
        raise UsageError(f"tokens {span.start} to {span.stop - 1} are no part of the {seen.n_tokens:,} that were read")

    def among(spans: Spans) -> int:
        return len(spans.within(span.start, span.stop))

    alike: dict[tuple[Spans, Spans], int] = {}  # layers of one pattern show the same
    shown: dict[int, int] = {}
    for layer in reversed(seen.layers):
        both = layer.direct, layer.held
        if both not in alike:
            alike[both] = len(both[0].within(span.start, span.stop) | both[1].within(span.start, span.stop))
        shown[layer.layer] = alike[both]
    hops = [count for count, spans in enumerate(seen.hops) if among(spans)]
    kinds = ("direct", "pinned", "global_seen", "recalled", "summarised")
    counts: dict[str, int] = {kind: among(getattr(seen, kind)) for kind in kinds}
    out = len(span) - among(seen.layers[-1].reached)
    return PartAudit(
        name=name,
        span=span,
        relay=len(span) - sum(counts.values()) - out,
        out=out,
        layers=tuple(number for number, count in shown.items() if count == len(span)),
        layers_in_part=tuple(number for number, count in shown.items() if 0 < count < len(span)),
        hops=(hops[0], hops[-1]) if hops else None,
        **counts,
    )


def draw_audit(first: Audit, last: Audit) -> str:
    """A table of the parts, for the first and the last token that was written; like parts side by side share a row.

    Raises:
        UsageError: audits of different parts.
    """
    if [part.name for part in first.parts] != [part.name for part in last.parts]:
        raise UsageError("two audits can be drawn together if they are of the same parts")
    pairs = list(zip(first.parts, last.parts, strict=True))

    def state(pair: tuple[PartAudit, PartAudit]) -> tuple[str, ...]:
        return pair[0].words(first.n_layers), pair[1].words(last.n_layers)

    rows = [["tokens", "part", f"for token {first.position:,}, the first written", f"for {last.position:,}, the last"]]
    for words, group in groupby(pairs, state):
        alike = [pair[0] for pair in group]
        start, stop = alike[0].span.start, alike[-1].span.stop
        names = [alike[0].name, alike[-1].name]
        names = [name if cell_len(name) <= WIDEST else set_cell_size(name, WIDEST - 1).rstrip() + "…" for name in names]
        what = names[0] if len(alike) == 1 else f"{names[0]} to {names[1]}, {len(alike)} parts"
        same = ["same"] if words[0] == words[1] else [words[1]]
        rows.append([f"{start:,}-{stop - 1:,}", what, words[0], *same])
    drawn = table(rows, right=[True, False, False, False])
    return "\n".join([*drawn, *([RECALLS] if first.recalls else [])])


def _layers(whole: Sequence[int], in_part: Sequence[int], n_layers: int) -> str:
    if len(whole) == n_layers:
        return f"all {n_layers} layers"
    if not whole:
        return f"no layer whole, in part in {numbers(in_part)} of {n_layers}"
    return f"layer{'s' if len(whole) > 1 else ''} {numbers(whole)} of {n_layers}"
