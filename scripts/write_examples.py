"""Update the examples of a page: run the command of each `console` block and write its output below the command.

python scripts/write_examples.py docs/guides/inspect.md --folder FOLDER    # the folder with the output `out`
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"```console\n\$ (?P<command>.*)\n(?:.*\n)*?```\n")
COLUMNS = 100


def run(command: str, folder: Path) -> str:
    """Return the output of a command, standard error included."""
    here = f"{sys.executable} -m qtune_service.cli"
    env = {**os.environ, "COLUMNS": str(COLUMNS), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    script = re.sub(r"^qtune\b", here, command)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=False)
    return "".join(f"{line.rstrip()}\n" for line in (done.stdout + done.stderr).rstrip().splitlines())


def rewrite(page: str, folder: Path) -> str:
    """Return the page with current outputs."""

    def updated(block: re.Match[str]) -> str:
        return f"```console\n$ {block['command']}\n{run(block['command'], folder)}```\n"

    return BLOCK.sub(updated, page)


def main() -> None:
    """Parse the command line and rewrite the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the commands run")
    arguments = parser.parse_args()
    for page in arguments.pages:
        page.write_text(rewrite(page.read_text(encoding="utf-8"), arguments.folder), encoding="utf-8")


if __name__ == "__main__":
    main()
