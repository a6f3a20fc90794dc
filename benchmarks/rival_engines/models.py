"""The files that each engine runs, made of the one random model; and the real files that two engines can read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from rival_engines import random_model
from rival_engines.environments import RIVALS, InstallFailed, python_of

HOUSE = Path(__file__).parents[2]

GGUF_KINDS = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
"""What llama.cpp calls the formats nearest to ours."""

REAL = {"SmolLM2-135M Q4_1": "smollm2-135m-instruct", "Gemma 3 270M Q4_K_M": "gemma-3-270m"}
"""Real models by what they are called in tables, and in the catalogue."""


def hugging_face(folder: Path) -> Path:
    """The random model as transformers, vLLM and Sash read it."""
    return random_model.make(folder / "models" / "hugging-face")


def quantised(folder: Path, weights: str) -> Path:
    """The random model as `sash quantize` writes it, anew where Sash has changed; bf16 needs no format of its own."""
    source = hugging_face(folder)
    if weights == "bf16":
        return source
    path = folder / "models" / f"sash-{weights}"
    writers = (HOUSE / "src" / "sash").glob("[cknq]*/*.py")  # checkpoint, kernels, network, quantize
    if path.exists() and path.stat().st_mtime < max(file.stat().st_mtime for file in writers):
        shutil.rmtree(path)
    if not path.exists():
        _run([sys.executable, "-m", "sash", "quantize", str(source), "--bits", weights[-1], "--out", str(path)])
    return path


def gguf(folder: Path, weights: str) -> Path:
    """The random model as a GGUF file."""
    kind = GGUF_KINDS[weights]
    path = folder / "models" / f"{kind}.gguf"
    if not path.exists():
        script = Path(__file__).with_name("gguf_file.py")
        partial = path.with_suffix(".partial")
        python = python_of(folder, RIVALS["llama.cpp"])
        _run([str(python), str(script), str(hugging_face(folder)), str(partial), kind])
        os.replace(partial, path)
    return path


def openvino(folder: Path, weights: str) -> Path:
    """The random model in OpenVINO's format. Of int4 nothing is kept at int8, which is the quickest that it can be."""
    path = folder / "models" / f"openvino-{weights}"
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        program = python_of(folder, RIVALS["openvino"]).with_name("optimum-cli")
        flags = ["--task", "text-generation-with-past", "--weight-format", weights]
        flags += ["--ratio", "1.0"] if weights == "int4" else []
        _run([str(program), "export", "openvino", "-m", str(hugging_face(folder)), *flags, str(partial)])
        os.replace(partial, path)
    return path


def real(name: str) -> Path:
    """The GGUF file of a model of the catalogue, fetched if it is not here."""
    from sash import hub

    path = hub.pull(name)
    return next(path.glob("*.gguf")) if path.is_dir() else path


def text_ids(name: str) -> list[int]:
    """Five chapters of *Emma* in the tokens of a model of the catalogue."""
    from sash.cli.known_model import open_tokenizer

    chapters = HOUSE / "examples" / "emma_chapters_1_to_5.txt"
    return open_tokenizer(real(name)).encode(chapters.read_text(encoding="utf-8"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InstallFailed(f"{Path(command[0]).name}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
