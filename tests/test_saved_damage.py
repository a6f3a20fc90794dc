"""Saved sessions that are torn, damaged, forged or foreign are refused; who is killed while saving loses nothing.

SASH_CHAOS=1 (`make test-chaos`) plays the full numbers: 200 kills, 1,000 flipped bits, 1,000 cuts.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch

from sash import saved
from sash.engine import sealed_file
from sash.errors import CheckpointError, UsageError
from sash.lm import LM
from tests.saved_models import GREEDY, TEXT, make_lm

ROOT = Path(__file__).parents[1]
CHAOS = os.environ.get("SASH_CHAOS") == "1"
FLIPS, CUTS, KILLS = (1000, 1000, 200) if CHAOS else (60, 20, 4)


@pytest.fixture
def kept(tmp_path: Path) -> tuple[LM, Path]:
    """A model with rings, pins and a growing layer, and a chat of it in a file."""
    lm = make_lm("interleaved")
    talk = lm.conversation("Be brief.", pins="system", pin_budget=4, pin_overflow="head")
    for question in (TEXT, "And how many foxes jump?"):
        list(talk.say(question, GREEDY))
    lm.save_session(talk, tmp_path / "kept")
    return lm, tmp_path / "kept"


def test_every_flipped_bit_and_every_cut_is_refused(kept: tuple[LM, Path]) -> None:
    lm, path = kept
    whole, chance = path.read_bytes(), random.Random(1)
    flips = [*range(8 * 40), *(chance.randrange(8 * len(whole)) for _ in range(FLIPS))]
    cuts = [0, 1, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(CUTS))]
    changed = [whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :] for bit in flips]
    changed += [whole[:cut] for cut in cuts] + [whole + b"\0", whole + whole, bytes(len(whole))]
    for data in changed:
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as refused:
            lm.load_session(path)
        assert str(path) in str(refused.value)
    path.write_bytes(whole)
    again = lm.load_session(path)
    assert "".join(again.say("Why?", GREEDY))  # type: ignore[union-attr,arg-type]


def forged(path: Path, **changes: Any) -> bytes:
    """The file with another header and right checksums: `header` is merged into it, `prelude` in front of it."""
    raw = path.read_bytes()
    magic, version, size, idle, n_data = sealed_file._PRELUDE.unpack(raw[: sealed_file._PRELUDE.size])
    stop = sealed_file._PRELUDE.size + size
    header = json.loads(raw[sealed_file._PRELUDE.size : stop])
    start = stop + 32 + -(stop + 32) % 64
    text = json.dumps(_merged(header, changes.get("header", {}))).encode()
    front = sealed_file._PRELUDE.pack(magic, version, len(text), idle, changes.get("n_data", n_data)) + text
    front += blake2b(front, digest_size=32).digest()
    front += bytes(-len(front) % 64) + raw[start:-32]
    return front + blake2b(front, digest_size=32).digest()


def _merged(one: Any, other: Any) -> Any:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return one | {key: _merged(one.get(key), value) for key, value in other.items()}


def lies() -> Iterator[dict[str, Any]]:
    huge = 1 << 60
    yield {"n_data": huge}
    yield {"header": {"tensors": [["float32", [1 << 47]]]}}
    yield {"header": {"tensors": [["float32", [-1]]]}}
    yield {"header": {"tensors": [["object", [4]]]}}
    yield {"header": {"tensors": {}}}
    yield {"header": {"network": None}}
    yield {"header": {"notes": []}}
    for part in ({"tokens": 5}, {"tokens": "5"}, {"kept": 1}, {"room": huge * huge}, {"room": -1}, {"history": 3},
                 {"pinned": [[0, huge]]}, {"pinned": 7}, {"row": 3}, {"row": {"length": 3}}):  # fmt: skip
        yield {"header": {"session": part}}
    for part in ({"messages": 3}, {"messages": [{"role": "user"}]}, {"marks": [[1, huge, []]]}, {"marks": 1},
                 {"contract": 3}, {"contract": {"overflow": "so"}}, {"sight": [[1]]}, {"sight": 7}):  # fmt: skip
        yield {"header": {"conversation": part}}


@pytest.mark.parametrize("lie", list(lies()), ids=str)
def test_what_contradicts_itself_is_refused_whatever_its_checksums_say(
    kept: tuple[LM, Path], lie: dict[str, Any]
) -> None:
    lm, path = kept
    assert path.read_bytes() == forged(path)
    path.write_bytes(forged(path, **lie))
    with pytest.raises((CheckpointError, UsageError)):
        lm.load_session(path)


def test_no_memory_is_taken_before_sizes_are_held_against_the_file(
    kept: tuple[LM, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = kept
    lying = (forged(path, n_data=1 << 60), forged(path, header={"tensors": [["float32", [1 << 47]]]}))

    def never(*arguments: object, **more: object) -> None:
        raise AssertionError("memory was taken for a file that lies")

    monkeypatch.setattr(torch, "empty", never)
    for data in lying:
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            sealed_file.read(path, saved.KIND)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from sash.errors import SashError
from tests.saved_models import GREEDY, TEXT, make_lm

path, kills, chance, whole, torn, none = Path(sys.argv[1]), int(sys.argv[2]), random.Random(7), 0, 0, 0
lm = make_lm(sys.argv[3])
ids = lm.tokenizer.encode(TEXT * 40)

def answers(session):
    return session.generate(GREEDY).token_ids

known = {}
for kill in range(kills):
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        session = lm.session()
        for count in range(10_000):
            session.feed(ids[7 * count : 7 * count + 7])
            lm.save_session(session, path)
            os.write(begun, b"1")
        os._exit(0)
    for _ in range(kill % 3 + 1):
        os.read(ready, 1)
    time.sleep(chance.random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(begun)
    torn += len(list(path.parent.glob(".*.tmp")))
    again = lm.load_session(path)  # whatever happened, there is a whole file
    count = again.tokens
    assert list(again.ids) == ids[:count] and count % 7 == 0
    if count not in known:
        fresh = lm.session()
        for start in range(0, count, 7):
            fresh.feed(ids[start : start + 7])
        known[count] = answers(fresh)
    assert answers(again) == known[count]
    whole += 1
lm.save_session(lm.load_session(path), path)
assert os.listdir(path.parent) == [path.name], "what was half written was left"
print(whole, torn)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_while_saving_leave_the_file_of_before_or_of_after(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "kept"), str(KILLS), "full"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500)
    assert result.returncode == 0, result.stderr
    whole, torn = map(int, result.stdout.split())
    assert whole == KILLS
    assert torn > KILLS // 10 or not CHAOS  # killed in the midst of writing, not between two files
