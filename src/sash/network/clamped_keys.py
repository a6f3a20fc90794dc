"""Keys that are brought back stand no farther away than their layer was trained to see.

A layer whose window was forced on it may meet its true distances up to the context it was trained on, one with a window
of its own distances within that. A block from farther away is turned as a whole, so that its first token stands near
the limit and the others behind it in their order. How near is counted from a position a little ahead, the anchor, that
moves in strides: between two moves nothing needs to be turned again, and what is written stays within the limit.

Shape suffixes: L layers, G key/value heads, C blocks chosen, I blocks to turn, S keys of a block, K head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sash.kernels.activations import rotate as mix
from sash.network import rope
from sash.network.config import ModelConfig
from sash.network.ring_store import RingStore
from sash.network.slots import Vectors

STRIDE = 128
"""Positions between two moves of an anchor, and a quarter of the limit if that is less."""

BLOCK = (1 << 32) - 1
"""The bits of a tag that name its block; those above count the moves of the anchor that it was turned for."""

_FAR = 1 << 40


class ClampedKeys:
    """The limits of the layers of one store, and what turns keys to them."""

    def __init__(self, config: ModelConfig, store: RingStore, mixing: int, block: int) -> None:
        """`mixing` is the cache's; blocks have `block` tokens."""
        self._store, self._mixing, self._block = store, mixing, block
        windows = config.trained_windows or config.windows
        own = [(layer, window) for layer, window in zip(config.layers, windows, strict=True)
               if layer.pattern == store.pattern]  # fmt: skip
        limits = [(window or config.context or _FAR + 1) - 1 for _, window in own]
        self._limits_L = torch.tensor(limits)
        self._strides_L = (self._limits_L // 4).clamp(1, STRIDE)
        self._ropes = [layer.rope for layer, _ in own]
        self._nearest = min(limits)
        self._tables: tuple[tuple[Tensor, ...], Tensor] | None = None

    def touches(self, length: int, first: int) -> bool:
        """Whether a row of `length` tokens has blocks beyond a limit, where `first` is its first one."""
        return length - self._nearest > first * self._block

    def addresses(self, length: int, first: int) -> tuple[int, int, int]:
        """Limits, strides and frequencies of all layers as kernels read them (lookup.h); 0 where nothing is turned."""
        if not self.touches(length, first):
            return 0, 0, 0
        if self._tables is None:
            head_dim = self._store.layout.head_dim
            frequencies = tuple(rope.frequencies(own, head_dim)[0] for own in self._ropes)
            self._tables = frequencies, torch.tensor([one.data_ptr() for one in frequencies])
        return self._limits_L.data_ptr(), self._strides_L.data_ptr(), self._tables[1].data_ptr()

    def shifts(self, chosen_LGC: Tensor, length: int, layers: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """How many positions blocks of those layers are moved by, and their tags, both as `chosen_LGC`."""
        limits_L, strides_L = self._limits_L[layers], self._strides_L[layers]
        moves_L = length // strides_L + 1
        nearest_L = moves_L * strides_L - limits_L
        first_LGC = chosen_LGC * self._block
        too_far_LGC = first_LGC < (length - limits_L)[:, None, None]
        shifts_LGC = (nearest_L[:, None, None] - first_LGC) * too_far_LGC
        return shifts_LGC, chosen_LGC + (moves_L[:, None, None] << 32) * (shifts_LGC > 0)

    def turn(self, row: int, places_I3: Tensor, shifts_I: Tensor) -> None:
        """Turn keys in the annex by so many positions; where (layer, head, place in blocks) they are there."""
        moved_I = shifts_I > 0
        places_I3, shifts_I = places_I3[moved_I], shifts_I[moved_I]
        slots = self._store.slots(row, "annex")[0]
        whole = slots.numbers.shape[2] // self._block
        blocks = [tensor[:, :, : whole * self._block].unflatten(2, (whole, self._block)) for tensor in slots.tensors()]  # type: ignore[no-untyped-call]
        for config in dict.fromkeys(self._ropes):
            layers = torch.tensor([index for index, own in enumerate(self._ropes) if own == config])
            here_I = torch.isin(places_I3[:, 0], layers)
            if not here_I.any():
                continue
            at = places_I3[here_I].to(slots.numbers.device).unbind(1)
            keys_ISK = mix(Vectors(*(tensor[at] for tensor in blocks)).to(torch.float32), self._mixing)
            frequencies_F, _ = rope.frequencies(config, keys_ISK.shape[-1])  # their factor is in the keys already
            cos_IF, sin_IF = rope.angles(frequencies_F, 1.0, shifts_I[here_I].to(keys_ISK.device), torch.float32)
            turned = mix(rope.rotate(keys_ISK, cos_IF, sin_IF, config.layout), self._mixing)
            for tensor, new in zip(blocks, Vectors.of(turned, slots.numbers.dtype).tensors(), strict=True):
                tensor[at] = new
