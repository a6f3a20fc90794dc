"""Which backend computes attention. A forced one that cannot do the job is refused; nothing falls back in silence."""

from __future__ import annotations

import logging

import torch

from sash.attention import reference, torch_backend
from sash.attention.segment import Backend
from sash.errors import UnsupportedError, UsageError

logger = logging.getLogger(__name__)

BACKENDS: dict[str, Backend] = {"reference": reference.attend_segment, "torch": torch_backend.attend_segment}


def resolve(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend called `name`, or for "auto" the fastest that runs on `device`.

    Raises:
        UsageError: no backend has that name.
        UnsupportedError: a backend that was asked for by name cannot compute `dtype`.
    """
    if name == "auto":
        flash = torch_backend.has_flash(device, dtype)
        logger.info("attention: torch (%s, %s)", "CPU flash kernel" if flash else "explicit blocks", device.type)
        return BACKENDS["torch"]
    if name not in BACKENDS:
        raise UsageError(f"attention backend {name!r} is not known: auto, {', '.join(sorted(BACKENDS))} are")
    if name == "reference" and dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(f"the reference backend computes float32, not {dtype}: load with dtype='float32'")
    return BACKENDS[name]
