"""The catalogue against what it really fetched: `make test-models` pulls both models first."""

import pytest

from sash import hub
from sash.hub import store


@pytest.mark.models
@pytest.mark.parametrize("name", sorted(hub.catalogue()))
def test_a_pulled_model_is_byte_for_byte_what_the_catalogue_states(name):
    entry = hub.catalogue()[name]
    path = hub.resolve(name)
    assert path.name == entry.load
    assert path.read_bytes()[:4] == b"GGUF"
    for file in entry.files:
        assert store.file_sha256(path.parent / file.path) == file.sha256
        assert (path.parent / file.path).stat().st_size == file.size
