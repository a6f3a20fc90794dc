"""The second turn of a long chat: how long until its first token, warm against cold?

A chat whose first turn is a text of 16,000 tokens is answered, and then asked something else. Cold, the second turn
reads everything again, as an engine does that keeps nothing; warm, it goes on from the snapshot of the first; then once
more after a restart, from a folder. Written greedily, the tokens must be the same each time. Cold and warm turns take
turns, and the last tokens asked differ each time, so that no warm turn finds another's prompt.

Targets: time to first token, warm against cold, 5% at most, after a restart too; tokens identical.

    python benchmarks/second_turn.py --model gemma-3-270m [--text FILE]
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import describe_machine

from sash.engine.request import Event, Request
from sash.engine.service import Service
from sash.engine.snapshots import Snapshots
from sash.lm import LM
from sash.loading import load_decoder
from sash.network.fingerprint import fingerprint
from sash.sampling import SamplingParams

TARGET = 0.05
TEXT = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn was answered, how long its first token took, and how many tokens it did not have to read."""

    ids: tuple[int, ...]
    seconds: float
    reused: int


def serve(lm: LM, memory: int, folder: Path | None = None) -> tuple[Service, Snapshots]:
    """An engine for one sequence at a time, with an empty memory."""
    print_of = fingerprint(lm.decoder, lm.kv) if folder else ""
    snapshots = Snapshots(memory, folder=folder, fingerprint=print_of)
    service = Service(lm.decoder, kv=lm.kv, kv_memory=16 << 30, max_rows=1, chunk=lm.chunk, snapshots=snapshots)
    service.start()
    return service, snapshots


def ask(service: Service, ids: list[int], n_tokens: int, reuse: bool = True) -> Turn:
    """One turn, as a client would wait for it."""
    events: queue.Queue[Event] = queue.Queue()
    params = SamplingParams(max_tokens=n_tokens, temperature=0.0, ignore_eos=True)
    began, first = time.perf_counter(), 0.0
    ticket = service.submit(Request(prompt_ids=tuple(ids), params=params, reuse=reuse), events.put)
    while True:
        event = events.get(timeout=600)
        if event.token is not None and not first:
            first = time.perf_counter() - began
        if event.sequence.finish_reason is not None:
            break
    if ticket.sequence.error is not None:
        raise SystemExit(f"a turn failed: {ticket.sequence.error}")
    return Turn(tuple(ticket.sequence.output_ids), first, ticket.sequence.n_reused)


def chat_of(lm: LM, text: str, n_tokens: int) -> list[int]:
    """The first turn: as many tokens of a text, which is repeated if it is too short."""
    ids = lm.tokenizer.encode(text)
    while len(ids) < n_tokens:
        ids += lm.tokenizer.encode("\n\n" + text)[1:]
    return ids[:n_tokens]


def question(lm: LM, text: str, number: int, n_tokens: int) -> list[int]:
    """What is new in a second turn: another stretch of the text each time."""
    ids = lm.tokenizer.encode(text)[1:]
    start = (number * 7919) % (len(ids) - n_tokens)
    return ids[start : start + n_tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--text", type=Path, default=TEXT, help="UTF-8 file; repeated if it is too short")
    parser.add_argument("--tokens", type=int, default=16_000, help="of the first turn")
    parser.add_argument("--new", type=int, default=32, help="tokens that each second turn adds")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--pairs", type=int, default=3, help="cold and warm second turns")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--memory", type=int, default=1 << 30, help="bytes for snapshots")
    options = parser.parse_args()

    lm = load_decoder(options.model, kv=options.kv)
    text = options.text.read_text(encoding="utf-8")
    chat = chat_of(lm, text, options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        service, snapshots = serve(lm, options.memory, Path(folder))
        first = ask(service, chat, options.answer)
        chat += first.ids
        asked = [chat + question(lm, text, number, options.new) for number in range(options.pairs + 1)]
        pairs = []
        for ids in asked[:-1]:
            pairs.append((ask(service, ids, options.answer, reuse=False), ask(service, ids, options.answer)))
        last = ask(service, asked[-1], options.answer, reuse=False)
        service.stop()
        snapshots.close()
        kept, on_disk = snapshots.figures(), sum(path.stat().st_size for path in Path(folder).iterdir())

        began = time.perf_counter()
        service, snapshots = serve(lm, options.memory, Path(folder))
        opened = time.perf_counter() - began
        restarted = ask(service, asked[-1], options.answer)
        service.stop()
        snapshots.close()

    cold = statistics.median(turn.seconds for turn, _ in pairs)
    warm = statistics.median(turn.seconds for _, turn in pairs)
    result = {
        "benchmark": "second_turn",
        "model": options.model,
        "network": type(lm.decoder).__name__,
        "kv": lm.kv_dtype,
        "tokens": options.tokens,
        "new_tokens": options.new,
        "first_turn_seconds": first.seconds,
        "cold_seconds": cold,
        "warm_seconds": warm,
        "warm_against_cold": warm / cold,
        "warm_reused": [turn.reused for _, turn in pairs],
        "restarted_cold_seconds": last.seconds,
        "restarted_seconds": restarted.seconds,
        "restarted_against_cold": restarted.seconds / last.seconds,
        "restarted_reused": restarted.reused,
        "folder_opened_seconds": opened,
        "tokens_identical": all(a.ids == b.ids for a, b in [*pairs, (last, restarted)]),
        "snapshot_bytes": kept.bytes,
        "snapshots": kept.in_memory,
        "folder_bytes": on_disk,
        "target": TARGET,
        **describe_machine(),
    }
    print(f"first token of the second turn: cold {cold * 1e3:.0f} ms, warm {warm * 1e3:.0f} ms: {warm / cold:.2%}")
    print(f"after a restart {restarted.seconds * 1e3:.0f} ms: {restarted.seconds / last.seconds:.2%}")
    print(f"tokens identical: {result['tokens_identical']}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
