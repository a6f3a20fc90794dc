"""Broken and hostile files by the hundred: each loads, or is refused with one error, quickly and in little memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS = 20.0
"""Of processor time, on the slowest machine; what takes long at all, takes for ever."""

MEMORY = 64 * 2**20

# Opens and reads every file of a list given on stdin. Torch and its first allocations come before the limit on the
# address space; from there on, MEMORY and the file are all there is, and what asks for more gets a MemoryError.
CHILD = """
import faulthandler, gc, json, resource, sys, time
faulthandler.enable()
from pathlib import Path
import torch
from sash.checkpoint import open_checkpoint
from sash.errors import SashError

def attempt(path):
    with open_checkpoint(Path(path)) as checkpoint:
        for name in checkpoint.names():
            checkpoint.shape(name), checkpoint.dtype_name(name)
            for dtype in (None, torch.float32, torch.bfloat16):
                checkpoint.read(name, dtype).sum()

torch.set_num_threads(1)
warm_up, *paths = json.load(sys.stdin)
for path in warm_up:
    attempt(path)
gc.collect()
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
for path in paths:
    files = Path(path).iterdir() if Path(path).is_dir() else [Path(path)]
    limit = used + int(sys.argv[1]) + sum(file.stat().st_size for file in files)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    started = time.process_time()
    try:
        attempt(path)
        outcome, message = "loads", ""
    except SashError as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = type(error).__name__, str(error)
    print(json.dumps([path, outcome, message, time.process_time() - started]), flush=True)
"""


def mutants(rng: random.Random, whole: bytes, header: int, count: int) -> Iterator[bytes]:
    """Flipped bits, extreme numbers, cuts, insertions and repetitions, mostly within the first `header` bytes."""
    numbers = [0, 1, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
    for index in range(count):
        mutant = bytearray(whole)
        at = rng.randrange(header)
        edit = index % 7
        if edit == 0:
            for _ in range(rng.randint(1, 4)):
                mutant[rng.randrange(header)] ^= 1 << rng.randrange(8)
        elif edit == 1:
            mutant[at : at + 8] = rng.choice(numbers).to_bytes(8, "little")
        elif edit == 2:
            mutant[at : at + 4] = (rng.choice(numbers) % 2**32).to_bytes(4, "little")
        elif edit == 3:
            del mutant[rng.randrange(len(whole)) :]
        elif edit == 4:
            mutant[at:at] = rng.randbytes(rng.randint(1, 16))
        elif edit == 5:
            mutant[at:at] = mutant[at : at + rng.randint(1, 64)]
        else:
            mutant[rng.randrange(len(whole))] ^= 1
        yield bytes(mutant)


def hostile_json() -> dict[str, bytes]:
    """Texts that no configuration and no index may be."""
    return {
        "empty": b"",
        "list": b"[]",
        "number": b"1",
        "cut": b'{"a": 1',
        "not UTF-8": b'{"a": "\xff\xfe"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "BOM": b'\xef\xbb\xbf{"a": 1}',
        "lone surrogate": b'{"a": "\\ud800"}',
        "deep lists": b"[" * 500_000,
        "deep objects": b'{"a":' * 100_000,
        "deep and closed": b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "wide": b'{"a": [' + b"[]," * 300_000 + b"[]]}",
        "long number": b'{"a": ' + b"1" * 900_000 + b"}",
        "long fraction": b'{"a": 0.' + b"1" * 900_000 + b"}",
        "key twice": b'{"a": 1, "a": 2}',
        "NaN": b'{"a": NaN}',
        "infinity": b'{"a": 1e99999}',
        "oversized": b'{"a": "' + b"x" * (17 * 2**20) + b'"}',
        "quotes": b'{"a": ' + b'"' * 900_000,
        "backslashes": b'{"a": "' + b"\\" * 900_001,
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    }


def hostile_safetensors(safetensors_file: Any, entry: Any) -> dict[str, bytes]:
    """One file for each way to lie that is known from attacks on readers of safetensors."""
    good, data = entry("F32", [2, 2], 0, 16), bytes(16)
    many = {f"t{i}": entry("F32", [4], 0, 16) for i in range(20_000)}
    return {
        "empty": b"",
        "length": safetensors_file({"a": good}, data, length=2**60),
        "length -1": safetensors_file({"a": good}, data, length=2**64 - 1),
        "length short": safetensors_file({"a": good}, data, length=20),
        "deep": safetensors_file(b'{"a":' * 100_000),
        "key twice": safetensors_file(
            b'{"a":%s,"a":%s}' % (json.dumps(good).encode(), json.dumps(good).encode()), data
        ),
        "20,000 tensors in one place": safetensors_file(many, data),
        "millions of values": safetensors_file(b'{"a":[' + b"0," * 4_000_000 + b"0]}"),
        "millions of strings": safetensors_file(b'{"a":[' + b'"",' * 2_000_000 + b"0]}"),
        "overlap": safetensors_file({"a": good, "b": entry("F32", [4], 8, 24)}, bytes(24)),
        "hole": safetensors_file({"a": good, "b": entry("F32", [4], 20, 36)}, bytes(36)),
        "bytes behind": safetensors_file({"a": good}, bytes(17)),
        "data cut": safetensors_file({"a": good}, bytes(15)),
        "shape too large": safetensors_file({"a": entry("F32", [2, 3], 0, 16)}, data),
        "shape too small": safetensors_file({"a": entry("F32", [2, 1], 0, 16)}, data),
        "shape huge": safetensors_file({"a": entry("F32", [2**60, 2**60], 0, 16)}, data),
        "shape wraps": safetensors_file({"a": entry("F32", [2**62, 4, 4], 0, 0)}),
        "shape negative": safetensors_file({"a": entry("F32", [-2, -2], 0, 16)}, data),
        "offsets reversed": safetensors_file({"a": entry("F32", [4], 16, 0)}, data),
        "dtype": safetensors_file({"a": entry("F5", [4], 0, 16)}, data),
        "name not UTF-8": safetensors_file(b'{"\xff": %s}' % json.dumps(good).encode(), data),
    }


def hostile_indices() -> dict[str, bytes]:
    names = ["../model.safetensors", "/etc/passwd", "/dev/zero", "..", "", "x\x00.safetensors", "a/b.safetensors",
             "pytorch_model.bin", "missing.safetensors", 5, None, {}, []]  # fmt: skip
    hostile = {f"shard {name!r}": json.dumps({"weight_map": {"a": name}}).encode() for name in names}
    hostile["no map"] = b'{"metadata": {}}'
    hostile["empty map"] = b'{"weight_map": {}}'
    hostile["map of another type"] = b'{"weight_map": "model-1.safetensors"}'
    hostile["tensor elsewhere"] = b'{"weight_map": {"zzz": "model-1.safetensors"}}'
    return hostile


class Pile:
    """Writes models into folders of their own, and remembers which of them must be refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths: dict[str, str] = {}
        self.must_raise: set[str] = set()

    def add(self, label: str, files: dict[str, bytes], *, hostile: bool = False, path: str = "") -> str:
        folder = self.root / str(len(self.paths))
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        target = str(folder / path)
        self.paths[target] = label
        if hostile:
            self.must_raise.add(target)
        return target


def build(pile: Pile, gguf: Any, gguf_lies: Any, safetensors_file: Any, entry: Any) -> list[str]:
    """Write all models; the paths of those that are whole are returned."""
    rng = random.Random(20_26)
    header = json.dumps({"a.weight": entry("F32", [2, 2], 0, 16), "b": entry("BF16", [3], 16, 22)}).encode()
    weights = safetensors_file(header, bytes(range(22)))
    config = json.dumps({"model_type": "mistral", "hidden_size": 64, "rope": {"type": "x", "l": [1, 2.5]}}).encode()
    index = json.dumps(
        {"metadata": {"total_size": 22}, "weight_map": dict.fromkeys(["a.weight", "b"], "m-1.safetensors")}
    )
    whole, named = gguf.small(), "model.gguf"

    warm_up = [
        pile.add("good gguf", {named: whole}, path=named),
        pile.add("good safetensors", {"config.json": config, "model.safetensors": weights}),
        pile.add("good index", {"config.json": config, "m-1.safetensors": weights,
                                "model.safetensors.index.json": index.encode()}),
        pile.add("good mistral", {"params.json": config, "consolidated.safetensors": weights}),
    ]  # fmt: skip
    for label, (content, _) in gguf_lies.items():
        pile.add(f"gguf: {label}", {named: content}, hostile=True, path=named)
    for label, content in hostile_safetensors(safetensors_file, entry).items():
        pile.add(f"safetensors: {label}", {"config.json": config, "model.safetensors": content}, hostile=True)
    for label, content in hostile_json().items():
        pile.add(f"config: {label}", {"config.json": content, "model.safetensors": weights}, hostile=True)
        pile.add(f"params: {label}", {"params.json": content, "consolidated.safetensors": weights}, hostile=True)
    for label, content in (hostile_json() | hostile_indices()).items():
        files = {"config.json": config, "m-1.safetensors": weights, "model.safetensors.index.json": content}
        pile.add(f"index: {label}", files, hostile=True)
    for content in mutants(rng, whole, whole.index(bytes(range(64))), 120):
        pile.add("gguf mutant", {named: content}, path=named)
    for content in mutants(rng, weights, 8 + len(header), 90):
        pile.add("safetensors mutant", {"config.json": config, "model.safetensors": content})
    for content in mutants(rng, config, len(config), 48):
        pile.add("config mutant", {"config.json": content, "model.safetensors": weights})
    for content in mutants(rng, index.encode(), len(index), 60):
        files = {"config.json": config, "m-1.safetensors": weights, "model.safetensors.index.json": content}
        pile.add("index mutant", files)
    return warm_up


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's RLIMIT_AS")
def test_each_mutated_file_loads_or_is_refused_quickly_and_in_little_memory(
    tmp_path: Path, gguf, gguf_lies, safetensors_file, entry
) -> None:
    pile = Pile(tmp_path)
    warm_up = build(pile, gguf, gguf_lies, safetensors_file, entry)
    request = json.dumps([warm_up, *pile.paths])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(MEMORY)], input=request, capture_output=True, text=True, timeout=850
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.stderr, results[-1:])
    assert len(results) == len(pile.paths) > 400
    wrong = [
        (pile.paths[path], outcome, message, seconds)
        for path, outcome, message, seconds in results
        if outcome not in ("loads", "refused")
        or (outcome == "loads" and path in pile.must_raise)
        or (
            outcome == "refused"
            and (path in warm_up or not message or len(message) > 1000 or not message.isprintable())
        )
        or seconds > SECONDS
    ]
    assert wrong == []
    outcomes = Counter((pile.paths[path].split(":")[0], outcome) for path, outcome, _, _ in results)
    for kind in ("gguf mutant", "safetensors mutant", "config mutant", "index mutant"):
        # Mutants that are all refused would prove nothing about what gets through; nor would mutants that all load.
        assert outcomes[kind, "refused"] >= 10
        assert outcomes[kind, "loads"] >= 1
