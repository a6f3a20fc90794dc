"""Puts an engine together for so much memory: how many rows there are, and how prompts are read."""

from __future__ import annotations

import torch

from sash.engine.admission import Room
from sash.engine.engine import Steps
from sash.engine.gauges import Gauges
from sash.engine.lanes import MAX_LANES, Lanes, cost_of, independent_lanes
from sash.engine.scheduler import Pace, Scheduler
from sash.engine.snapshots import Snapshots
from sash.engine.tempo import Tempo
from sash.errors import DoesNotFitError, UsageError
from sash.network.cache import KVCache
from sash.network.drafts import SLOTS
from sash.network.packed import Network
from sash.network.recall_points import RecallSettings


def assemble(
    decoder: Network,
    *,
    kv: str,
    kv_memory: int,
    max_rows: int,
    chunk: int,
    token_budget: int,
    read_slice: int | None,
    snapshots: Snapshots | None,
    speculates: bool = False,
    recall: RecallSettings | None = None,
) -> tuple[Steps, Gauges]:
    """An engine, and what measures it; see `sash.engine.service.Service` for the arguments.

    `speculates` says that rows hold guesses, too, and `recall` how their annexes are filled.

    Raises:
        UsageError: numbers that cannot be.
        DoesNotFitError: `kv_memory` does not hold one sequence.
    """
    if max_rows < 1 or token_budget < 1:
        raise UsageError(f"an engine needs 1 row and a budget of 1 token, or more; got {max_rows} and {token_budget}")
    dtype = str(decoder.dtype).removeprefix("torch.")
    cost = cost_of(decoder.config, kv, dtype, n_drafts=SLOTS * speculates, logs=recall is not None)
    row_bytes = cost(None, 1)
    if row_bytes > kv_memory:
        raise DoesNotFitError(
            f"one sequence takes {row_bytes:,} bytes of keys and values, and there are {kv_memory:,}: give more"
        )
    n_rows = min(max_rows, kv_memory // row_bytes)

    def cache(network: Network) -> KVCache:
        room = False if snapshots is None or snapshots.room is None else snapshots.room
        return KVCache(
            network.config, n_rows, network.dtype, network.device, kv, on_demand=True, log=room, recall=recall
        )  # fmt: skip

    pace = Pace(
        chunk=chunk,
        budget=token_budget,
        slice=read_slice if decoder.independent else None,
        anywhere=independent_lanes(decoder),
    )
    room = Room(memory=kv_memory, max_lanes=MAX_LANES)
    tempo = Tempo() if decoder.independent and read_slice is None else None
    scheduler = Scheduler(range(n_rows), pace=pace, room=room, cost=cost, tempo=tempo)
    steps = Steps(Lanes(decoder, cache), scheduler, snapshots, n_threads=torch.get_num_threads())
    return steps, Gauges(steps, cost, kv_memory)
