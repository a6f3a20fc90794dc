"""What a decoder's weights are kept as, and the network that runs on them."""

from __future__ import annotations

import logging

import torch

from sash.attention.segment import Backend
from sash.checkpoint import packed_parts, quantized
from sash.checkpoint.four_bits import FOUR_BITS
from sash.checkpoint.ggml_types import BY_NAME
from sash.checkpoint.header import Header
from sash.checkpoint.load import load_weights
from sash.checkpoint.source import Checkpoint
from sash.errors import DoesNotFitError, UnsupportedError, UsageError
from sash.families import Description
from sash.kernels import native
from sash.memory import available_memory
from sash.network.config import ModelConfig
from sash.network.decoder import Decoder
from sash.network.fused import why_not
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
    told: bool = False,
) -> Network:
    """A decoder on a checkpoint's weights.

    Args:
        checkpoint: open; it may be closed afterwards.
        description: what it holds.
        config: its network, with any forced window and pins.
        weights: what to keep them as. "auto": what a quantised folder holds; of any other checkpoint what comes nearest
            to what it is stored in, or what there is memory for: see `_usual`.
        dtype: what to compute in.
        device: where.
        backend: what computes attention in torch.
        forced: whether the user chose the backend, so that no other may serve.
        told: whether the user chose `dtype`.

    Raises:
        UsageError: weights that the folder does not hold, or that do not go with `dtype`.
        UnsupportedError: packed weights elsewhere than on a CPU.
        DoesNotFitError: the memory is too small.
        CheckpointError: the checkpoint is broken.
    """
    plain_only = forced or device.type != "cpu" or dtype != torch.bfloat16 or why_not(config) is not None
    usual: tuple[Weights | None, ...] = (None, "int8", "int4") if plain_only else _usual(checkpoint, told)
    chosen = _choose(checkpoint, description, config, weights, dtype, device, usual)
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
    usual: tuple[Weights | None, ...],
) -> Weights | None:
    """What to pack weights as; None for plain tensors of `dtype`. Of `usual` the first for which there is memory."""
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
    needs = [plain if one is None else _packed_nbytes(checkpoint, description, one) for one in usual]
    for one, nbytes in zip(usual, needs, strict=True):
        name = one or plain_name
        if available is None or nbytes <= available:
            if one == usual[0]:
                logger.info("weights: %s", name)
            else:
                logger.warning(
                    "weights: %s, since they would need %s as %s and %s are available",
                    name, _gib(needs[0]), usual[0] or plain_name, _gib(available or 0),
                )  # fmt: skip
            return one
    raise _too_large(needs[-1], usual[-1] or plain_name, available or 0, "a smaller model")


def _usual(checkpoint: Checkpoint, told: bool) -> tuple[Weights, ...]:
    """What native kernels keep weights as, best first.

    A quantised file is kept about as it is: its blocks of 4 bits as int4, the others as int8; bf16 only where the user
    chose that.
    """
    kinds = {checkpoint.dtype_name(name) for name in checkpoint.names()}
    if told or not any(kind in BY_NAME and BY_NAME[kind].block > 1 for kind in kinds):
        return ("bf16", "int8", "int4")
    return ("int4",) if kinds & FOUR_BITS else ("int8", "int4")


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
