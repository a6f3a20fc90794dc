"""What the engine asks of a grammar that an answer must follow. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Grammar(Protocol):
    """One answer's way through a grammar: a state that belongs to one request.

    The engine asks for the mask before every token and tells which token was taken. Whatever it raises ends its own
    request, and no other.
    """

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: the request then ends, with the reason "stop"."""
        ...

    def mask(self) -> NDArray[np.bool_] | NDArray[np.uint8] | NDArray[Any] | None:
        """The tokens that may come next, None for all.

        Either a bool a token, or the bits of a packed mask, the lowest bit of the first number being token 0's.
        """
        ...

    def take(self, token_id: int) -> None:
        """Go on by a token that `mask` allowed."""
        ...
