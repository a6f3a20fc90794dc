"""What is known of a tensor before it is read: the entry that every file format here parses into."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

# No tensor of a real model comes near, and no byte count below it can overflow 64 bits.
MAX_ELEMENTS = 2**48


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: as the file spells it.
        dtype: storage type by its name in the format: "BF16", "F32", "Q4_K".
        shape: in torch's order, the fastest dimension last.
        offset: of its first byte from the beginning of the file.
        nbytes: bytes it takes in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.nbytes

    @property
    def n_elements(self) -> int:
        """Number of values."""
        return prod(self.shape)


def bounded_product(sizes: tuple[int, ...]) -> int | None:
    """The product of non-negative sizes, or None where any step of it passes `MAX_ELEMENTS`.

    A zero does not excuse a monstrous size beside it: other readers multiply in another order.

    >>> bounded_product((2, 3)), bounded_product(()), bounded_product((2**40, 2**40, 0))
    (6, 1, None)
    """
    product = 1
    for size in sizes:
        product *= size
        if product > MAX_ELEMENTS or size > MAX_ELEMENTS:
            return None
    return product


def quoted(text: str) -> str:
    """A name from an untrusted file, safe to show: ASCII, quoted, of bounded length.

    >>> quoted("wq"), len(quoted("x" * 1000))
    ("'wq'", 82)
    """
    return ascii(text if len(text) <= 80 else text[:77] + "...")
