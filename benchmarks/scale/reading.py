"""Measure what reading costs at size: bytes of a large row group in each pass, and the planning of many files.

    python -m benchmarks.scale.reading --group-mib 128
    python -m benchmarks.scale.reading --files 100000             # of a local folder
    python -m benchmarks.scale.reading --files 10000 --s3         # of moto's server, which answers some 400 requests/s

A group is planned and read in a process of its own, and its bytes are those that the kernel counts (rchar). Many files
are planned by one process without a cluster, as a worker scans them: in batches, by threads. Time is split into the
listing, which is all that a driver does for each start, and the rest. --against runs another checkout too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROW_BYTES = 8000
GROUP = """
import json, os, sys, time
from pathlib import Path
from qtune_service.config import InputSpec
from qtune_service.ingest import planner
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.reader import read_shard

def read_bytes():
    return int(Path("/proc/self/io").read_text().split()[1])

def peak_kib():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

data, work = sys.argv[1:]
spec = InputSpec(paths=(data,))
peak = peak_kib()
at = [(read_bytes(), time.perf_counter())]
files = discover(spec.paths)
chunks = planner.split(files, spec)
scans = [planner.scan(chunk, spec, work=work) for chunk in chunks]
plan = planner.make_plan(files, chunks, scans, spec)
at.append((read_bytes(), time.perf_counter()))
assert sum(len(read_shard(plan, shard).lines) for shard in plan.shards) == plan.num_records
at.append((read_bytes(), time.perf_counter()))
size = os.path.getsize(data)
print(json.dumps({
    "shards": len(plan.shards),
    "plan_reads": round((at[1][0] - at[0][0]) / size, 2),
    "read_reads": round((at[2][0] - at[1][0]) / size, 2),
    "plan_s": round(at[1][1] - at[0][1], 2),
    "read_s": round(at[2][1] - at[1][1], 2),
    "peak_mib": (peak_kib() - peak) >> 10,
}))
"""
FILES = """
import json, sys, time
from qtune_service.config import InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.output.layout import Output
from qtune_service.pipeline import prepare
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.progress import Tracker

uri, work = sys.argv[1:]
model = ModelSpec(name="unused")
spec = JobSpec(input=InputSpec(paths=(uri,)), model=model, output=OutputSpec(path=work))
output, begun, cpu = Output(work), time.perf_counter(), time.process_time()
given = prepare.find_input(spec, output)
found = {"list_s": time.perf_counter() - begun, "list_cpu_s": time.process_time() - cpu}
begun, cpu = time.perf_counter(), time.process_time()
before = (spec, output) if isinstance(given, tuple) else (spec, given, output)
plan, _ = prepare.plan_shards(*before, LocalExecutor(), Tracker())
found |= {"plan_s": time.perf_counter() - begun, "plan_cpu_s": time.process_time() - cpu}
begun = time.perf_counter()
given = prepare.find_input(spec, output)
before = (spec, output) if isinstance(given, tuple) else (spec, given, output)
prepare.plan_shards(*before, LocalExecutor(), Tracker())
found["resume_s"] = time.perf_counter() - begun
print(json.dumps({"shards": len(plan.shards)} | {name: round(value, 1) for name, value in found.items()}))
"""
SERVER = """
import sys
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
port, count = map(int, sys.argv[1:])
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("bench", "us-east-1")
line = b'{"prompt": "what is it?", "completion": "it is a record"}\\n'
for number in range(count):
    backend.put_object("bench", f"in/{number:06}.jsonl", line * 3)
server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
server.start()
print("ready", flush=True)
sys.stdin.read()
"""


def write_group(path: Path, size_mib: int) -> None:
    """Write one row group of text that does not compress much."""
    numbers, rows = np.random.default_rng(0), (size_mib << 20) // ROW_BYTES
    texts = [numbers.bytes(ROW_BYTES // 2).hex() for _ in range(rows)]
    pq.write_table(pa.table({"prompt": texts, "completion": ["c"] * rows}), path, row_group_size=rows)


def measure(checkout: Path, program: str, *arguments: object, env: dict[str, str]) -> dict[str, Any]:
    """Return what a program prints with the package of a checkout."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **env, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tempfile.gettempdir(),
    )
    if done.returncode:
        raise RuntimeError(f"{checkout}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def many_files(count: int, folder: Path, *, on_s3: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Make so many small files, and yield their folder and the environment to read it."""
    if not on_s3:
        (folder / "in").mkdir()
        for number in range(count):
            line = b'{"prompt": "what is it?", "completion": "it is a record"}\n'
            (folder / "in" / f"{number:06}.jsonl").write_bytes(line * 3)
        yield str(folder / "in"), {}
        return
    port = 20_000 + os.getpid() % 10_000
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise RuntimeError("moto's server did not start")
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        yield "s3://bench/in", {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


def main() -> int:
    """Measure what the flags ask for, and print the figures as JSON, a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group-mib", type=int, metavar="MIB")
    parser.add_argument("--files", type=int, metavar="N")
    parser.add_argument("--s3", action="store_true", help="put the files on moto's server")
    parser.add_argument("--against", type=Path, help="another checkout, measured first")
    arguments = parser.parse_args()
    checkouts = {"now": Path(__file__).parents[2]}
    if arguments.against:
        checkouts = {"before": arguments.against.resolve(), **checkouts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.group_mib:
            write_group(folder / "x.parquet", arguments.group_mib)
            for side, checkout in checkouts.items():
                found = measure(checkout, GROUP, folder / "x.parquet", folder / f"staged-{side}", env={})
                print(json.dumps({"side": side, "group_mib": arguments.group_mib, **found}), flush=True)
        if arguments.files:
            with many_files(arguments.files, folder, on_s3=arguments.s3) as (uri, env):
                for side, checkout in checkouts.items():
                    begun = time.perf_counter()
                    found = measure(checkout, FILES, uri, folder / f"out-{side}", env=env)
                    more = {"files": arguments.files, "all_s": round(time.perf_counter() - begun, 1)}
                    print(json.dumps({"side": side, **more, **found}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
