"""Which instruction set serves the native kernels, and why none does. Imports no torch.

The extension module `_sash_kernels` holds every kernel once for each instruction set and knows which of them the
processor and its system can run. The environment variable SASH_ISA names one of them instead of the best one; "none"
leaves all work to torch.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

from sash.errors import UsageError

__all__ = ["NONE", "VARIABLE", "available_isas", "extension", "serving_isa", "why_none"]

VARIABLE = "SASH_ISA"
NONE = "none"

_EXTENSION = "_sash_kernels"


@cache
def _imported() -> tuple[ModuleType | None, str]:
    """The extension, or None with the reason."""
    try:
        return import_module(_EXTENSION), ""
    except ModuleNotFoundError as error:
        if error.name != _EXTENSION:
            raise
        return None, "not built"
    except ImportError as error:  # built for another system, or against a library that is gone
        return None, f"built, but does not load: {error}"


def extension() -> ModuleType | None:
    """The extension module, or None where it was not built or does not load."""
    return _imported()[0]


def available_isas() -> tuple[str, ...]:
    """Instruction sets that were built and that run here, best first; "portable" is the last. Empty: nothing built."""
    module = extension()
    return tuple(module.available_isas()) if module else ()


def serving_isa() -> str:
    """The instruction set whose kernels serve: "amx", "avx512", "avx2" or "portable"; "none" where torch does.

    Raises:
        UsageError: SASH_ISA names something unknown, or something that is not to be had here.
    """
    module = extension()
    if module is None:
        wanted = os.environ.get(VARIABLE, NONE) or NONE
        if wanted != NONE:
            raise UsageError(
                f"{VARIABLE}={wanted} asks for native kernels, and there are none here ({_imported()[1]}); unset it"
            )
        return NONE
    try:
        return str(module.isa())
    except ValueError as error:
        raise UsageError(f"{error}; unset it for the best one") from error


def why_none() -> str | None:
    """Why no native kernels serve, or None where some do.

    Raises:
        UsageError: as `serving_isa`.
    """
    if serving_isa() != NONE:
        return None
    return _imported()[1] or f"left out by {VARIABLE}={NONE}"
