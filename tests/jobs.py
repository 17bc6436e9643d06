"""Run real jobs in tests: the command in a process of its own, and a look at what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

REPO = Path(__file__).resolve().parent.parent
QTUNE = [sys.executable, "-m", "qtune_service.cli"]
DEMO_DATA = REPO / "examples" / "demo" / "data.jsonl"
DEMO_MODEL = str(REPO / "examples" / "demo" / "model")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a job in a test: its own Ray, whatever the machine has set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {**kept, "COLUMNS": "160", **(extra or {})}


def qtune(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [*QTUNE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(env), timeout=300, check=False)


def start(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, to be killed."""
    return subprocess.Popen(
        [*QTUNE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(env),
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - the tests start no threads that fork could freeze
    )


def _hear_ctrl_c() -> None:
    """Restore SIGINT: a process that a shell started in the background ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def demo_job(out: object, *more: object) -> tuple[object, ...]:
    """Arguments of a job of many small shards, in float32."""
    common = ("prune", DEMO_DATA, "--limit", 600, "--shard-bytes", 4096, "--model", DEMO_MODEL, "--dtype", "float32")
    return (*common, "--output", out, *more)


def manifest(out: Path) -> dict[str, Any]:
    """Return the manifest of a finished output."""
    body: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return body


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a folder of Parquet files."""
    if not folder.is_dir():
        return []
    found: list[dict[str, Any]] = table(folder).to_pylist()
    return found


def table(folder: Path) -> pa.Table:
    """All rows as one table, as pyarrow reads it for anybody."""
    return ds.dataset(folder, format="parquet").to_table()


def check_output(shared_dir: Path, out: Path) -> str:
    """Run the independent checker on an output. Its last line is `0 checks failed` where all is well."""
    command = [sys.executable, str(shared_dir / "tools" / "check_output.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records, one a line."""
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path
