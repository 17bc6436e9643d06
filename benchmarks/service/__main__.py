"""Measure the service: GET /jobs with many jobs stored, many event streams, memory, import time.

A server of its own (`qtune serve`) on a free port, with a database filled beforehand; clients are processes with one
kept-alive connection each, so that they do not share a lock. They run on the same cores as the server.

    python -m benchmarks.service --jobs 10000 --streams 200 [--database-url postgresql://...]
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine

from qtune_service.job_states import JobStatus
from qtune_service.output.layout import Output
from qtune_service.server.jobs.database import jobs, open_database, upgrade, writing
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.storage import file_io

PATHS = {
    "newest 50": "/api/v1/jobs",
    "newest 200": "/api/v1/jobs?limit=200",
    "succeeded, name": "/api/v1/jobs?status=succeeded&q=gsm",
    "one": "/api/v1/jobs/{id}",
}
CLIENTS = (1, 8)
SECONDS = 3.0
CHANGES = 20


def tell(output: str, done: int) -> None:
    """Write progress as a driver does, dated an hour ahead, so that the driver counts as alive."""
    body = {"stage": "score", "done": done, "total": CHANGES, "tokens_done": done, "tokens_per_s": 1.0, "eta_s": 1.0}
    file_io.write_json(Output(output).at("_qtune", "progress.json"), {**body, "updated_at_s": time.time() + 3600})


def fill(engine: Engine, num_jobs: int, output: str) -> str:
    """Store jobs in all final states and a running one. Return its id."""
    store = JobStore(engine)
    spec = {"input": {"paths": ["/data/sft/gsm8k.jsonl"]}, "model": {"name": "/models/base"}, "prune": {}}
    job, _ = store.create(NewJob("gsm8k", spec, output, "ann", "local"))
    with engine.connect() as connection:
        row = dict(connection.execute(jobs.select()).mappings().one())
    states = [str(status) for status in JobStatus if status.is_final]
    many = [
        {**row, "id": f"0{i:025d}", "name": f"gsm8k {i}", "status": states[i % len(states)]} for i in range(num_jobs)
    ]
    with writing(engine) as connection:
        connection.execute(jobs.insert(), many)
    store.move(job.id, JobStatus.running)
    store.note(job.id, reference={"host": "elsewhere", "pid": 1, "started_s": 0.0})
    tell(output, 0)
    return job.id


@contextmanager
def served(root: Path, database_url: str) -> Iterator[tuple[int, psutil.Process, float]]:
    """Run a server and yield port, process, and the seconds from its start to its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "QTUNE_DATA_ROOT": str(root), "QTUNE_DATABASE_URL": database_url}
    began = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "qtune_service.cli", "serve", "--port", str(port)],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                    break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.02)
        yield port, psutil.Process(server.pid), time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()


def ask(port: int, path: str, seconds: float, answers: Any) -> None:
    """Send requests over one connection, and put the latencies."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    latencies, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        latencies.append(time.perf_counter() - began)
    answers.put(latencies)


def load(port: int, path: str, clients: int) -> dict[str, float]:
    """Return requests/s and latencies of several clients."""
    answers: Any = multiprocessing.Queue()
    processes = [multiprocessing.Process(target=ask, args=(port, path, SECONDS, answers)) for _ in range(clients)]
    for process in processes:
        process.start()
    latencies = sorted(latency for _ in processes for latency in answers.get())
    for process in processes:
        process.join()
    places = {"p50_ms": 0.5, "p99_ms": 0.99}
    shown = {name: 1e3 * latencies[int(share * (len(latencies) - 1))] for name, share in places.items()}
    return {"per_s": len(latencies) / SECONDS, **shown}


# --- event streams


async def follow(port: int, job_id: str, changes: int, seen: list[tuple[int, float]]) -> None:
    """Follow one stream, and note when each version of the job arrives."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(f"GET /api/v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    found = 0
    while found < changes:
        line = await reader.readline()
        assert line, "the stream ended"
        if line.startswith(b"data: {"):
            body = json.loads(line[6:])
            seen.append((body["progress"]["samples_done"], time.time()))
            found = body["progress"]["samples_done"]
    writer.close()


async def streams(port: int, job_id: str, number: int, output: str) -> dict[str, float]:
    """Change a job while many follow it. Return the delays of the changes and of other requests."""
    seen: list[list[tuple[int, float]]] = [[] for _ in range(number)]
    tasks = [asyncio.create_task(follow(port, job_id, CHANGES, each)) for each in seen]
    await asyncio.sleep(5)
    assert all(seen), "not all streams are open"
    changed: dict[int, float] = {}
    waits = []
    for done in range(1, CHANGES + 1):
        changed[done] = time.time()
        await asyncio.to_thread(tell, output, done)
        began = time.perf_counter()
        with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/api/v1/jobs") as answer:
            answer.read()
        waits.append(time.perf_counter() - began)
        await asyncio.sleep(1.5)
    await asyncio.gather(*tasks)
    delays = sorted(at - changed[done] for each in seen for done, at in each if done in changed)
    missed = number * CHANGES - len(delays)
    return {
        "delay_p50_s": statistics.median(delays),
        "delay_p99_s": delays[int(0.99 * (len(delays) - 1))],
        "missed": missed,
        "get_jobs_max_ms": 1e3 * max(waits),
    }


def import_time() -> float:
    """Return the seconds to import the application, the best of five fresh processes."""
    code = "import time; t = time.perf_counter(); import qtune_service.server.app; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--database-url", default="", help="an empty PostgreSQL database in place of SQLite")
    options = parser.parse_args()
    print(f"import of the application: {import_time():.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        url = options.database_url or f"sqlite:///{folder}/qtune.db"
        engine = open_database(url)
        upgrade(engine)
        output = f"{folder}/output"
        job_id = fill(engine, options.jobs, output)
        with served(Path(folder), url) as (port, process, start_s):
            print(f"first answer after {start_s:.2f} s; {process.memory_info().rss / 2**20:.0f} MiB")
            print(f"\n| GET, {options.jobs} jobs stored | clients | requests/s | p50 ms | p99 ms |")
            print("|---|---:|---:|---:|---:|")
            for name, path in PATHS.items():
                for clients in CLIENTS:
                    tell(output, 0)  # a driver that is silent for long counts as gone
                    f = load(port, path.format(id=job_id), clients)
                    print(f"| {name} | {clients} | {f['per_s']:.0f} | {f['p50_ms']:.1f} | {f['p99_ms']:.1f} |")
            before = process.cpu_times()
            began = time.perf_counter()
            found = asyncio.run(streams(port, job_id, options.streams, output))
            cpu = sum(process.cpu_times()[:2]) - sum(before[:2])
            print(f"\n{options.streams} event streams of one job, {CHANGES} changes: a change arrives after "
                  f"{found['delay_p50_s']:.2f} s (p99 {found['delay_p99_s']:.2f} s), {found['missed']:.0f} not seen; "
                  f"GET /jobs meanwhile at most {found['get_jobs_max_ms']:.0f} ms; "
                  f"{cpu / (time.perf_counter() - began):.0%} of a core")  # fmt: skip
            print(f"memory at the end: {process.memory_info().rss / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
