"""The benchmark of exports makes an output that exports take, and measures each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.jobs import REPO


def test_each_export_is_a_row_with_time_and_memory(tmp_path: Path) -> None:
    """Kept rows, rows/s, files and peak memory above that of the start; nothing is left behind."""
    small = ("--rows", "400", "--shards", "2", "--only", "analysis", "ms-swift", "hub", "--folder", str(tmp_path))
    command = (sys.executable, "-m", "benchmarks.scale.exports")
    done = subprocess.run([*command, *small], capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("`analysis`", "400", "6"),
        ("`ms-swift`", "400", "2"),
        ("`hub`", "400", "3"),
    ]
    assert all(float(row[3].replace(",", "")) > 0 and int(row[6]) > int(row[7]) > 20 for row in rows)
    assert not list(tmp_path.iterdir())
