"""How the next token is chosen: validated parameters, and one draw from one row of logits.

torch and numpy are imported by the functions that compute.
"""

from __future__ import annotations

from sash.sampling.draw import Sampled, new_generator, sample
from sash.sampling.history import OutputCounts, SeenTokens
from sash.sampling.params import MAX_LOGPROBS, MAX_STOP_LENGTH, MAX_STOPS, SamplingParams

__all__ = (
    "MAX_LOGPROBS",
    "MAX_STOPS",
    "MAX_STOP_LENGTH",
    "OutputCounts",
    "Sampled",
    "SamplingParams",
    "SeenTokens",
    "new_generator",
    "sample",
)
