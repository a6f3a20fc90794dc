"""What weights are kept as: what was asked for, what the file has, or what there is memory for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from sash.checkpoint import open_checkpoint, weights
from sash.checkpoint.description import read_description
from sash.checkpoint.packed_parts import plan_parts
from sash.errors import DoesNotFitError, UnsupportedError
from sash.kernels import native
from sash.network.decoder import Decoder
from sash.network.fused import FusedDecoder
from sash.network.packed import Network
from sash.network.parts import Wanted
from sash.network.shapes import n_parameters
from sash.quantize import PackedEmbedding
from tests.checkpoint.test_packed_parts import write_gguf
from tests.cli.conftest import write_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads are too narrow for the native kernels."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def load(
    path: Path, wanted: Wanted = "auto", dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Network:
    from sash.attention.torch_backend import attend_segment

    with open_checkpoint(path) as checkpoint:
        description = read_description(checkpoint)
        return weights.load_network(
            checkpoint,
            description,
            description.decoder,
            weights=wanted,
            dtype=dtype,
            device=device,
            backend=attend_segment,
        )


def kind_of(network: Network) -> str:
    if isinstance(network, FusedDecoder):
        return "fused"
    return "packed" if isinstance(network.tok_embeddings, PackedEmbedding) else "plain"


def sizes(path: Path) -> dict[str, int]:
    with open_checkpoint(path) as checkpoint:
        description = read_description(checkpoint)
        packed = {
            kind: sum(plan.nbytes for plan in plan_parts(checkpoint, description, kind)) for kind in ("int8", "int4")
        }
        return packed | {"plain": 4 * n_parameters(description.decoder)}


def test_auto_takes_the_best_that_fits_and_says_so(narrow, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sash")
    needs = sizes(narrow)
    assert needs["int4"] < needs["int8"] < needs["plain"]
    for available, wanted, word in (
        (None, "plain", "weights: float32"),
        (needs["plain"], "plain", "weights: float32"),
        (needs["plain"] - 1, "packed", "weights: int8, since they would need"),
        (needs["int8"] - 1, "packed", "weights: int4, since they would need"),
    ):
        caplog.clear()
        monkeypatch.setattr(weights, "available_memory", lambda size=available: size)
        assert kind_of(load(narrow)) == wanted
        assert word in caplog.text
    monkeypatch.setattr(weights, "available_memory", lambda: needs["int4"] - 1)
    with pytest.raises(DoesNotFitError, match="as int4"):
        load(narrow)


@pytest.mark.parametrize("wanted", ["int8", "int4"])
def test_what_is_asked_for_and_does_not_fit_is_refused(narrow, monkeypatch, wanted):
    need = sizes(narrow)[wanted]
    monkeypatch.setattr(weights, "available_memory", lambda: need)
    assert kind_of(load(narrow, wanted)) == "packed"
    monkeypatch.setattr(weights, "available_memory", lambda: need - 1)
    with pytest.raises(DoesNotFitError, match=f"as {wanted}"):
        load(narrow, wanted)


@pytest.mark.parametrize("wanted", ["bf16", "int8", "int4"])
def test_packed_weights_compute_on_a_cpu_only(narrow, wanted):
    with pytest.raises(UnsupportedError, match="on the CPU"):
        load(narrow, wanted, device=torch.device("meta"))


@pytest.mark.skipif(not native.available(), reason="no native kernels serve here, so none are chosen")
@pytest.mark.parametrize(("usual", "expected"), [("Q4_1", "int4"), ("Q8_0", "int8"), ("F32", "bf16")])
def test_the_kernels_are_given_what_the_file_has(tmp_path, usual, expected, caplog):
    caplog.set_level(logging.INFO, "sash")
    write_gguf(tmp_path / "m.gguf", {}, usual)
    assert kind_of(load(tmp_path / "m.gguf", dtype=torch.bfloat16)) == "fused"
    assert f"weights: {expected}" in caplog.text


def test_a_network_of_plain_tensors_is_a_decoder(narrow):
    network = load(narrow, dtype=torch.bfloat16)
    assert isinstance(network, Decoder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
