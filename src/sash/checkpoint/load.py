"""From a checkpoint to a network: built without memory first, then given the checkpoint's tensors one by one.

A tensor that is stored in the wanted dtype is not copied: the parameter is a private view of the mapped file.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sash.checkpoint.source import Checkpoint
from sash.errors import CheckpointError, UnsupportedError, UsageError
from sash.families import Description
from sash.families.description import parse_slice

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def resolve_dtype(dtype: str | torch.dtype | None, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The dtype to compute in.

    Args:
        dtype: a torch dtype, its name ("bfloat16", "bf16", ...), or None or "auto": the dtype that most of the
            checkpoint is stored in; bfloat16 for quantised files, and for float16 on a CPU, which computes float16
            slowly or not at all.
        checkpoint: what is loaded.
        device: where it will compute.

    Raises:
        UsageError: no such dtype.
    """
    if isinstance(dtype, torch.dtype):
        if dtype not in DTYPES.values():
            raise UsageError(f"dtype {dtype} cannot be computed in: use one of {', '.join(DTYPES)}")
        return dtype
    if dtype is not None and dtype != "auto":
        name = _SHORT.get(dtype, dtype)
        if name not in DTYPES:
            raise UsageError(f"dtype {dtype!r} is not known: use auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    stored = checkpoint.main_dtype_name
    if stored == "F32":
        return torch.float32
    if stored == "F16" and device.type != "cpu":
        return torch.float16
    if stored != "BF16":
        logger.info("dtype: bfloat16, since the checkpoint is stored as %s", stored)
    return torch.bfloat16


def load_weights(
    build: Callable[[], nn.Module],
    description: Description,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """A network with the checkpoint's weights, ready to run.

    Args:
        build: makes the network; called where tensors take no memory.
        description: our parameter names and the checkpoint's.
        checkpoint: open; it must stay open no longer than this call, since parameters keep the map alive.
        dtype, device: of the parameters.

    Raises:
        CheckpointError: a tensor is missing or of another shape than the configuration says.
    """
    with torch.device("meta"):
        network = build()
    wanted = dict(network.named_parameters())
    if set(wanted) != set(description.weights):
        odd = sorted(set(wanted) ^ set(description.weights))[0]
        raise UnsupportedError(f"parameter {odd} is in the network or in the family's table, but not in both")
    by_tensor: dict[str, list[str]] = defaultdict(list)
    for ours, theirs in description.weights.items():
        by_tensor[parse_slice(theirs).name].append(ours)
    for name, ours_of_tensor in by_tensor.items():
        tensor = checkpoint.read(name, dtype).to(device)
        for ours in ours_of_tensor:
            part = parse_slice(description.weights[ours])
            _assign(network, ours, tensor[part.index] if part.index else tensor, wanted[ours].shape, name)
    for module in network.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    return network.eval()


def _assign(network: nn.Module, ours: str, tensor: Tensor, shape: torch.Size, theirs: str) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"tensor {theirs} is {list(tensor.shape)}, but the configuration makes it {list(shape)}: "
            "configuration and weights are not of one model"
        )
    path, _, name = ours.rpartition(".")
    network.get_submodule(path)._parameters[name] = nn.Parameter(tensor, requires_grad=False)
