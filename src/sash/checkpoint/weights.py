"""What a decoder's weights are kept as, and the network that runs on them."""

from __future__ import annotations

import logging

import torch

from sash.attention.segment import Backend
from sash.checkpoint import packed_parts, quantized
from sash.checkpoint.header import Header
from sash.checkpoint.load import load_weights
from sash.checkpoint.source import Checkpoint
from sash.errors import DoesNotFitError, UnsupportedError, UsageError
from sash.families import Description
from sash.kernels import native
from sash.memory import available_memory
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.packed import Network, network_of
from sash.network.parts import Wanted, Weights
from sash.network.shapes import n_parameters

logger = logging.getLogger(__name__)


def load_network(
    checkpoint: Checkpoint,
    description: Description,
    config: ModelConfig,
    *,
    weights: Wanted,
    dtype: torch.dtype,
    device: torch.device,
    backend: Backend,
    forced: bool = False,
) -> Network:
    """A decoder on a checkpoint's weights.

    Args:
        checkpoint: open; it may be closed afterwards.
        description: what it holds.
        config: its network, with any forced window and pins.
        weights: what to keep them as. "auto": what a quantised folder holds; of any other checkpoint plain tensors of
            `dtype` where there is memory for them, else int8, else int4.
        dtype: what to compute in.
        device: where.
        backend: what computes attention in torch.
        forced: whether the user chose the backend, so that no other may serve.

    Raises:
        UsageError: weights that the folder does not hold, or that do not go with `dtype`.
        UnsupportedError: packed weights elsewhere than on a CPU.
        DoesNotFitError: the memory is too small.
        CheckpointError: the checkpoint is broken.
    """
    chosen = _choose(checkpoint, description, config, weights, dtype, device)
    if chosen is None:
        build = load_weights(lambda: Decoder(config, backend), description, checkpoint, dtype, device)
        if not isinstance(build, Decoder):
            raise UnsupportedError("the checkpoint did not build a decoder")
        return build
    if device.type != "cpu":
        raise UnsupportedError(f"packed weights are computed with on the CPU, not on {device}: leave weights at auto")
    if checkpoint.kind == "sash":
        parts = quantized.read_parts(checkpoint)
    else:
        parts = packed_parts.packed_parts(checkpoint, description, chosen)
    return network_of(config, parts, dtype, backend if forced else None)


def _choose(
    checkpoint: Checkpoint,
    description: Description,
    config: ModelConfig,
    weights: Wanted,
    dtype: torch.dtype,
    device: torch.device,
) -> Weights | None:
    """What to pack weights as; None for plain tensors of `dtype`."""
    if checkpoint.kind == "sash":
        own = Header.from_json(checkpoint.config).weights
        if weights not in ("auto", own):
            raise UsageError(f"{checkpoint.path} holds {own} weights, not {weights}: leave weights at auto")
        _check_memory(quantized.nbytes_of(checkpoint), own, device, "a smaller model")
        logger.info("weights: %s, as %s holds them", own, checkpoint.path.name)
        return own
    plain, plain_name = n_parameters(config) * dtype.itemsize, str(dtype).removeprefix("torch.")
    if weights == "bf16" and dtype == torch.bfloat16 and not native.available():
        # Without native kernels plain tensors are the faster bf16 weights.
        _check_memory(plain, plain_name, device, "weights='int8' or weights='int4'")
        return None
    if weights != "auto":
        _check_memory(_packed_nbytes(checkpoint, description, weights), weights, device, "a smaller model")
        logger.info("weights: %s, as was asked for", weights)
        return weights
    available = available_memory() if device.type == "cpu" else None
    if available is None or plain <= available:
        logger.info("weights: %s", plain_name)
        return None
    for smaller in ("int8", "int4"):
        if _packed_nbytes(checkpoint, description, smaller) <= available:
            logger.warning(
                "weights: %s, since they would need %s as %s and %s are available",
                smaller, _gib(plain), plain_name, _gib(available),
            )  # fmt: skip
            return smaller
    raise _too_large(_packed_nbytes(checkpoint, description, "int4"), "int4", available, "a smaller model")


def _packed_nbytes(checkpoint: Checkpoint, description: Description, weights: Weights) -> int:
    return sum(plan.nbytes for plan in packed_parts.plan_parts(checkpoint, description, weights))


def _check_memory(nbytes: int, name: str, device: torch.device, remedy: str) -> None:
    available = available_memory() if device.type == "cpu" else None
    if available is not None and nbytes > available:
        raise _too_large(nbytes, name, available, remedy)


def _too_large(nbytes: int, name: str, available: int, remedy: str) -> DoesNotFitError:
    return DoesNotFitError(
        f"the weights need {_gib(nbytes)} as {name} and {_gib(available)} are available: use {remedy}"
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
