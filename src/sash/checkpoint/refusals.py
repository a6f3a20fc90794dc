"""Why a folder or file is no model that Sash opens, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from sash.errors import CheckpointError, UnsupportedError

PICKLES = frozenset({".bin", ".pth", ".pt", ".pkl", ".ckpt", ".pt2"})
"""Endings of files that hold pickled objects."""


def pickle_error(path: Path) -> UnsupportedError:
    """The error for weights that are pickled."""
    return UnsupportedError(
        f"{path} holds pickled weights, which can run code when they are opened, so they are never read: download the "
        "model as .safetensors, or convert it on a machine you can lose with convert.py of the safetensors project "
        "(its bindings/python folder)"
    )


def unrecognised(path: Path, files: set[str], ggufs: list[str]) -> CheckpointError | UnsupportedError:
    """The error for a folder that is no model, naming what it lacks."""
    if len(ggufs) > 1:
        return CheckpointError(f"{path} holds {len(ggufs)} .gguf files: name one of them, {ggufs[0]} say")
    if any(Path(name).suffix.lower() in PICKLES for name in files) and not any(
        name.endswith(".safetensors") for name in files
    ):
        return pickle_error(path)
    if "config.json" in files:
        return CheckpointError(
            f"{path} has a config.json but neither model.safetensors nor model.safetensors.index.json: "
            "the download is not complete"
        )
    if "params.json" in files:
        return CheckpointError(f"{path} has a params.json but no consolidated*.safetensors: download it again")
    return CheckpointError(
        f"{path} is no model: it has neither config.json with model.safetensors, nor params.json with "
        "consolidated.safetensors, nor a .gguf file"
    )
