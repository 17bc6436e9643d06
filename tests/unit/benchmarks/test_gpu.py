"""The GPU benchmark runs to its end: the very code, on a CPU and on toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.jobs import REPO


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in a process of its own: it sets Triton up before it is imported."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.scoring.gpu", *arguments]
    return subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)


def test_all_of_it_runs_on_a_cpu(tmp_path: Path) -> None:
    """Peak, reference engine and heads are measured, blocks and kernel, and the kernel is exact."""
    pytest.importorskip("triton", reason="needs triton")
    figures_path = tmp_path / "figures.json"
    done = run("--device", "cpu", "--tiny", "--work", str(tmp_path), "--json", str(figures_path))
    assert done.returncode == 0, done.stderr
    assert "| toy | reference |" in done.stdout
    figures = json.loads(figures_path.read_text())
    assert figures["peak"]["flops_per_s"] > 0
    (engine,) = figures["engines"]
    assert 0 < engine["peak_share"] < 1
    assert engine["batches"] == "packed"
    blocks, kernel = figures["heads"]
    assert not blocks["error"]
    assert not kernel["error"]
    assert max(kernel["max_error_nll"], kernel["max_error_entropy"]) < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so() -> None:
    """No table of a machine that was not asked for: a message, and exit code 2."""
    done = run()
    assert done.returncode == 2
    assert "No CUDA GPU" in done.stderr
    assert not done.stdout
