"""A decoder's parameters as packed weights hold them: those that read the same input are one part. Needs no torch.

- `layers.0.attention.wqkv`: wq, wk and wv, one after the other; `layers.0.attention.wqkv.bias` beside it
- `layers.0.feed_forward.w13`: w1 and w3, their tiles in turn
- `layers.0.attention.wo`, `layers.0.feed_forward.w2`, `tok_embeddings`, `output`: as they are
- everything else, norms and routers, is not packed and keeps its name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from sash.errors import UsageError
from sash.network.config import ModelConfig
from sash.network.shapes import parameter_shapes

Weights = Literal["bf16", "int8", "int4"]
"""What a decoder's weights are packed as."""

Wanted = Literal["auto", "bf16", "int8", "int4"]
"""What a user asks for."""

TILE = 16
"""Outputs of a tile: what a joined weight's pieces are padded to."""

_QKV = re.compile(r"(.*\.attention)\.w[qkv]\.(weight|bias)")
_UP = re.compile(r"(.*)\.w[13]\.weight")
_ALONE = re.compile(r"((?:.*\.)?(?:wo|w2|tok_embeddings|output))\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a decoder.

    Attributes:
        sources: the parameters that it is made of, in order.
        rows: outputs of each of them.
        k: inputs; 0 for what has one dimension.
        join: how the sources are put together: "rows" one after the other, "tiles" in turn, each padded to whole
            tiles, or "plain": not packed.
    """

    sources: tuple[str, ...]
    rows: tuple[int, ...]
    k: int
    join: Literal["rows", "tiles", "plain"]

    @property
    def n(self) -> int:
        """Outputs: of a part of several sources, with their padding."""
        return self.rows[0] if len(self.rows) == 1 else sum(-(-rows // TILE) * TILE for rows in self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and, where it has two dimensions, inputs."""
        return (self.n, self.k) if self.k else (self.n,)


def parts_of(config: ModelConfig) -> dict[str, Part]:
    """Every part of a decoder by name, from the input up.

    Names of packed parts have no ending; those of the rest end in ".weight" or ".bias".
    """
    pieces: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in parameter_shapes(config).items():
        pieces.setdefault(_part_of(name), []).append((name, shape))
    parts = {}
    for name, found in pieces.items():
        plain = name.endswith((".weight", ".bias"))
        parts[name] = Part(
            sources=tuple(source for source, _ in found),
            rows=tuple(shape[0] for _, shape in found),
            k=found[0][1][1] if len(found[0][1]) > 1 else 0,
            join="plain" if plain else "tiles" if name.endswith(".w13") else "rows",
        )
    return parts


def check_weights(weights: str, name: str = "weights") -> Wanted:
    """What a user asked for, checked; `name` is what the user knows it by.

    Raises:
        UsageError: no such kind of weights.

    >>> check_weights("int8")
    'int8'
    """
    if weights in get_args(Wanted):
        return cast(Wanted, weights)
    raise UsageError(f"{name} is {', '.join(get_args(Wanted))}; got {weights!r}")


def _part_of(parameter: str) -> str:
    """The part that a parameter belongs to.

    >>> _part_of("layers.3.attention.wk.weight"), _part_of("layers.3.attention.wk.bias")
    ('layers.3.attention.wqkv', 'layers.3.attention.wqkv.bias')
    >>> _part_of("layers.3.feed_forward.experts.1.w3.weight"), _part_of("output.weight"), _part_of("norm.weight")
    ('layers.3.feed_forward.experts.1.w13', 'output', 'norm.weight')
    """
    if match := _QKV.fullmatch(parameter):
        return f"{match[1]}.wqkv" + (".bias" if match[2] == "bias" else "")
    if match := _UP.fullmatch(parameter):
        return f"{match[1]}.w13"
    match = _ALONE.fullmatch(parameter)
    return match[1] if match else parameter
