"""What slots are made of, and runs of them.

Key and value vectors are kept in the network's own numbers, as bfloat16, or as int8 with scales.

An int8 vector has one scale, that of its own largest component, so what a slot holds depends on its token alone, and
not on what else is read or held. The step's own keys and values go through the same rounding before they are attended
to: so a token has the same key whether it is met in its own chunk or in a slot, and nothing depends on chunks.

Shape suffixes: N vectors, K components; dots stand for any dimensions in front.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

MANY = 1 << 20
"""Bytes from which on zeros are left to the system."""

LEAST = 2.0**-119
"""Vectors whose largest component is smaller are kept as zeros: 127 / largest would leave the range of float32."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of K components.

    Attributes:
        numbers: [..., N, K]; int8 ones lie between -127 and 127.
        scales: what int8 numbers are multiplied by, float32 [..., N]; None for numbers that mean themselves.
    """

    numbers: Tensor
    scales: Tensor | None = None

    @staticmethod
    def zeros(shape: tuple[int, ...], dim: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Vectors of `dim` zeros; `shape` are the dimensions in front."""
        numbers = _zeros((*shape, dim), dtype, device)
        return Vectors(numbers, torch.zeros(shape, device=device) if dtype == torch.int8 else None)

    @staticmethod
    def of(x: Tensor, dtype: torch.dtype) -> Vectors:
        """The vectors of `x`, [..., N, K], in numbers of `dtype`.

        For int8, scale = largest / 127 and q = round(x * (127 / largest)), to the nearest and to even at ties, in
        float32, where largest is the largest magnitude of the vector. A vector that is not finite comes back so.

        >>> two = Vectors.of(torch.tensor([[0.0, 1.0, -12.7], [0.0, 0.0, 0.0]]), torch.int8)
        >>> two.numbers.tolist(), [round(scale, 6) for scale in two.scales.tolist()]
        ([[0, 10, -127], [0, 0, 0]], [0.1, 0.0])
        """
        if dtype != torch.int8:
            return Vectors(x.to(dtype))
        x = x.float()
        largest = x.abs().amax(-1, keepdim=True)
        inverse = torch.where(largest >= LEAST, torch.full_like(largest, 127) / largest, 0.0)
        return Vectors((x * inverse).round_().to(torch.int8), (largest / 127).squeeze(-1))

    def to(self, dtype: torch.dtype) -> Tensor:
        """The vectors as a tensor to compute with; without a copy where they are of that type."""
        if self.scales is None:
            return self.numbers.to(dtype)
        return (self.numbers.float() * self.scales.unsqueeze(-1)).to(dtype)

    def __getitem__(self, index: Any) -> Vectors:
        """The vectors at an index of the dimensions in front, in place."""
        return Vectors(self.numbers[index], None if self.scales is None else self.scales[index])

    def copy_(self, other: Vectors) -> None:
        """Take over vectors of the same kind."""
        self.numbers.copy_(other.numbers)
        if self.scales is not None and other.scales is not None:
            self.scales.copy_(other.scales)

    def zero_(self) -> None:
        """Leave nothing."""
        self.numbers.zero_()
        if self.scales is not None:
            self.scales.zero_()

    def clone(self) -> Vectors:
        """A copy."""
        return Vectors(self.numbers.clone(), None if self.scales is None else self.scales.clone())

    def tensors(self) -> list[Tensor]:
        """Numbers, and scales if they have any."""
        return [self.numbers] if self.scales is None else [self.numbers, self.scales]

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return self.numbers.nbytes + (0 if self.scales is None else self.scales.nbytes)


class HeldRun(NamedTuple):
    """Slots side by side that hold, or are to hold, consecutive positions of a row.

    Attributes:
        first_position: position in the first slot.
        size: slots.
        source: a store's "ring", "pins" or "annex", one of its growing blocks, or a row's "drafts".
        start: the first slot.
        block: which growing block; 0 elsewhere.
    """

    first_position: int
    size: int
    source: Literal["ring", "pins", "annex", "block", "drafts"]
    start: int
    block: int = 0


class Put(NamedTuple):
    """Tokens of a step that go into slots: tokens [token, token + run.size) of the step into `run`."""

    token: int
    run: HeldRun


Placement = tuple[Put, ...]
"""Where a span's tokens go."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the slots of a store are made of.

    Attributes:
        n_layers: layers that share the store.
        n_rows: sequences.
        n_heads: key/value heads.
        head_dim: components of a head.
        numbers: the type of the numbers kept.
        dtype: the type they are computed with.
        device: where they are.
    """

    n_layers: int
    n_rows: int
    n_heads: int
    head_dim: int
    numbers: torch.dtype
    dtype: torch.dtype
    device: torch.device

    def zeros(self, *shape: int) -> Vectors:
        """Empty slots."""
        return Vectors.zeros(shape, self.head_dim, self.numbers, self.device)

    def holds(self, vectors: Vectors, *shape: int) -> bool:
        """Whether vectors are made as `zeros(*shape)` would be."""
        numbers, scales = vectors.numbers, vectors.scales
        scaled = scales is not None and scales.dtype == torch.float32 and scales.shape == shape
        return (
            numbers.dtype == self.numbers
            and numbers.shape == (*shape, self.head_dim)
            and (scaled if self.numbers == torch.int8 else scales is None)
        )

    def kept(self, new_GTK: Tensor) -> Vectors:
        """Keys or values of a step as slots keep them."""
        return Vectors.of(new_GTK, self.numbers)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On the host, many of them cost nothing until they are written to, page by page.

    torch writes its zeros at once, and a ring would hold up the step that makes it for as long as several tokens take.

    Raises:
        RuntimeError: there is no memory, as torch says it.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or nbytes < MANY or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"no memory for {nbytes} bytes") from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def stretches(flags: list[bool]) -> list[tuple[int, int]]:
    """(first, count) of each stretch of true flags.

    >>> stretches([False, True, True, False, True])
    [(1, 2), (4, 1)]
    """
    found: list[tuple[int, int]] = []
    for index, flag in enumerate(flags):
        if flag and found and found[-1][0] + found[-1][1] == index:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        elif flag:
            found.append((index, 1))
    return found
