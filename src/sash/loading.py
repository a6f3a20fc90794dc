"""From a name to a model that is ready: `sash.load`."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sash import hub
from sash.attention import dispatch
from sash.checkpoint import open_checkpoint
from sash.checkpoint.companions import tokenizer_of
from sash.checkpoint.description import read_description
from sash.checkpoint.load import resolve_dtype
from sash.checkpoint.weights import load_network
from sash.errors import UnsupportedError, UsageError
from sash.kernels import native
from sash.lm import LM
from sash.masked import MaskedLM
from sash.network.config import ModelConfig
from sash.network.parts import Wanted, check_weights
from sash.network.sizing import check_kv

logger = logging.getLogger(__name__)

Window = int | Literal["full"] | None


def load(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    window: Window = None,
    pins: int = 0,
    threads: int | None = None,
    chunk: int = 512,
    attention: str = "auto",
    kv: str = "auto",
    weights: str = "auto",
) -> LM | MaskedLM:
    """Load a model.

    Args:
        name_or_path: a catalogue name, an `org/name` that was pulled, a model folder, or a GGUF file.
        dtype: what to compute in; by default what the checkpoint is stored in, or bfloat16 if it is quantised or
            `weights` are asked for.
        device: "cpu", "cuda", "mps".
        window: None keeps the checkpoint's own windows; an integer limits every layer to that many keys, "full" lifts
            every window. On a model that was not trained so, this is an ablation, and is labelled so.
        pins: first positions that stay visible in windowed layers.
        threads: CPU threads; by default as many as torch chooses.
        chunk: tokens of a prompt that are read at once.
        attention: backend, "auto", "torch" or "reference".
        kv: what the rolling buffer keeps keys and values as: "auto" (as they are computed), "bf16", or "int8" with a
            scale a token and head, which takes about half of the memory of bfloat16.
        weights: what to keep weights as: "bf16", "int8" or "int4", packed for the native kernels. "auto": what a folder
            of `sash quantize` holds; of other checkpoints what comes nearest to what they are stored in, as far as
            there is memory: a GGUF file's blocks of 4 bits as they are and the rest of it as int8, unless `dtype` says
            otherwise.

    Returns:
        An `LM`, or for an encoder such as Longformer a `MaskedLM`.

    Raises:
        ModelNotFoundError: no such model.
        CheckpointError: a broken file.
        ConfigError: a configuration that is not understood.
        DoesNotFitError: the weights are larger than the memory that is available.
        WindowError, PinsError, UsageError: arguments that cannot be.
    """
    _use_threads(threads)
    check_kv(kv)
    options = Options(window=window, pins=pins, kv=kv, weights=check_weights(weights))
    return _load(str(name_or_path), dtype, _device(device), options, chunk, attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What only decoders have: see `load`."""

    window: Window
    pins: int
    kv: str
    weights: Wanted


def _load(
    name: str, dtype: str | torch.dtype | None, device: torch.device, options: Options, chunk: int, attention: str
) -> LM | MaskedLM:
    unsaid = dtype is None or dtype == "auto"
    with open_checkpoint(hub.resolve(name)) as checkpoint, ThreadPoolExecutor(1, "tokenizer") as beside:
        # Weights are read and packed outside of Python for the most part, which leaves Python to the tokenizer.
        tokenizer = beside.submit(tokenizer_of, checkpoint)
        description = read_description(checkpoint)
        precision = resolve_dtype("bfloat16" if unsaid and options.weights != "auto" else dtype, checkpoint, device)
        backend = dispatch.resolve(attention, device, precision)
        if not isinstance(description.config, ModelConfig):
            if options != Options(window=None, pins=0, kv="auto", weights="auto"):
                raise UnsupportedError(
                    "window, pins, kv and weights are for decoders; an encoder's windows are part of its weights"
                )
            return MaskedLM.build(description, checkpoint, tokenizer.result(), precision, device, name, backend)
        network = load_network(
            checkpoint,
            description,
            description.config.with_window(options.window, options.pins),
            weights=options.weights,
            dtype=precision,
            device=device,
            backend=backend,
            forced=attention != "auto",
            told=not unsaid,
        )
    if network.config.forced_window is not None:
        logger.warning(
            "window %s is forced on this model: an ablation, not the model as it was trained", options.window
        )
    elif isinstance(options.window, int) and options.window not in network.config.windows:
        logger.warning("window %s changes nothing: every layer's own is smaller, and 'full' lifts all", options.window)
    return LM(network, tokenizer.result(), name=name, chunk=chunk, kv=options.kv)


def load_decoder(name_or_path: str | Path, **options: Any) -> LM:
    """`load`, for callers that need to write text.

    Raises:
        UnsupportedError: the model is an encoder.
    """
    model = load(name_or_path, **options)
    if not isinstance(model, LM):
        raise UnsupportedError(
            f"{name_or_path} is an encoder and cannot write on; it fills masks: "
            f"sash.load({str(name_or_path)!r}).fill(text)"
        )
    return model


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads counts CPU threads, so it is 1 or more; got {threads}")
        torch.set_num_threads(threads)
    native.set_threads(torch.get_num_threads())


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        reason = "torch knows no such device" if reason.startswith("Expected one of") else reason
        raise UsageError(f"device {str(device)!r} is not available here ({reason}): use cpu, cuda or mps") from error
    return place
