"""A model of 7B parameters in 4 bits: is it ready at once, does it fit, and does it write as fast as memory is read?

    python benchmarks/large.py
    python benchmarks/large.py --shape 1b --rounds 5

The weights are random, packed as `sash quantize --bits 4` packs them, in a folder that is made once (4 GB for 7b). Each
round is a process of its own, as a user's is: it imports what it needs, loads the folder, reads a prompt and writes.
The first round goes uncounted: it brings the file into the system's cache. Resident memory is told once all weights
have been used, and at the end, with keys, values and scratch memory. Last line JSON.

Targets for 7b: ready within 2 s, imports aside; resident 1.1 times the file at most, and 5 GiB while it writes; 80% of
the limit of bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import describe_machine, resident_bytes

GIB = 2**30
FIGURES = ("ready", "imports", "resident", "beyond_file", "resident_writing", "write", "of_limit", "read")


def make(folder: Path, shape: str) -> Path:
    """The model's folder, made if it is not there."""
    from rival_engines.random_model import write_tokenizer

    from sash.checkpoint.header import Header, Origin
    from sash.checkpoint.packed_parts import PartPlan, plan_parts
    from sash.checkpoint.quantized import whole_folder, write_packed
    from sash.cli.bench import SHAPES
    from sash.evaluation.random_weights import RandomCheckpoint, random_part
    from sash.families import Description

    class Drawn(PartPlan):
        """A part that is drawn as it is stored: rounding billions of floats would take minutes."""

        def make(self) -> Any:
            return random_part(self.part, self.form)

    target = folder / f"{shape}-int4"
    if target.exists():
        return target
    checkpoint = RandomCheckpoint(SHAPES[shape])
    description = Description(config=SHAPES[shape], weights={name: name for name in checkpoint.names()})
    found = plan_parts(checkpoint, description, "int4")
    plans = [Drawn(name=p.name, part=p.part, sources=p.sources, form=p.form) for p in found]
    with whole_folder(target, sum(plan.nbytes for plan in plans)) as work:
        write_tokenizer(work)
        origin = Origin(name=f"random {shape}", tensors_sha256="", licence=None, tokenizer="folder")
        parts = {plan.name: asdict(plan.form) for plan in plans if plan.form is not None}
        write_packed(work, Header(weights="int4", origin=origin, config=SHAPES[shape], parts=parts), plans)
    return target


def measure(folder: Path) -> dict[str, Any]:
    """One round; runs in a process of its own, which has begun just now."""
    began = time.perf_counter()
    import sash
    from sash.evaluation.limits import measure_limits
    from sash.evaluation.roofline import kinds_of
    from sash.evaluation.speed import Bench, Plan

    imported = time.perf_counter()
    lm = sash.load(str(folder))
    loaded = time.perf_counter()
    lm.generate([5, 6, 7], max_tokens=1)  # What is mapped becomes resident when it is used.
    resident = resident_bytes()
    plan = Plan(prompts=(512,), n_write=32, depths=(512,), batches=(1,), rounds=1)
    read, write = Bench(lm).run(plan)
    writing = resident_bytes()
    limits = measure_limits(kinds_of(lm.decoder))
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "ready": loaded - imported,
        "imports": imported - began,
        "resident": resident,
        "beyond_file": resident / size,
        "resident_writing": writing,
        "write": write.median,
        "of_limit": write.median / write.limit(limits)[0],
        "read": read.median,
        "file": size,
        "memory": limits.memory_read,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="7b", choices=("1b", "7b"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sash" / "large")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    folder = make(options.folder, options.shape)
    rounds = []
    for _ in range(1 + options.rounds):
        command = [sys.executable, __file__, "--measure", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    rounds = rounds[1:]
    median = {name: statistics.median(one[name] for one in rounds) for name in FIGURES}
    words = [
        f"{options.shape}: {rounds[0]['file'] / GIB:.2f} GiB on disk",
        f"ready {median['ready']:.2f} s after {median['imports']:.2f} s of imports",
        f"{median['resident'] / GIB:.2f} GiB resident, {median['beyond_file']:.3f} of the file",
        f"{median['resident_writing'] / GIB:.2f} GiB while writing",
        f"writes {median['write']:.2f} tokens/s, {median['of_limit']:.0%} of the limit",
        f"reads {median['read']:.0f} tokens/s",
    ]
    print("; ".join(words))
    print(
        json.dumps(
            {"benchmark": "large", "shape": options.shape, "median": median, "rounds": rounds} | describe_machine()
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
