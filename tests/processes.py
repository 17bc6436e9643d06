"""Find and watch the processes of a running job, from outside, as an operator would.

Ray titles its workers: `ray::MapWorker(...)` is an actor of a pool, `ray::MapBatches(...)` a task at work. vLLM titles
its engine processes `VLLM::...` where the engine has processes of its own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import wait_until

ACTOR, TASK, ENGINE = "ray::MapWorker", "ray::MapBatches", "VLLM::"


def tree(*roots: int) -> list[psutil.Process]:
    """All descendants of processes; of one that has gone, nothing."""
    found: list[psutil.Process] = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += psutil.Process(root).children(recursive=True)
    return found


def titled(prefix: str, roots: Iterable[int]) -> list[psutil.Process]:
    """Descendants with a title that begins so."""
    return [p for p in tree(*roots) if _title(p).startswith(prefix)]


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill -9 of each that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    """Wait until the condition holds. Fail if the process ends before."""

    def reached() -> Any:
        done = condition()
        assert done or process.poll() is None, f"the job ended too early: {process.stdout and process.stdout.read()}"
        return done

    wait_until(reached, timeout_s, every_s=0.02)


def finished(out: Path, stage: str = "scored") -> set[str]:
    """Shards that are marked as finished in a stage, by the names of their markers."""
    return {p.name for p in (out / "_qtune" / stage).glob("*.json")}


def progress(out: Path, since_s: float = 0) -> dict[str, Any]:
    """Return the job's progress.json. Empty where none was written since then (epoch seconds)."""
    with contextlib.suppress(OSError, ValueError):
        body: dict[str, Any] = json.loads((out / "_qtune" / "progress.json").read_text())
        return body if body["updated_at_s"] >= since_s else {}
    return {}
