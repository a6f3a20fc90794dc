"""Sash: run and explain sliding-window language models; read without end, in constant memory.

>>> import sash
>>> lm = sash.load("gemma-3-270m")                             # doctest: +SKIP
>>> lm.generate("It is a truth universally acknowledged").text  # doctest: +SKIP

Names are imported when they are first used, so that `import sash` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sash.attention.pattern import AttentionPattern
    from sash.completion import Completion, Statistics
    from sash.conversation import Conversation
    from sash.errors import SashError
    from sash.hub import pull
    from sash.lm import LM
    from sash.loading import load
    from sash.masked import MaskedLM
    from sash.network.config import ModelConfig
    from sash.sampling import SamplingParams
    from sash.session import Session

__all__ = [
    "LM",
    "AttentionPattern",
    "Completion",
    "Conversation",
    "MaskedLM",
    "ModelConfig",
    "SamplingParams",
    "SashError",
    "Session",
    "Statistics",
    "load",
    "pull",
]

__version__ = "0.1.0"

_HOMES = {
    "LM": "sash.lm",
    "AttentionPattern": "sash.attention.pattern",
    "Completion": "sash.completion",
    "Conversation": "sash.conversation",
    "MaskedLM": "sash.masked",
    "ModelConfig": "sash.network.config",
    "SamplingParams": "sash.sampling",
    "SashError": "sash.errors",
    "Session": "sash.session",
    "Statistics": "sash.completion",
    "load": "sash.loading",
    "pull": "sash.hub",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sash' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
