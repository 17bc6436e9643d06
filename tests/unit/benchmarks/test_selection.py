"""The benchmark of stage 1 runs both ways on one population, and fails if they differ."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.jobs import REPO


def test_both_ways_and_a_large_size_are_measured(tmp_path: Path) -> None:
    """A row for each size, way and kind of data; equal alpha and count; memory of driver and worker; no file stays."""
    sizes = ("--sizes", "3000", "--large", "4000", "--group", "1600", "--workers", "1", "--folder", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.selection.thresholds", *sizes],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[4:]]
    assert [tuple(row[:3]) for row in rows] == [
        ("3,000", "log-normal", "memory"),
        ("3,000", "log-normal", "distributed"),
        ("3,000", "tied", "memory"),
        ("3,000", "tied", "distributed"),
        ("4,000", "log-normal", "distributed"),
    ]
    assert rows[0][-2:] == rows[1][-2:]
    assert rows[2][-2:] == rows[3][-2:]
    assert all(float(row[8]) > 0 and float(row[3]) > 0 for row in rows)
    assert [row[9] != "" for row in rows] == [row[2] == "distributed" for row in rows]
    assert not list(tmp_path.iterdir())


def test_duckdb_gives_the_same_ranks_and_labels(tmp_path: Path) -> None:
    """The comparison exits with an error where ranks, labels or alpha differ; it leaves no file."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.selection.out_of_core",
        "--sizes",
        "3000",
        "--workers",
        "1",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout)
    assert row["duckdb"]["alpha"] == row["distributed"]["outcome"]["alpha"]
    assert row["duckdb"]["disk_bytes"] >= 0 < row["duckdb"]["peak_bytes"]
    assert not list(tmp_path.iterdir())
