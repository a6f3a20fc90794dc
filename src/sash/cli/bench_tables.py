"""The tables of `sash bench`, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sash.explain.budget import binary
from sash.explain.labels import table

if TYPE_CHECKING:
    from sash.evaluation.footprint import Footprint
    from sash.evaluation.limits import Limits
    from sash.evaluation.speed import Speed


def draw_speeds(lines: list[Speed], limits: Limits) -> list[str]:
    """A table of speeds."""
    rows = [["", "tokens", "depth", "streams", "tok/s", "rounds", "limit", "reached", "bound by"]]
    for line in lines:
        slowest, fastest = min(line.speeds), max(line.speeds)
        limit, bound = line.limit(limits)
        rows.append(
            [
                line.task,
                f"{line.n_tokens:,}",
                f"{line.depth:,}",
                f"{line.n_streams:,}",
                figure(line.median),
                f"{figure(slowest)} to {figure(fastest)}",
                figure(limit),
                f"{100 * line.median / limit:.0f}%",
                bound,
            ]
        )
    return table(rows, right=[False, True, True, True, True, True, True, True, False])


def draw_limits(limits: Limits) -> list[str]:
    """What the machine can do, for people."""
    threads = f"{limits.threads} thread{'s' * (limits.threads != 1)}"
    lines = [f"this machine, {threads}: reads {limits.memory_read / 1e9:.1f} GB/s ({limits.sources['memory']})"]
    for kind, peak in limits.matrix.items():
        lines.append(f"matrix products, {kind}: {peak / 1e12:.2f} T a second ({limits.sources[kind]})")
    return lines


def figure(speed: float) -> str:
    """A speed with about three digits.

    >>> figure(3.14159), figure(41.27), figure(1523.4)
    ('3.14', '41.3', '1,523')
    """
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}" if speed >= 10 else f"{speed:.2f}"


def draw_footprints(footprints: list[Footprint]) -> list[str]:
    """A table of memory."""
    rows = [["tokens read", "resident", "keys and values"]]
    rows += [
        [f"{one.n_tokens:,}", "-" if one.resident is None else binary(one.resident), binary(one.cache)]
        for one in footprints
    ]
    return table(rows, right=[True, True, True])
