"""Peak resident memory while every tensor of a checkpoint is loaded, against the limit that Sash promises.

    python benchmarks/load_memory.py MODEL [--dtype float32|bfloat16|float16|stored]
    python benchmarks/load_memory.py --random-gib 2 --dtype float32

MODEL is a folder or a .gguf file. With --random-gib a folder of random bfloat16 shards of that size is made in a
temporary directory and removed again. The loading happens in a fresh process, whose high-water mark of resident memory
(VmHWM of /proc/self/status, getrusage elsewhere) is taken before and after. The last line is JSON:

    limit_bytes = 1.15 x weights in memory + 300 MiB; peak_bytes is the whole process, torch itself included
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 2**20


def peak_bytes() -> int:
    """High-water mark of this process's resident memory."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load(path: Path, dtype_name: str) -> dict[str, object]:
    """Load all tensors into memory at once, touching every page; runs in a process of its own."""
    import torch

    from sash.checkpoint import open_checkpoint

    torch.set_num_threads(1)
    torch.ones(1000).bfloat16().float().sum()
    before = peak_bytes()
    started = time.perf_counter()
    with open_checkpoint(path) as checkpoint:
        dtype = None if dtype_name == "stored" else getattr(torch, dtype_name)
        weights = [checkpoint.read(name, dtype) for name in sorted(checkpoint.names())]
        on_disk, kind = checkpoint.nbytes, checkpoint.kind
    # A view of the mapped file becomes resident when it is used: one byte of every page.
    touched = sum(int(weight.flatten().view(torch.uint8)[::4096].sum()) for weight in weights if weight.numel())
    seconds = time.perf_counter() - started
    in_memory = sum(weight.nbytes for weight in weights)
    peak, limit = peak_bytes(), int(1.15 * in_memory) + 300 * MIB
    return {
        "benchmark": "load_memory",
        "kind": kind,
        "dtype": dtype_name,
        "disk_bytes": on_disk,
        "weights_bytes": in_memory,
        "before_bytes": before,
        "peak_bytes": peak,
        "limit_bytes": limit,
        "seconds": round(seconds, 2),
        "checksum": touched,
        "within_limit": peak <= limit,
    }


def write_random(path: Path, gib: float) -> None:
    """A Hugging Face folder of random bfloat16 tensors in shards of up to 1 GiB."""
    import torch
    from safetensors.torch import save_file

    rows = 8192
    columns = 4096
    n_tensors = max(1, round(gib * 2**30 / (rows * columns * 2)))
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for first in range(0, n_tensors, 16):
        shard = f"model-{first // 16 + 1:05}.safetensors"
        names = [f"layers.{i}.weight" for i in range(first, min(first + 16, n_tensors))]
        bits = {
            name: torch.randint(0, 2**14, (rows, columns), dtype=torch.int16, generator=generator) for name in names
        }
        save_file({name: tensor.view(torch.bfloat16) for name, tensor in bits.items()}, path / shard)
        weight_map |= dict.fromkeys(names, shard)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def measure(path: Path, dtype: str) -> dict[str, object]:
    """`load` in a fresh process."""
    command = [sys.executable, __file__, str(path), "--dtype", dtype, "--child"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "stored"], default="float32")
    parser.add_argument("--random-gib", type=float)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(load(options.model, options.dtype)))
        return
    if (options.model is None) == (options.random_gib is None):
        parser.error("give a model, or --random-gib")
    if options.model is not None:
        result = measure(options.model, options.dtype)
    else:
        with tempfile.TemporaryDirectory(prefix="sash-load-") as folder:
            write_random(Path(folder), options.random_gib)
            result = measure(Path(folder), options.dtype)
    for name in ("disk", "weights", "before", "peak", "limit"):
        print(f"{name:>8} {int(str(result[f'{name}_bytes'])) / MIB:10.1f} MiB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
