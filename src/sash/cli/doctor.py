"""`sash doctor`: what this installation and this machine can do, and what they cannot."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Literal

import typer

from sash import __version__, hub
from sash.errors import SashError, UsageError
from sash.explain.budget import binary
from sash.explain.labels import table
from sash.hub.store import models_root
from sash.kernels import isa
from sash.memory import available_memory

Status = Literal["ok", "note", "problem"]

NEEDED = ("numpy", "mistral-common", "sentencepiece", "tokenizers", "jinja2", "huggingface_hub", "typer", "rich")
CPU_FLAGS = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
COMPILERS = ("c++", "g++", "clang++")
BUILD_REMEDY = "With a C++17 compiler: `make kernels` in a checkout, or install Sash again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report; a "problem" keeps Sash from working, a "note" is good to know."""

    subject: str
    status: Status
    detail: str


def examine() -> list[Finding]:
    """Everything that is looked at, in the order of the report. Imports torch."""
    return [
        Finding(subject="sash", status="ok", detail=__version__),
        _python(),
        *_torch(),
        _packages(),
        _cpu(),
        _memory(),
        _store(),
        _compiler(),
        *_attention(),
        *_kernels(),
    ]


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(
        subject="python", status="ok" if fine else "problem", detail=detail + ("" if fine else ": 3.11 or later")
    )


def _torch() -> list[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a missing shared library is an OSError
        return [Finding(subject="torch", status="problem", detail=f"does not import: {' '.join(str(error).split())}")]
    devices = ["cpu"]
    devices += [f"cuda ({torch.cuda.get_device_name(0)})"] if torch.cuda.is_available() else []
    devices += ["mps"] if torch.backends.mps.is_available() else []
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        Finding(subject="torch", status="ok", detail=f"{torch.__version__}, CPU kernels for {capability}"),
        Finding(subject="devices", status="ok", detail=", ".join(devices)),
        Finding(subject="threads", status="ok", detail=f"{torch.get_num_threads()} of {_usable_cpus()} usable CPUs"),
    ]


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _packages() -> Finding:
    found, missing = [], []
    for name in NEEDED:
        try:
            found.append(f"{name} {version_of(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        detail = f"missing: {', '.join(missing)}: run `python -m pip install {' '.join(missing)}`"
        return Finding(subject="packages", status="problem", detail=detail)
    return Finding(subject="packages", status="ok", detail=", ".join(found))


def cpu_facts(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    r"""Name and features of the processor from the text of /proc/cpuinfo; features only those that matter here.

    >>> cpu_facts("model name : Some CPU\nflags : fpu avx2 avx512f\n\nmodel name : Some CPU\n")
    ('Some CPU', ('avx2', 'avx512f'))
    """
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            values.setdefault(key.strip(), value.strip())
    flags = set(f"{values.get('flags', '')} {values.get('Features', '')}".split())
    return values.get("model name", platform.machine()), tuple(flag for flag in CPU_FLAGS if flag in flags)


def _cpu() -> Finding:
    try:
        name, flags = cpu_facts(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return Finding(
            subject="cpu", status="note", detail=f"{platform.machine()}; the system does not list its features"
        )
    return Finding(subject="cpu", status="ok", detail=f"{name}: {' '.join(flags) or 'no vector features known here'}")


def _memory() -> Finding:
    available = available_memory()
    if available is None:
        return Finding(subject="memory", status="note", detail="the system does not say")
    return Finding(subject="memory", status="ok", detail=f"{binary(available)} available")


def _store() -> Finding:
    root = models_root()
    try:
        there = next(path for path in (root, *root.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK) or not there.is_dir():
            return Finding(subject="model store", status="problem", detail=f"{root} cannot be written: set SASH_HOME")
        models = hub.installed()
    except PermissionError:
        return Finding(subject="model store", status="problem", detail=f"{root} cannot be read: set SASH_HOME")
    except SashError as error:
        return Finding(subject="model store", status="problem", detail=str(error))
    held = f"{len(models)} models, {binary(sum(model.size for model in models))}"
    return Finding(subject="model store", status="ok", detail=f"{root}: {held}; {binary(free)} free")


def _compiler() -> Finding:
    wanted = os.environ.get("CXX")
    found = next((path for name in ([wanted] if wanted else COMPILERS) if (path := shutil.which(name))), None)
    detail = found or "none found; only building the native kernels needs one"
    return Finding(subject="C++ compiler", status="ok" if found else "note", detail=detail)


def _attention() -> list[Finding]:
    try:
        from sash.attention.dispatch import BACKENDS
    except (ImportError, OSError):
        return [Finding(subject="attention", status="problem", detail="no backend: all of them need torch")]
    return [Finding(subject="attention", status="ok", detail=", ".join(sorted(BACKENDS)))]


def _kernels() -> list[Finding]:
    """Who computes: native kernels of which instruction set, or torch, and why."""
    native, quantised = "native kernels", "int8 and int4 weights"
    try:
        serving, missing = isa.serving_isa(), isa.why_none()
    except UsageError as error:
        return [Finding(subject=subject, status="problem", detail=str(error)) for subject in (native, quantised)]
    if missing:
        remedy = BUILD_REMEDY if isa.extension() is None else f"unset {isa.VARIABLE} to use them"
        return [
            Finding(subject=native, status="note", detail=f"{missing}; torch does their work. {remedy}"),
            Finding(subject=quantised, status="note", detail="computed by torch, which is slow at it"),
        ]
    chosen = f"{serving}, forced by {isa.VARIABLE}" if os.environ.get(isa.VARIABLE) else serving
    others = ", ".join(name for name in isa.available_isas() if name != serving)
    return [
        Finding(subject=native, status="ok", detail=chosen + (f"; also usable here: {others}" if others else "")),
        Finding(subject=quantised, status="ok", detail=f"computed by the {serving} kernels"),
    ]


def command(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> int:
    """Check the installation and what it can do. Exits with 1 where there is a problem."""
    findings = examine()
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        rows = [[finding.status, finding.subject, finding.detail] for finding in findings]
        typer.echo("\n".join(table(rows, right=[False, False, False])))
        typer.echo(f"{problems} problems" if problems else "No problems found.", err=True)
    return SashError.exit_code if problems else 0
