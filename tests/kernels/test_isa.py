"""Which instruction set serves: what the extension says of this machine, and what SASH_ISA makes of it."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from sash.errors import UsageError
from sash.kernels import isa

BUILT = isa.extension() is not None
needs_extension = pytest.mark.skipif(not BUILT, reason="the native kernels are not built here")

# The flags of /proc/cpuinfo that each instruction set needs beyond those of the one before.
FLAGS = {
    "avx2": {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "popcnt"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "amx": {"avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"},
}


@needs_extension
def test_portable_kernels_are_always_there():
    usable = isa.available_isas()
    assert usable[-1] == "portable"
    assert list(usable) == [name for name in ("amx", "avx512", "avx2", "portable") if name in usable]


@needs_extension
def test_the_best_one_serves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SASH_ISA", raising=False)
    assert isa.serving_isa() == isa.available_isas()[0]
    monkeypatch.setenv("SASH_ISA", "")
    assert isa.serving_isa() == isa.available_isas()[0]
    assert isa.why_none() is None


@needs_extension
def test_sash_isa_forces_each(monkeypatch: pytest.MonkeyPatch):
    for name in (*isa.available_isas(), "none"):
        monkeypatch.setenv("SASH_ISA", name)
        assert isa.serving_isa() == name
    assert isa.why_none() == "left out by SASH_ISA=none"


@needs_extension
@pytest.mark.parametrize("wanted", ["avx1024", "AVX2", "sse", "amx "])
def test_an_unknown_instruction_set_is_refused_with_those_that_are_there(wanted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SASH_ISA", wanted)
    with pytest.raises(UsageError, match=r"is not an instruction set; available here: .*portable, none"):
        isa.serving_isa()


@needs_extension
def test_one_that_is_not_to_be_had_here_is_refused(monkeypatch: pytest.MonkeyPatch):
    missing = [name for name in FLAGS if name not in isa.available_isas()]
    if not missing:
        pytest.skip("this machine has every instruction set")
    monkeypatch.setenv("SASH_ISA", missing[0])
    with pytest.raises(UsageError, match=r"beyond this processor|not part of this build"):
        isa.serving_isa()


@needs_extension
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="/proc/cpuinfo of x86-64 lists the features"
)
def test_what_is_usable_agrees_with_the_system():
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    needed: set[str] = set()
    for name, more in FLAGS.items():
        needed |= more
        if name in isa.available_isas():
            assert needed <= flags, f"{name} is said to be usable; the system lists no {needed - flags}"


def test_without_the_extension_torch_serves_unless_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(isa, "_imported", lambda: (None, "not built"))
    monkeypatch.delenv("SASH_ISA", raising=False)
    assert (isa.serving_isa(), isa.available_isas(), isa.why_none()) == ("none", (), "not built")
    monkeypatch.setenv("SASH_ISA", "avx2")
    with pytest.raises(UsageError, match="SASH_ISA=avx2 asks for native kernels, and there are none here"):
        isa.serving_isa()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named '_sash_kernels'", name="_sash_kernels"), "not built"),
        (ImportError("undefined symbol: x"), "built, but does not load: undefined symbol: x"),
    ],
)
def test_why_an_extension_does_not_load(error: ImportError, reason: str, monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(isa, "import_module", fail)
    assert isa._imported.__wrapped__() == (None, reason)
