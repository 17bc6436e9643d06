"""The way of a record, and of a job, through the package stays short."""

from __future__ import annotations

import subprocess
import sys

from tests.jobs import REPO, environment


def test_paths_through_the_package_stay_short() -> None:
    """A record becomes token scores within 14 files of ingest, tokenize and scoring; a job within scripts' limit."""
    command = [sys.executable, str(REPO / "scripts" / "count_files.py")]
    done = subprocess.run(
        command, env=environment({"PYTHONPATH": str(REPO)}), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
