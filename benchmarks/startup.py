"""How long until the first token of `sash run`, until `sash serve` takes requests, and what it takes while idle.

    python benchmarks/startup.py
    python benchmarks/startup.py --model gemma-3-270m --rounds 9
    python benchmarks/startup.py --idle 60 --rounds 1

Each round starts a process for each of three things in turn: `sash run MODEL hi -n 1` until its answer is read, `sash
serve MODEL` until it says that it serves, and the same work step by step in one process that notes when each step is
done (importing torch and Sash, opening the file, tokenizer, weights, first token; the tokenizer and the weights one
after the other there, side by side in `sash run`). A server that is ready is left alone for some seconds (`--idle`):
the processor time that it and its children take meanwhile is told as a part of a core. One round goes ahead uncounted,
so that files are in the system's cache and modules are compiled. Medians are told; the last line is JSON.

Targets: first token 3 s, ready 4 s, for smollm2-135m-instruct; idle 1% of a core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path

SERVING = re.compile(r"serving +(http://\S+)")
STEPS = ("torch", "sash", "open", "tokenizer", "weights", "first_token")


def environment() -> dict[str, str]:
    """This one, but that modules stay compiled, as they do for users."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def sash(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sash", *arguments]


def first_token(model: str) -> float:
    """Seconds until `sash run` has written its first token."""
    began = time.perf_counter()
    command = sash("run", model, "hi", "-n", "1", "-t", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise SystemExit("sash run wrote nothing")
        took = time.perf_counter() - began
        process.stdout.read()
    return took


def processor_seconds(pid: int) -> float:
    """The processor time of a process and of its living children, so far; Linux only."""
    total, waiting = 0, [pid]
    while waiting:
        one = Path(f"/proc/{waiting.pop()}")
        fields = (one / "stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
        for children in one.glob("task/*/children"):
            waiting += map(int, children.read_text().split())
    return total / os.sysconf("SC_CLK_TCK")


def ready(model: str, idle_seconds: float) -> dict[str, float]:
    """Seconds until `sash serve` says of itself that it takes requests, and what part of a core it takes after that.

    Its health is asked for to be sure.
    """
    began = time.perf_counter()
    command = sash("serve", model, "--port", "0")
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), text=True) as process:
        assert process.stderr is not None
        said = next((found for line in process.stderr if (found := SERVING.search(line))), None)
        took = time.perf_counter() - began
        if said is None:
            raise SystemExit("sash serve did not start")
        try:
            urllib.request.urlopen(f"{said[1]}/health", timeout=10).close()
        except urllib.error.URLError as error:
            raise SystemExit(f"sash serve is not well: {error}") from error
        else:
            time.sleep(1)  # what the start itself has left to do
            before, since = processor_seconds(process.pid), time.perf_counter()
            time.sleep(idle_seconds)
            idle = (processor_seconds(process.pid) - before) / (time.perf_counter() - since)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()
    return {"ready": took, "idle part of a core": idle}


def step_by_step(model: str) -> None:
    """The work of `sash run`, timed from within: a line of JSON."""
    done = [time.perf_counter()]
    import torch

    done.append(time.perf_counter())
    import sash.cli.run
    import sash.loading  # noqa: F401, what `sash run` imports is imported here
    from sash import hub
    from sash.attention import dispatch
    from sash.checkpoint import open_checkpoint
    from sash.checkpoint.companions import tokenizer_of
    from sash.checkpoint.description import read_description
    from sash.checkpoint.weights import load_network
    from sash.lm import LM

    done.append(time.perf_counter())
    device = torch.device("cpu")
    with open_checkpoint(hub.resolve(model)) as checkpoint:
        description = read_description(checkpoint)
        done.append(time.perf_counter())
        tokenizer = tokenizer_of(checkpoint)
        done.append(time.perf_counter())
        network = load_network(
            checkpoint, description, description.config, weights="auto", dtype=torch.bfloat16, device=device,
            backend=dispatch.resolve("auto", device, torch.bfloat16),
        )  # fmt: skip
        done.append(time.perf_counter())
    lm = LM(network, tokenizer, name=model)
    lm.generate("hi", max_tokens=1, temperature=0)
    done.append(time.perf_counter())
    steps = (after - before for before, after in pairwise(done))
    print(json.dumps(dict(zip(STEPS, steps, strict=True))))


def timed_steps(model: str) -> dict[str, float]:
    """`step_by_step` in a process of its own, with names that tell steps from the whole."""
    command = [sys.executable, __file__, "--model", model, "--child"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {f"step {name}": took for name, took in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--idle", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        step_by_step(options.model)
        return
    from machine import describe_machine

    rounds = [
        {"first_token": first_token(options.model), **ready(options.model, options.idle), **timed_steps(options.model)}
        for _ in range(options.rounds + 1)
    ][1:]
    medians = {name: round(statistics.median(one[name] for one in rounds), 4) for name in rounds[0]}
    for name, median in medians.items():
        values = sorted(one[name] for one in rounds)
        if name.startswith("idle"):
            print(f"{'idle':>18} {median:7.2%} of a core   ({values[0]:.2%} to {values[-1]:.2%})")
        else:
            print(f"{name:>18} {median:7.2f} s   ({values[0]:.2f} to {values[-1]:.2f})")
    result = {"benchmark": "startup", "model": options.model, "rounds": options.rounds, "seconds": medians}
    print(json.dumps(result | {"machine": describe_machine()}))


if __name__ == "__main__":
    main()
