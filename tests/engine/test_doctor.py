"""`qtune doctor` on this machine."""

from __future__ import annotations

import re

import pytest

from qtune_service import doctor
from tests.jobs import qtune


def test_doctor_proves_the_scores_right() -> None:
    """Both engines score a tiny model, in processes of their own, within 1e-4 of float64; the machine is found well."""
    done = qtune("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    differences = [float(x) for x in re.findall(r"max difference to float64 (\S+) nats", text)]
    assert len(differences) == 2, text
    assert max(differences) <= doctor.TOLERANCE_NATS
    assert "Ray" in text


def test_doctor_names_the_package_of_a_library_that_is_missing() -> None:
    """A library of the system that the loader does not find is a finding with the packages to install."""
    missing, there = doctor._system_library("libnuma-of-nobody.so.1"), doctor._system_library("libc.so.6")
    assert "apt-get install libnuma1" in missing.fix
    assert not missing.fatal, "the reference engine does without"
    assert not there.fix


def test_doctor_says_what_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package and a failing engine are findings with a way out, not stacks."""
    monkeypatch.setattr(doctor, "_installed", lambda _name: None)
    monkeypatch.setattr("sys.executable", "/bin/false")
    findings = {f.what: f for f in doctor._findings()}
    assert "pip install" in findings["Ray"].fix
    assert findings["engine reference"].fix
    assert findings["engines"].fatal
    _, healthy = doctor.examine()
    assert not healthy
