"""Measure downloads from a server on this machine: MB/s and peak memory of both ends, as a Markdown table.

A finished output is made of random bytes: one large file, and as much again in eight. Server and clients are processes
of their own; each client is started anew. The kernel's caches are warm, so this is the cost of the programs, and they
share the machine's cores. A process inherits the peak memory of the one that starts it, so this one stays small: the
output is made by another.

    python -m benchmarks.service.downloads --bytes 2e9
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARTS = 8
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Measured:
    """A client's run."""

    seconds: float
    client_mib: float
    server_mib: float


def make_job(data_root: Path, num_bytes: int) -> str:
    """Write a server's folder with a finished job: one file of this size, and PARTS that are as large together."""
    from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
    from qtune_service.storage import file_io

    root = data_root / "outputs" / "big"
    spec = JobSpec(
        input=InputSpec(paths=("/made/up",)),
        model=ModelSpec(name="none"),
        prune=None,
        output=OutputSpec(path=str(root)),
    )
    sizes = {"scores/part-00000.parquet": num_bytes} | {
        f"pruned/part-{i:05}.parquet": num_bytes // PARTS for i in range(PARTS)
    }
    files = [{"path": at, "rows": 0, "bytes": size, "sha256": _write(root / at, size)} for at, size in sizes.items()]
    scoring = {"shards": {}, "own_columns": {}, "category_column": None}
    manifest = {"spec": spec.model_dump(mode="json"), "files": files, "scoring": scoring, "counts": {}}
    file_io.write_json(str(root / "manifest.json"), manifest)
    return _add_job(data_root, spec)


def _write(path: Path, size: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while left := size - file.tell():
            block = os.urandom(min(BLOCK_BYTES, left))
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def _add_job(data_root: Path, spec: Any) -> str:
    """Add a job to the server's database."""
    from qtune_service.job_states import JobStatus
    from qtune_service.server.jobs.database import open_database, upgrade
    from qtune_service.server.jobs.store import JobStore, NewJob

    engine = open_database(f"sqlite:///{data_root}/qtune.db")
    upgrade(engine)
    store = JobStore(engine)
    job, _ = store.create(NewJob("made up", spec.model_dump(mode="json"), spec.output.path, "ann", "local"))
    store.move(job.id, JobStatus.running, reference={"host": "none"})
    return store.move(job.id, JobStatus.succeeded).id


@contextmanager
def serving(data_root: Path) -> Iterator[tuple[str, int]]:
    """Run `qtune serve`, and yield its URL and process number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "qtune_service.cli", "serve", "--data-root", str(data_root), "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/readyz").close()
                break
            except OSError:
                if server.poll() is not None:
                    raise
                time.sleep(0.1)
        yield url, server.pid
    finally:
        server.terminate()
        server.wait()


def measure(command: list[str], server_pid: int) -> Measured:
    """Run a client to its end."""
    Path(f"/proc/{server_pid}/clear_refs").write_text("5")  # its peak begins anew
    before = time.perf_counter()
    client = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(client.pid, 0)
    seconds = time.perf_counter() - before
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    lines = Path(f"/proc/{server_pid}/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return Measured(seconds, usage.ru_maxrss / 1024, peak_kib / 1024)


def ours(url: str, job: str, folder: Path, pattern: str, parallel: int) -> list[str]:
    """Return the command of this package."""
    flags = ["--files", pattern, "--parallel", str(parallel), "--url", url]
    return [sys.executable, "-m", "qtune_service.cli", "jobs", "download", job, str(folder), *flags]


def curl(url: str, job: str, folder: Path, paths: list[str]) -> list[str]:
    """Return the command of curl, which checks no digest."""
    base = f"{url}/api/v1/jobs/{job}/files"
    return ["curl", "-s", "--fail", "-Z", "--create-dirs", "--output-dir", str(folder)] + [
        word for path in paths for word in ("-o", path, f"{base}/{path}")
    ]


def main() -> None:
    """Make, serve, download, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=float, default=float(2 << 30), help="Of the large file.")
    parser.add_argument("--folder", type=Path, help="Where to work; needs four times the bytes.")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = int(given.bytes) // PARTS * PARTS
    if given.make:
        print(make_job(given.make, size))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        work = Path(name)
        data_root = work / "server"
        data_root.mkdir()
        make = [sys.executable, "-m", "benchmarks.service.downloads", "--bytes", str(size), "--make", str(data_root)]
        job = subprocess.run(make, capture_output=True, text=True, check=True).stdout.strip()
        with serving(data_root) as (url, pid):
            report(work / "got", url, pid, job, size)


def report(got: Path, url: str, pid: int, job: str, size: int) -> None:
    """Print the table."""
    parts = [f"pruned/part-{i:05}.parquet" for i in range(PARTS)]
    routes = [
        ("`qtune jobs download`, one file", ours(url, job, got, "scores/*", 1), True),
        ("the same, 8 files, one at a time", ours(url, job, got, "pruned/*", 1), True),
        ("the same, 8 at a time", ours(url, job, got, "pruned/*", PARTS), True),
        ("the same, all there already", ours(url, job, got, "pruned/*", PARTS), False),
    ]
    if shutil.which("curl"):
        routes += [
            ("curl, one file, no digest", curl(url, job, got, ["scores/part-00000.parquet"]), True),
            ("curl, 8 at a time, no digest", curl(url, job, got, parts), True),
        ]
    print(f"| {size / 1e9:.2f} GB | seconds | MB/s | client peak MiB | server peak MiB |\n|---|---:|---:|---:|---:|")
    for name, command, is_fresh in routes:
        if is_fresh:
            shutil.rmtree(got, ignore_errors=True)
        run = measure(command, pid)
        rate = size / run.seconds / 1e6
        print(f"| {name} | {run.seconds:.1f} | {rate:.0f} | {run.client_mib:.0f} | {run.server_mib:.0f} |", flush=True)


if __name__ == "__main__":
    main()
