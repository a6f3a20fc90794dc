"""The real checkpoints of the catalogue, described."""

import pytest

from sash import hub
from sash.checkpoint.gguf import GgufFile
from sash.families import describe
from sash.network.shapes import n_parameters, parameter_shapes

EXPECTED = {
    "gemma-3-270m": ((512, 512, 512, 512, 512, None) * 3, 268_098_176, "half"),
    "smollm2-135m-instruct": ((None,) * 30, 134_515_008, "interleaved"),
}


@pytest.mark.models
@pytest.mark.parametrize("name", EXPECTED)
def test_real_gguf(name: str) -> None:
    windows, parameters, layout = EXPECTED[name]
    file = GgufFile.open(hub.resolve(name))
    description = describe("gguf", file.metadata, frozenset(file.tensors))
    file.close()
    config = description.decoder
    shapes = {ours: file.tensors[theirs].shape for ours, theirs in description.weights.items()}
    assert shapes == parameter_shapes(config)
    assert description.ignored == frozenset()
    assert config.windows == windows
    assert n_parameters(config) == parameters
    assert config.tied_embeddings
    assert {layer.rope.layout for layer in config.layers} == {layout}
