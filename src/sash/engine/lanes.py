"""One set of weights under several configurations: windows that requests force, and room for their pins.

A lane has a network over the same weights and a cache of its own, made when the first request asks for it. Lanes that
nobody uses are dropped when another needs their place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from sash.engine.admission import Cost
from sash.errors import UsageError
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.fused import FusedDecoder, why_not
from sash.network.packed import Network, network_of
from sash.network.sizing import KV_BYTES, LOG_BLOCK, kv_bytes, kv_numbers

logger = logging.getLogger(__name__)

MAX_LANES = 4
"""Lanes beside the model as it is."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A configuration that requests share.

    Attributes:
        window: keys that every layer is limited to; None for the model's own windows.
        pins: positions that may be flagged to stay visible.
        sees: whether positions may be global, in the places of pins.
    """

    window: int | None = None
    pins: int = 0
    sees: bool = False

    @property
    def own(self) -> bool:
        """Whether it is the model as it is."""
        return self.window is None and not self.pins


@dataclass(frozen=True, slots=True)
class Place:
    """Where a lane's sequences are computed."""

    network: Network
    cache: KVCache


class Lanes:
    """The places of all lanes, by lane; None is the model as it is."""

    def __init__(
        self, decoder: Network, make_cache: Callable[[Network], KVCache], *, max_lanes: int = MAX_LANES
    ) -> None:
        self._make_cache, self._max_lanes = make_cache, max_lanes
        self._places: dict[Hashable, Place] = {None: Place(decoder, make_cache(decoder))}

    @staticmethod
    def single(decoder: Network, cache: KVCache) -> Lanes:
        """The model as it is, over a cache that stands already."""
        return Lanes(decoder, lambda network: cache, max_lanes=0)

    @property
    def own(self) -> Place:
        """The model as it is."""
        return self._places[None]

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, lane: Hashable) -> bool:
        return lane in self._places

    def of(self, lane: Hashable) -> Place:
        """The place of a lane.

        Raises:
            UsageError: it was not opened.
        """
        place = self._places.get(lane)
        if place is None:
            raise UsageError(f"{lane} was not opened")
        return place

    def open(self, lane: Hashable, used: Iterable[Hashable] = ()) -> Place:
        """The place of a lane, made now if it does not stand yet; a lane that nobody uses makes room for it.

        Raises:
            UsageError: as many lanes are in use as may be.
            WindowError, PinsError, DoesNotFitError: it cannot be.
        """
        if lane not in self._places:
            if not isinstance(lane, Lane):
                raise UsageError(f"{lane!r} is not a lane")
            self._make_room({*used, None})
            network = network_with(self.own.network, lane_config(self.own.network.config, lane))
            self._places[lane] = Place(network, self._make_cache(network))
            logger.info("lane: window %s, %d pins", lane.window, lane.pins)
        else:
            self._places[lane] = self._places.pop(lane)  # the last used stands last
        return self._places[lane]

    def _make_room(self, used: set[Hashable]) -> None:
        idle = [lane for lane in self._places if lane not in used]
        while len(self._places) > self._max_lanes:
            if not idle:
                raise UsageError(f"{self._max_lanes} windows are in use beside the model's own: try again later")
            del self._places[idle.pop(0)]


def lane_config(config: ModelConfig, lane: Lane) -> ModelConfig:
    """The configuration of a lane; its pins are chosen by flag.

    Raises:
        WindowError, PinsError: a window or pins that cannot be.
    """
    if lane.sees:
        return config.with_window(lane.window).with_global(lane.pins)
    return config.with_window(lane.window, lane.pins, pin_by="flag")


def network_with(network: Network, config: ModelConfig) -> Network:
    """The same weights under another configuration, natively where the kernels serve that."""
    if isinstance(network, FusedDecoder) and why_not(config) is not None:
        return network_of(config, network.parts, network.dtype)
    return network.with_config(config)


def cost_of(config: ModelConfig, kv: str, dtype: str, *, n_drafts: int = 0, logs: bool = False) -> Cost:
    """What sequences of a model take in each lane, in bytes, by the longest they can become.

    `n_drafts` slots of every layer hold tokens that are guessed; with `logs` every token is kept on the host, too.

    Raises:
        UsageError: when it is asked about something that is no lane.
    """
    sizes = KV_BYTES[kv_numbers(kv, dtype)]

    @lru_cache(maxsize=64)
    def config_of(lane: Hashable) -> ModelConfig:
        if lane is None:
            return config
        if not isinstance(lane, Lane):
            raise UsageError(f"{lane!r} is not a lane")
        return lane_config(config, lane)

    number_bytes, scale_bytes = sizes
    slot_bytes = 2 * config.n_kv_heads * (config.head_dim * number_bytes + scale_bytes)
    beside = config.n_layers * n_drafts * slot_bytes
    if config.hierarchy is not None:  # means, in float32, that summaries are made of
        n_means = config.hierarchy.n_slots * sum(pattern.annex > 0 for pattern in config.patterns)
        beside += 2 * n_means * config.n_kv_heads * config.head_dim * 4
    logged = slot_bytes * sum(window is not None for window in config.windows) if logs else 0

    def cost(lane: Hashable, length: int) -> int:
        kept = -(-length // LOG_BLOCK) * LOG_BLOCK
        return kv_bytes(config_of(lane), length, *sizes) + beside + logged * kept

    return cost


def independent_lanes(network: Network) -> Callable[[Hashable], bool]:
    """Of which lanes of a network a row's numbers depend neither on its company nor on chunks."""

    @lru_cache(maxsize=64)
    def independent(lane: Hashable) -> bool:
        if not network.independent or not isinstance(lane, Lane):
            return network.independent
        return why_not(lane_config(network.config, lane)) is None

    return independent
