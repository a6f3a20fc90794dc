"""What a network is, in parts that can be told apart: whoever goes on with what it computed must be alike in all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from sash.network.cache import KVCache
from sash.network.fingerprint import computed_by, weights_digest
from sash.network.fused import FusedDecoder
from sash.network.packed import Network


def identity(network: Network, cache: KVCache) -> dict[str, Any]:
    """A network and what its keys and values are kept as, in plain values; see `differences`."""
    config = network.config
    return {
        "shape": [config.architecture, config.vocab_size, config.dim, config.n_layers],
        "windows": list(config.windows),
        "pins": [[pattern.pins, pattern.pin_by] for pattern in config.patterns],
        "config": hashlib.blake2b(repr(config).encode(), digest_size=20).hexdigest(),
        "dtype": str(network.dtype).removeprefix("torch."),
        "native": isinstance(network, FusedDecoder),
        "numbers": str(cache.numbers).removeprefix("torch."),
        "slots": list(cache.kinds()),
        "weights": weights_digest(network).hex(),
        "by": list(computed_by(network)),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """In what another network differs, as (what differs, the remedy); the most telling one first.

    Other versions and processors ("by") are no difference: they compute the same but for rounding.
    """
    found = []

    def compare(part: str, words: str, remedy: str) -> None:
        if before.get(part) != now[part]:
            found.append((words, remedy))

    compare("shape", "another model", "load the model that it was saved with")
    old, new = _windows(before.get("windows")), _windows(now["windows"])
    sizes = before.get("windows") or []
    same = f"--window {sizes[0] or 'full'}" if len(set(sizes)) == 1 else "the same --window"
    compare("windows", f"{old}, and this has {new}", f"load with {same}")
    compare("pins", f"{_pins(before.get('pins'))}, and this has {_pins(now['pins'])}", "load with the same pins")
    kept = f"{before.get('numbers')} keys and values, and this keeps {now['numbers']}"
    compare("numbers", kept, "load with the same --kv and --dtype")
    compare(
        "dtype",
        f"{before.get('dtype')}, and this computes in {now['dtype']}",
        f"load with --dtype {before.get('dtype')}",
    )
    by = {True: "the native kernels", False: "torch"}
    ways = f"{by[bool(before.get('native'))]}, and this computes with {by[bool(now['native'])]}"
    compare("native", ways, "load it where, and as, it was saved")
    compare("weights", "other weights, or the same kept otherwise", "load the same model with the same --weights")
    compare("config", "another configuration", "load the model that it was saved with")
    compare("slots", "another cache", "load the model that it was saved with")
    return found


def _windows(windows: Any) -> str:
    """Windows of the layers in a few words.

    >>> _windows([512, 512]), _windows([512, 512, None]), _windows([None])
    ('window 512', 'windows 512 x 2, full x 1', 'window full')
    """
    if not isinstance(windows, list) or not windows:
        return "windows that are not told"
    names = ["full" if window is None else str(window) for window in windows]
    if len(set(names)) == 1:
        return f"window {names[0]}"
    return "windows " + ", ".join(f"{name} x {len(list(group))}" for name, group in groupby(sorted(names)))


def _pins(pins: Any) -> str:
    most = max((pair for pair in pins or [] if isinstance(pair, list)), default=[0, "first"])
    return f"room for {most[0]} pins by {most[1]}"
