"""`scripts/audit.py` says what was looked up, and takes no silence for safety."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.jobs import REPO

SAFE: dict[str, Any] = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED: dict[str, Any] = {"name": "rich", "skip_reason": "Dependency not found"}
BAD: dict[str, Any] = {"name": "ray", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}


def audit(folder: Path, says: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a pip-audit that says something."""
    command = folder / "pip-audit"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\necho unreachable >&2\n")
    command.chmod(0o755)
    script = [sys.executable, str(REPO / "scripts" / "audit.py"), "--pip-audit", str(command)]
    return subprocess.run([*script, *flags], capture_output=True, text=True, check=False)


def answer(*packages: dict[str, Any]) -> str:
    """Return an answer in pip-audit's JSON."""
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_vulnerability_fails_and_is_named(tmp_path: Path) -> None:
    """With the version that mends it."""
    done = audit(tmp_path, answer(SAFE, BAD))
    assert done.returncode == 1
    assert "ray 1.0: PYSEC-1, fixed in 1.1" in done.stdout


def test_what_was_not_looked_up_is_counted(tmp_path: Path) -> None:
    """It passes where that is allowed, and fails where all is required."""
    done = audit(tmp_path, answer(SAFE, SKIPPED))
    assert done.returncode == 0
    assert "2 of 4 packages looked up" in done.stdout
    assert audit(tmp_path, answer(SAFE, SKIPPED), "--required").returncode == 3
    assert audit(tmp_path, answer(SAFE), "--required").returncode == 0


def test_a_broken_lookup_is_no_clean_bill(tmp_path: Path) -> None:
    """Without an answer no package counts as looked up, and the reason is told."""
    done = audit(tmp_path, "")
    assert "0 of " in done.stdout
    assert "unreachable" in done.stdout
    assert audit(tmp_path, "", "--required").returncode == 3
