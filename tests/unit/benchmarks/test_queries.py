"""The benchmark of `qtune inspect` asks a real output: what it makes can be questioned, and is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qtune_service.output.query import Selection, find, samples_of
from qtune_service.output.reader import FinishedOutput
from tests.jobs import REPO, qtune


def test_its_output_can_be_asked(tmp_path: Path) -> None:
    """Quadrants hold the share that was asked for, in more than one shard, and the command shows samples of it."""
    root = str(tmp_path / "out")
    command = (sys.executable, "-m", "benchmarks.service.queries", "--samples", "15000", "--make", root)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr
    finished = FinishedOutput(root)
    assert len(finished.shards) == 2
    assert find(samples_of(finished), Selection(kept=True, limit=1)).num_matching == 6000
    shown = qtune("inspect", root, "--where", "text LIKE '%pens%'", "--sort", "typical", "--limit", 1)
    assert shown.returncode == 0, shown.stderr
    assert "{+" in shown.stdout or "[-" in shown.stdout
