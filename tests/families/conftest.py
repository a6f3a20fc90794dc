"""Configurations of released models, as their authors published them."""

import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def load(name: str) -> dict[str, dict[str, Any]]:
    return json.loads((HERE / name).read_text())


@pytest.fixture
def real_configs() -> dict[str, dict[str, Any]]:
    """config.json of each model, by the name of its repository."""
    return load("real_configs.json")


@pytest.fixture
def real_params() -> dict[str, dict[str, Any]]:
    """params.json of each model, by the name of its repository."""
    return load("real_params.json")


@pytest.fixture
def real_metadata() -> dict[str, dict[str, Any]]:
    """GGUF metadata that shapes the network, by the name of its file."""
    return load("real_metadata.json")
