"""Sash against its rivals: the same model and prompts through each in turn, and ratios pair by pair.

    python benchmarks/rivals.py                       # every rival; installs and makes what is missing
    python benchmarks/rivals.py --install             # only that
    python benchmarks/rivals.py --only vllm --weights bf16 --works short,streams
    python benchmarks/rivals.py --quick               # one short round, to see that all of it works

The rivals are transformers, vLLM for CPUs, llama.cpp and OpenVINO, each in an environment of its own in the folder that
`--folder` names. The model is Mistral-shaped, of 1.0B random parameters (window 4,096); two real GGUF files go through
Sash and llama.cpp. One engine computes at a time, the others being stopped; within a round all do the same work
one after the other, and a ratio is taken within a round: figures of minutes apart do not compare on a shared machine.
llama.cpp knows no window for this architecture, and reads the long prompt with full attention. Last line JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from machine import describe_machine
from rival_engines import models
from rival_engines.environments import RIVALS, InstallFailed, install, python_of
from rival_engines.field import Field, Work, print_tables
from rival_engines.process import Contestant, Stable

WEIGHTS = ("bf16", "int8", "int4")
OFFERED = {"transformers": ("bf16",), "vllm": ("bf16",), "llama.cpp": WEIGHTS, "openvino": ("int8", "int4")}
"""Which weights each rival has."""

RANDOM = "random 1.0B"
INT4 = {"weights": "int4"}
"""How Sash loads the real files: what they have in 4 bits it keeps as it is, the rest as int8."""


def works_of(options: argparse.Namespace) -> list[Work]:
    """What is done with each model."""
    short, long, count = (128, 1024, 8) if options.quick else (512, 8192, 64)
    known = {
        "short": Work(n_streams=1, n_prompt=short, n_write=count, reads=f"read {short}", writes=f"write @{short}"),
        "long": Work(n_streams=1, n_prompt=long, n_write=count, reads=f"read {long}", writes=f"write @{long}"),
        "streams": Work(n_streams=8, n_prompt=32, n_write=count, reads=None, writes="8 streams"),
    }
    return [known[name] for name in options.works]


def contestants_of(options: argparse.Namespace, field: Field) -> list[Contestant]:
    """Those who run the random model; what cannot be installed or made is skipped."""
    folder: Path = options.folder
    kv = {"kv": options.kv} if options.kv else {}
    found = [
        Contestant(
            name=f"sash {weights}",
            engine="sash",
            python=Path(sys.executable),
            model=models.quantised(folder, weights),
            load={"weights": "bf16" if weights == "bf16" else "auto", **kv},
        )
        for weights in options.weights
    ]
    makers = {"llama.cpp": models.gguf, "openvino": models.openvino}
    for name in options.only:
        try:
            release = install(folder, RIVALS[name], options.jobs)
        except InstallFailed as error:
            field.skip(name, error)
            continue
        print(f"{name} {release} is installed", file=sys.stderr)
        for weights in OFFERED[name]:
            if weights not in options.weights:
                continue
            called = f"{name} {models.GGUF_KINDS[weights].upper() if name == 'llama.cpp' else weights}"
            try:
                model = makers[name](folder, weights) if name in makers else models.hugging_face(folder)
            except InstallFailed as error:
                field.skip(called, error)
                continue
            python = python_of(folder, RIVALS[name])
            found.append(Contestant(name=called, engine=name, python=python, model=model))
            field.weights[called] = weights
    field.weights |= {f"sash {weights}": weights for weights in options.weights}
    return found


def real_contestants(options: argparse.Namespace, field: Field, name: str) -> list[Contestant]:
    """Sash and llama.cpp on one GGUF file."""
    if "llama.cpp" not in options.only or "llama.cpp" in field.skipped:
        return []
    path, short = models.real(name), name.split("-")[0]
    python = python_of(options.folder, RIVALS["llama.cpp"])
    field.weights |= {f"{engine} {short}": "as stored" for engine in ("sash", "llama.cpp")}
    return [
        Contestant(name=f"sash {short}", engine="sash", python=Path(sys.executable), model=path, load=INT4),
        Contestant(name=f"llama.cpp {short}", engine="llama.cpp", python=python, model=path),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda choices: lambda text: [name for name in choices if name in text.split(",")]  # noqa: E731
    parser.add_argument("--only", type=names(RIVALS), default=list(RIVALS), metavar="NAME,...", help=", ".join(RIVALS))
    parser.add_argument("--weights", type=names(WEIGHTS), default=list(WEIGHTS), metavar="KIND,...")
    works = ("short", "long", "streams")
    parser.add_argument("--works", type=names(works), default=list(works), metavar="WORK,...", help=", ".join(works))
    parser.add_argument("--models", choices=["random", "real", "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", choices=["bf16", "int8"], help="keys and values of Sash")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once, for llama.cpp")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sash" / "rivals")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--install", action="store_true", help="install and make what is missing, and measure nothing")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    return options


def main() -> None:
    options = parse()
    field, works = Field(), works_of(options)
    contestants = contestants_of(options, field)
    if options.install:
        return
    context = max(work.n_prompt + work.n_write for work in works) + 16
    settings = {"threads": options.threads, "context": context, "streams": 8, "logs": options.folder / "logs"}
    if options.models != "real":
        with Stable(**settings) as stable:
            field.compete(stable, RANDOM, contestants, works, options.rounds)
    if options.models != "random":
        for title, name in models.REAL.items():
            with Stable(**settings) as stable:
                field.texts[title] = models.text_ids(name)
                pair, short = real_contestants(options, field, name), [w for w in works if w.n_streams == 1][:1]
                field.compete(stable, title, pair, short, options.rounds)
    print_tables(field)
    result = {
        "benchmark": "rivals",
        "rounds": options.rounds,
        "quick": options.quick,
        "speeds": field.speeds,
        "load_seconds": field.load_seconds,
        "ratios": field.ratios(),
        "skipped": field.skipped,
        **describe_machine(),
        "threads": options.threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
