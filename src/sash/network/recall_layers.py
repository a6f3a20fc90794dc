"""Which layers recall: those whose attention lands on what is asked for.

A number is told in the middle of filling words, and asked for at the end. The text is read by full attention, or by
what each layer was trained to see, and of each layer it is added up how much of its attention lands on the number while
the number is said. Few layers hold most of it, and bringing something back in the others is time for nothing.

What was found is kept as JSON beside the models, `$SASH_HOME/recall/DIGEST.json`, by a digest of the weights.

Shape suffixes: L layers, N query tokens, H query heads, G key/value heads, R query heads of a group, S keys, K head
dimension.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sash.errors import UsageError
from sash.hub.store import models_root
from sash.network.batch import Batch
from sash.network.cache import KVCache
from sash.network.config import ModelConfig
from sash.network.fingerprint import weights_digest
from sash.network.packed import Network
from sash.network.query_tap import QueryTap
from sash.network.ring_store import RingStore

SHARE, LEAST = 0.99, 4
"""Layers are chosen that together hold so much of what lands on the number, and not fewer than so many."""

_FILLING = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_NUMBERS = ("48213", "90571", "26384", "71962", "35807", "64129")


@dataclass(frozen=True, slots=True)
class Probe:
    """A text that asks for something in it.

    Attributes:
        ids: of the text with the answer but for its last token.
        told: the positions of what is asked for.
    """

    ids: list[int]
    told: range


def probes(encode: Callable[[str], list[int]], begins: Sequence[int], length: int, count: int = 4) -> list[Probe]:
    """Texts of at most `length` tokens with a number in the first half of each.

    Args:
        encode: text to tokens.
        begins: what a text begins with.
        length: tokens.
        count: of texts.

    Raises:
        UsageError: a length that the question alone fills.
    """
    filling, made = encode(_FILLING), []
    for index in range(count):
        number = encode(f" {_NUMBERS[index % len(_NUMBERS)]}")
        head, tail = encode(" The pass key is"), encode(". Remember it.")
        question = encode(" What is the pass key? The pass key is") + number[:-1]
        room = length - len(begins) - len(head) - len(number) - len(tail) - len(question)
        if room < len(filling):
            raise UsageError(f"texts of {length} tokens are too short to hide something in: use a larger window")
        words = (filling * (room // len(filling) + 1))[:room]
        at = room * (2 * index + 1) // (4 * count)
        before = [*begins, *words[:at], *head]
        told = range(len(before), len(before) + len(number))
        made.append(Probe([*before, *number, *tail, *words[at:], *question], told))
    return made


def readable(config: ModelConfig, length: int) -> int:
    """Tokens of a text, at most `length`, that a model was trained to see whole in some layer."""
    trained = config.trained_windows or config.windows
    seen = length if None in trained else max(size or 0 for size in trained)
    return min(length, config.context or length, seen)


def unforced(config: ModelConfig, length: int) -> ModelConfig:
    """A model whose layers see what they were trained to see of texts of `length` tokens, each with a window.

    Only layers with a window have their queries and keys looked at.
    """
    layers = [
        replace(
            layer,
            pattern=replace(
                layer.pattern, window=min(own or length, length), pins=0, pin_by="first", pin_reach=None, annex=0,
                global_tokens=False, global_reach=None,
            ),
        )
        for layer, own in zip(config.layers, config.trained_windows or config.windows, strict=True)
    ]  # fmt: skip
    return replace(config, layers=tuple(layers), forced_window=None, trained_windows=None, hierarchy=None)


@torch.inference_mode()
def mass_on(network: Network, texts: Sequence[Probe]) -> list[float]:
    """How much of each layer's attention lands on what is told while it is said: 0 to 1, the mean over texts and heads.

    Args:
        network: its layers have windows; see `unforced`.
        texts: no longer than the context.
    """
    config = network.config
    found = [0.0] * config.n_layers
    for text in texts:
        cache = KVCache(config, 1, network.dtype, network.device, log=True)
        row, count = cache.allocate(), len(text.told)
        taps = {}
        for pattern, store in cache.stores.items():
            if isinstance(store, RingStore):
                layout = store.layout
                store.tap = taps[pattern] = QueryTap(layout.n_layers, config.n_heads, layout.head_dim, count)
        cut = len(text.ids) - count
        for start, ids in ((0, text.ids[:cut]), (cut, text.ids[cut:])):
            network(Batch.pack([ids], [start], [row], device=network.device), cache)
        for pattern, tap in taps.items():
            store, queries_LNHK = cache.stores[pattern], tap.of(row)
            if isinstance(store, RingStore) and queries_LNHK is not None:
                landed_L = _landed(config, store, row, queries_LNHK, text.told)
                layers = [index for index, own in enumerate(config.patterns) if own == pattern]
                for index, mass in zip(layers, landed_L.tolist(), strict=True):
                    found[index] += mass / len(texts)
    return found


def _landed(config: ModelConfig, store: RingStore, row: int, queries_LNHK: Tensor, told: range) -> Tensor:
    """Of one store's layers, the attention of the last tokens to those positions, [L]."""
    log, n_heads = store.log, store.layout.n_heads
    if log is None:
        raise ValueError("keys are looked up in a log")
    end = log.end(row)
    runs = log.held(row, 0, end)
    keys_LGSK = torch.cat(
        [log.slots(row, run)[0, :, :, run.start : run.start + run.size].to(torch.float32) for run in runs], -2
    )
    n_layers, n_tokens, n_queries, dim = queries_LNHK.shape
    q_LNGRK = queries_LNHK.to(keys_LGSK).reshape(n_layers, n_tokens, n_heads, n_queries // n_heads, dim)
    scale = config.attention_scale if config.attention_scale is not None else config.head_dim**-0.5
    scores_LGRNS = scale * q_LNGRK.permute(0, 2, 3, 1, 4) @ keys_LGSK.unsqueeze(2).transpose(-1, -2)
    at_N, at_S = torch.arange(end - n_tokens, end)[:, None], torch.arange(end)
    unseen_NS = (at_S > at_N) | (at_S < at_N - store.reach)
    share_LGRNS = scores_LGRNS.masked_fill(unseen_NS, -torch.inf).softmax(-1)
    landed_L: Tensor = share_LGRNS[..., told.start : told.stop].sum(-1).mean((1, 2, 3))
    return landed_L


def choose(mass: Sequence[float], share: float = SHARE, least: int = LEAST) -> tuple[int, ...]:
    """The fewest layers, at least `least`, that hold `share` of the whole mass; ascending.

    >>> choose([0.1, 0.6, 0.0, 0.25, 0.05], 0.9, least=1), choose([0.1, 0.6, 0.0, 0.25, 0.05], 0.9, least=4)
    ((0, 1, 3), (0, 1, 3, 4))
    """
    order = sorted(range(len(mass)), key=lambda index: (-mass[index], index))
    held, count = 0.0, 0
    while count < len(order) and (count < least or held < share * sum(mass) * (1 - 1e-9)):
        held += mass[order[count]]
        count += 1
    return tuple(sorted(order[:count]))


def place(network: Network) -> Path:
    """Where the choice of a network is kept."""
    return models_root().parent / "recall" / f"{weights_digest(network).hex()}.json"


def keep(network: Network, layers: Sequence[int], mass: Sequence[float]) -> Path:
    """Keep a choice; the file.

    Raises:
        UsageError: it cannot be written there.
    """
    path = place(network)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"layers": list(layers), "mass": [round(one, 6) for one in mass]}) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UsageError(f"the choice of layers cannot be kept in {path.parent} ({error.strerror})") from error
    return path


def kept(network: Network) -> tuple[int, ...] | None:
    """The layers that were chosen for a network, as far as they have a window.

    None where there are none, or what is there cannot be read.
    """
    try:
        layers = json.loads(place(network).read_text())["layers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(layers, list) or not all(type(at) is int and 0 <= at < network.config.n_layers for at in layers):
        return None
    return tuple(at for at in layers if network.config.windows[at] is not None) or None
