#!/usr/bin/env python3
"""Compare the pinned versions with the known vulnerabilities, and say how many could be looked up.

    python3 scripts/audit.py [--required] [--report FILE]      # or: make audit

pip-audit asks a database on the network, and calls packages that it did not find there no problem: without a network,
or with a mirror, it may report nothing having looked at nothing. So what was looked up
is counted here. 0: nothing known, or nothing looked up, which is said: a machine without a network may go on;
1: vulnerabilities, which are listed; 3: with --required, not everything could be looked up; or there is no pip-audit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILES = ("constraints.txt", "constraints-gpu.txt")


def main() -> int:
    """Audit both files of pins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--required", action="store_true", help="fail where not everything could be looked up")
    parser.add_argument("--report", type=Path, help="also write what was found, as JSON")
    parser.add_argument("--pip-audit", default="pip-audit", help="the command")
    options = parser.parse_args()
    if shutil.which(options.pip_audit) is None:
        print("[audit] there is no pip-audit: pip install -r scripts/tools.txt")
        return 3
    found = [package for name in FILES for package in look_up(options.pip_audit, ROOT / name)]
    if options.report:
        options.report.write_text(json.dumps(found, indent=1))
    return judge(found, is_required=options.required)


def look_up(command: str, pins: Path) -> list[dict[str, Any]]:
    """Return pip-audit's result for each pinned package; all as skipped where it had no answer."""
    arguments = ["--requirement", str(pins), "--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off"]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = done.stderr.strip().rpartition("\n")[2]
        lines = [line for line in pins.read_text(encoding="utf-8").splitlines() if "==" in line]
        return [{"name": line.partition("==")[0], "skip_reason": last} for line in lines]
    return dependencies


def judge(found: list[dict[str, Any]], *, is_required: bool) -> int:
    """Say it, as an exit code too."""
    bad = [package for package in found if package.get("vulns")]
    skipped = [package for package in found if "skip_reason" in package]
    for package in bad:
        for one in package["vulns"]:
            fixed = ", ".join(one.get("fix_versions", ())) or "no version yet"
            print(f"[audit] {package['name']} {package['version']}: {one['id']}, fixed in {fixed}")
    print(
        f"[audit] {len(found) - len(skipped)} of {len(found)} packages looked up, {len(bad)} with known vulnerabilities"
    )
    if skipped:
        print(f"[audit] not looked up: {len(skipped)}, for example: {skipped[0]['skip_reason']}")
    if bad:
        return 1
    return 3 if is_required and skipped else 0


if __name__ == "__main__":
    sys.exit(main())
