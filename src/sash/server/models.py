"""GET /v1/models: what is served, as OpenAI and Mistral describe it, and how it attends."""

from __future__ import annotations

from typing import Any

from sash.network.sizing import KV_BYTES, kv_bytes
from sash.sampling import SamplingParams
from sash.server.place import Place

NO_LIMIT = 2**31 - 1
"""What stands for the context of a model that slides."""


def cards(place: Place) -> list[dict[str, Any]]:
    """A card for each name of the model."""
    return [card(place, name) for name in place.settings.names]


def card(place: Place, name: str) -> dict[str, Any]:
    """One model under one of its names."""
    lm = place.lm
    config, tokenizer = lm.config, lm.tokenizer
    slides = all(window is not None for window in config.windows)
    context = config.context or NO_LIMIT
    return {
        "id": name,
        "object": "model",
        "type": "base",
        "created": place.started,
        "owned_by": "sash",
        "name": name,
        "root": lm.name,
        "aliases": [other for other in place.settings.names if other != name],
        "max_context_length": NO_LIMIT if slides else context,
        "default_model_temperature": SamplingParams().temperature,
        "capabilities": {
            "completion_chat": tokenizer.has_chat,
            "completion_fim": tokenizer.has_fim,
            "function_calling": tokenizer.has_tools,
            "fine_tuning": False,
            "vision": False,
            "classification": False,
        },
        "attention": {
            "window": config.window,
            "pattern": ["full" if window is None else "sliding" for window in config.windows],
            "windows": list(config.windows),
            "layers": config.n_layers,
            "reach": config.reach,
            "forced": config.forced_window is not None,
            "kv_bytes_per_sequence": kv_bytes(config, config.context if not slides else 1, *KV_BYTES[lm.kv_dtype]),
            "kv_dtype": lm.kv_dtype,
        },
    }
