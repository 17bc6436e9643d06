"""Runs functions in several processes that talk by gloo, and gives what each of them returned."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


def run_on_ranks(calls: list[tuple[str, Any]], num_ranks: int, folder: Path) -> list[list[Any]]:
    """Make calls, (function of rank_work.py, arguments), one after the other on every rank; a hang is a failure.

    Returns what each rank got of each call.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "calls.pkl").write_bytes(pickle.dumps(calls))
    command = [sys.executable, "-m", "tests.training.rank_work", str(num_ranks), str(port), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(num_ranks)]
    try:
        codes = [rank.wait(TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * num_ranks
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(num_ranks)]
