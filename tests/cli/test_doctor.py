from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from sash import __version__, cli
from sash.cli import doctor
from sash.cli.doctor import cpu_facts
from sash.kernels import isa


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASH_HOME", str(tmp_path / "home"))


def findings(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, str]]:
    assert cli.execute(["doctor", "--json"]) == code
    return {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}


def test_doctor_reports_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    found = findings(capsys)
    assert found["sash"]["detail"] == __version__
    assert torch.__version__ in found["torch"]["detail"]
    assert found["attention"]["detail"] == "reference, torch"
    assert found["model store"]["detail"].startswith(str(tmp_path / "home" / "models"))
    assert "0 models" in found["model store"]["detail"]
    assert {finding["status"] for finding in found.values()} <= {"ok", "note"}


SUBJECTS = ("native kernels", "int8 and int4 weights")


class Built:
    """An extension as a machine with AVX2 would load it."""

    def available_isas(self) -> list[str]:
        return ["avx2", "portable"]

    def isa(self) -> str:
        wanted = os.environ.get("SASH_ISA", "avx2")
        if wanted not in (*self.available_isas(), "none"):
            raise ValueError(f"SASH_ISA={wanted} is beyond this processor")
        return wanted


@pytest.mark.parametrize(
    ("forced", "status", "native", "quantised"),
    [
        (None, "ok", "avx2; also usable here: portable", "computed by the avx2 kernels"),
        ("portable", "ok", "portable, forced by SASH_ISA; also usable here: avx2", "computed by the portable kernels"),
        ("none", "note", "left out by SASH_ISA=none; torch does", "computed by torch"),
        ("amx", "problem", "SASH_ISA=amx is beyond this processor; unset it", "SASH_ISA=amx is beyond"),
    ],
)
def test_doctor_says_which_instruction_set_serves(
    forced: str | None,
    status: str,
    native: str,
    quantised: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(isa, "_imported", lambda: (Built(), ""))
    if forced is None:
        monkeypatch.delenv("SASH_ISA", raising=False)
    else:
        monkeypatch.setenv("SASH_ISA", forced)
    found = findings(capsys, code=int(status == "problem"))
    assert [found[subject]["status"] for subject in SUBJECTS] == [status, status]
    assert found["native kernels"]["detail"].startswith(native)
    assert found["int8 and int4 weights"]["detail"].startswith(quantised)


@pytest.mark.parametrize("reason", ["not built", "built, but does not load: a library is gone"])
def test_doctor_says_why_there_are_no_native_kernels(
    reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(isa, "_imported", lambda: (None, reason))
    monkeypatch.delenv("SASH_ISA", raising=False)
    found = findings(capsys)
    assert [found[subject]["status"] for subject in SUBJECTS] == ["note", "note"]
    assert found["native kernels"]["detail"].startswith(f"{reason}; torch does their work. With a C++17 compiler:")


def test_the_report_for_people(capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["doctor"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "No problems found.\n"
    assert any(line.split()[:2] == ["ok", "torch"] for line in captured.out.splitlines())


def test_a_missing_package_is_a_problem_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    known = doctor.version_of

    def without_jinja(name: str) -> str:
        if name == "jinja2":
            raise PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor, "version_of", without_jinja)
    packages = findings(capsys, code=1)["packages"]
    assert packages["status"] == "problem"
    assert "python -m pip install jinja2" in packages["detail"]


def test_a_torch_that_does_not_import_is_a_problem(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "sash.attention.dispatch", raising=False)
    found = findings(capsys, code=1)
    assert found["torch"]["status"] == "problem"
    assert found["attention"]["status"] == "problem"


def test_a_compiler_is_found_or_not(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert findings(capsys)["C++ compiler"]["status"] == "note"
    monkeypatch.setenv("CXX", sys.executable)
    assert findings(capsys)["C++ compiler"]["detail"] == sys.executable


def test_cpu_facts_of_other_machines():
    arm = "processor : 0\nFeatures : fp asimd evtstrm asimddp i8mm bf16\nCPU part : 0xd4f\n"
    assert cpu_facts(arm)[1] == ("asimd", "asimddp", "bf16", "i8mm")
    assert cpu_facts("")[1] == ()
