"""Measure the pipeline without an engine's work: rows/s by stage, memory, growth, one huge file, mixed lengths.

Everything runs the real command with an engine that costs nothing (engine.py), in a process of its own, one
run after the other. Rows/s of a stage are its records over its seconds in the manifest, so `score` is reading,
encoding, scoring and writing together, and start-up is apart.

    python -m benchmarks.scale --sizes 1e5 1e6 1e7
    python -m benchmarks.scale --one-file-gib 20 --for-seconds 120
    python -m benchmarks.scale --mixed
    python -m benchmarks.scale --tail
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scale.material import make_model, write_mixed, write_one, write_short
from benchmarks.scale.monitor import Watch, run, tail
from benchmarks.scale.table import render
from benchmarks.scale.tail import render_tails

NOTHING, TIMED = "benchmarks.scale.engine:at_once", "benchmarks.scale.engine:by_tokens"
STAGES = ("plan", "score", "thresholds", "prune", "report")
GIB = 1 << 30


def measure_size(num_records: int, work: Path, model: Path) -> dict[str, Any]:
    """Run one job over so many short records."""
    data = work / f"data-{num_records}"
    if not data.is_dir():
        unfinished = data.with_name(f"{data.name}.unfinished")
        write_short(unfinished, num_records)
        unfinished.rename(data)
    out = work / f"out-{num_records}"
    shutil.rmtree(out, ignore_errors=True)
    begun_s = time.perf_counter()
    watch, status = run(_arguments(data, model, out, NOTHING), log := work / f"{num_records}.log")
    if status:
        raise RuntimeError(f"the job of {num_records:,} records failed ({status}):\n{tail(log)}")
    manifest = json.loads((out / "manifest.json").read_text())
    counts = manifest["counts"]
    if counts["read"] != num_records or counts["rejected"]:
        raise RuntimeError(f"{num_records:,} records were made, {counts} were read")
    seconds = manifest["seconds"]
    return {
        "records": num_records,
        "total_s": round(time.perf_counter() - begun_s, 1),
        "seconds": {name: seconds.get(name, 0.0) for name in STAGES},
        "performance": manifest["performance"],
        "shards": len(manifest["scoring"]["shards"]),
        "input_bytes": _size(data),
        "output_bytes": _size(out),
        **_memory(watch),
    }


def measure_one_file(gib: float, for_s: float, work: Path, model: Path) -> dict[str, Any]:
    """Plan one huge file whole, then encode and score of it what `for_s` seconds allow."""
    data, out = work / "one" / "one.jsonl", work / "out-one"
    if not data.exists() or data.stat().st_size < gib * GIB:
        write_one(data, int(gib * GIB))
    shutil.rmtree(out, ignore_errors=True)
    scored: list[float] = []  # when the first shard was seen to be done

    def enough() -> bool:
        if not scored and any((out / "_qtune" / "scored").glob("*.json")):
            scored.append(time.perf_counter())
        return bool(scored) and time.perf_counter() - scored[0] > for_s

    begun_s = time.perf_counter()
    watch, status = run(_arguments(data, model, out, NOTHING), log := work / "one.log", until=enough)
    plan_file = out / "_qtune" / "plan.json"
    if not scored:
        raise RuntimeError(f"the job failed ({status}) before a shard was scored:\n{tail(log)}")
    markers = [json.loads(path.read_text()) for path in (out / "_qtune" / "scored").glob("*.json")]
    plan = json.loads(plan_file.read_text())
    sizes = [shard["stop"] - shard["start"] for shard in plan["shards"]]
    ended_s = max(marker["committed_at_s"] for marker in markers) - min(marker["started_at_s"] for marker in markers)
    return {
        "file_bytes": data.stat().st_size,
        "records": plan["num_records"],
        "shards": len(sizes),
        "largest_shard_bytes": max(sizes),
        "plan_bytes": plan_file.stat().st_size,
        "start_and_plan_s": round(plan_file.stat().st_mtime - (time.time() - (time.perf_counter() - begun_s)), 1),
        "scored_records": sum(marker["read"] for marker in markers),
        "scored_shards": len(markers),
        "rows_per_s": round(sum(marker["read"] for marker in markers) / ended_s),
        **_memory(watch),
    }


def measure_mixed(num_records: int, work: Path, model: Path) -> dict[str, Any]:
    """Run two actors on records of 8 to 8,000 tokens, with an engine whose time grows with the tokens."""
    data, out = work / f"mixed-{num_records}.jsonl", work / "out-mixed"
    if not data.exists():
        write_mixed(data, num_records)
    shutil.rmtree(out, ignore_errors=True)
    arguments = [*_arguments(data, model, out, TIMED), "--num-actors", 2]
    watch, status = run(arguments, log := work / "mixed.log")
    if status:
        raise RuntimeError(f"the job of mixed lengths failed ({status}):\n{tail(log)}")
    manifest = json.loads((out / "manifest.json").read_text())
    shards = len(manifest["scoring"]["shards"])
    return {"records": num_records, "shards": shards, "performance": manifest["performance"], **_memory(watch)}


def _arguments(data: Path, model: Path, out: Path, engine: str) -> list[object]:
    return ["prune", data, "--model", model, "--output", out, "--engine", engine]


def _memory(watch: Watch) -> dict[str, Any]:
    driver, worker = watch.worst("driver"), watch.worst("worker")
    return {
        "driver_rss_bytes": driver.rss_bytes,
        "driver_unique_bytes": driver.unique_bytes,
        "worker_rss_bytes": worker.rss_bytes,
        "worker_unique_bytes": worker.unique_bytes,
        "workers": watch.count("worker"),
        "all_unique_bytes": watch.total_unique_bytes,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=lambda text: int(float(text)), default=[], metavar="N")
    parser.add_argument("--one-file-gib", type=float, metavar="GIB")
    parser.add_argument("--for-seconds", type=float, default=120, help="how long to encode of the one file")
    parser.add_argument("--mixed", type=int, nargs="?", const=4000, metavar="N", help="records of 8 to 8,000 tokens")
    parser.add_argument(
        "--tail", type=int, nargs="?", const=5, metavar="RUNS", help="simulate the end of jobs (tail.py)"
    )
    parser.add_argument("--markers", action="store_true", help="a template with generation markers")
    parser.add_argument("--work", default=os.path.join(tempfile.gettempdir(), "qtune-scale"), help="kept folder")  # noqa: PTH118
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser


def main() -> int:
    """Measure what the flags ask for, and print tables."""
    arguments = _parser().parse_args()
    if arguments.tail:
        print(render_tails(arguments.tail))
        return 0
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    model = make_model(work / ("model-marked" if arguments.markers else "model"), has_markers=arguments.markers)
    found: dict[str, Any] = {"cores": os.cpu_count(), "has_markers": arguments.markers, "sizes": []}
    for size in arguments.sizes:
        found["sizes"].append(measure_size(size, work, model))
        print(f"{size:,} records: {found['sizes'][-1]['total_s']} s", file=sys.stderr)
    if arguments.one_file_gib:
        found["one_file"] = measure_one_file(arguments.one_file_gib, arguments.for_seconds, work, model)
    if arguments.mixed:
        found["mixed"] = measure_mixed(arguments.mixed, work, model)
    print(render(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
