"""What a model takes in memory, after loading and while it reads on and on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sash.errors import UsageError
from sash.lm import LM


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory at one moment, in bytes.

    Attributes:
        n_tokens: read so far.
        resident: of the whole process; None where the system does not say.
        cache: keys and values.
    """

    n_tokens: int
    resident: int | None
    cache: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def resident_memory() -> int | None:
    """Bytes of this process that are in memory, mapped files included; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def footprints(
    lm: LM,
    lengths: tuple[int, ...],
    *,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Footprint]:
    """The memory of one session that reads random tokens: before the first, and after each of `lengths`.

    Args:
        lm: the model.
        lengths: tokens, ascending.
        cancelled: asked between two chunks; True ends the reading.
        progress: called with the number of tokens read after each chunk.

    Raises:
        UsageError: a length below 2, since a session keeps its last token unread, or lengths that do not ascend.
    """
    if any(length < 2 for length in lengths) or list(lengths) != sorted(set(lengths)):
        raise UsageError("the numbers of tokens ascend, from 2 on; got " + ", ".join(map(str, lengths)))
    generator = torch.Generator().manual_seed(0)
    session = lm.session()
    yield Footprint(n_tokens=0, resident=resident_memory(), cache=session.nbytes)
    for length in lengths:
        while session.tokens < length:
            if cancelled():
                return
            count = min(lm.chunk, length - session.tokens)
            session.feed(torch.randint(0, lm.config.vocab_size, (count,), generator=generator).tolist())
            progress(count)
        yield Footprint(n_tokens=length, resident=resident_memory(), cache=session.nbytes)
