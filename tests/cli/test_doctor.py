from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from sash import __version__, cli
from sash.cli import doctor
from sash.cli.doctor import cpu_facts


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


def test_doctor_says_what_is_not_built(capsys: pytest.CaptureFixture[str]):
    found = findings(capsys)
    for subject in ("native kernels", "int8 and int4 weights"):
        assert (found[subject]["status"], found[subject]["detail"]) == ("note", "not part of this version")


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
