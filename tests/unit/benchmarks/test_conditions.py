"""The benchmark of children that answer questions measures both ways of answering."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.jobs import REPO


def test_it_fills_its_table(tmp_path: Path) -> None:
    """A line for each question, and what a child takes."""
    command = [sys.executable, "-m", "benchmarks.service.conditions", "--samples", "2000", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False, cwd=REPO, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 7
    assert all(float(line.split("|")[-4]) > 0 for line in lines[1:])
    assert "MiB resident" in done.stdout
