"""Compare CPU time of planning, reading, encoding and own columns between two checkouts, in turn.

    git worktree add ../before COMMIT
    python -m benchmarks.scale.encode --against ../before [--records 20000] [--rounds 5]

Both checkouts process the same files in processes of one thread, one after the other in each round. The figure is the
ratio of the medians of CPU seconds, with the ratios of the fastest rounds behind it. Inputs are plain chats as JSONL
and as Parquet, and chats with tools as JSONL.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.scale.material import chats, make_model

STEPS = ("plan", "read", "encode", "own columns")
CHILD = """
import json, sys, time
from qtune_service.config import InputSpec, ModelSpec
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.planner import make_plan, scan, split
from qtune_service.ingest.reader import read_shard
from qtune_service.tokenize.encoder import Encoder
data, model, work = sys.argv[1:]
spec = InputSpec(paths=(data,))
encoder = Encoder(ModelSpec(name=model), spec, max_model_len=100_000)
seconds = dict.fromkeys(("plan", "read", "encode", "own columns"), 0.0)
def timed(name, call):
    begun = time.process_time()
    result = call()
    seconds[name] += time.process_time() - begun
    return result
def planned():
    files = discover(spec.paths)
    chunks = split(files, spec)
    return make_plan(files, chunks, [scan(chunk, spec, work=work) for chunk in chunks], spec)
plan = timed("plan", planned)
for shard in plan.shards:
    records = timed("read", lambda: read_shard(plan, shard))
    batch = timed("encode", lambda: encoder.encode_columns(records.records, shard.format))
    assert not batch.problems, batch.problems
    timed("own columns", lambda: records.own_columns(list(range(len(records.records)))))
print(json.dumps(seconds))
"""


def write_inputs(folder: Path, num_records: int) -> dict[str, Path]:
    """Write the inputs, and return them by name."""
    rows = [json.loads(line) for line in chats(num_records)]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    with_tools = []
    for row in rows[: num_records // 4]:
        asked, answered = row["messages"][:2]
        turns = [asked, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "3"}]
        with_tools.append({**row, "messages": [*turns, answered], "tools": tools})
    paths = {name: folder / name for name in ("plain.jsonl", "plain.parquet", "tools.jsonl")}
    for name, some in (("plain.jsonl", rows), ("tools.jsonl", with_tools)):
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), paths["plain.parquet"])
    return paths


def measure(checkout: Path, data: Path, model: Path, work: Path) -> dict[str, float]:
    """Return the CPU seconds of each step in a new process of a checkout."""
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **threads, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", CHILD, str(data), str(model), str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=work)
    if done.returncode:
        raise RuntimeError(f"{checkout}: {done.stderr[-2000:]}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markers", action="store_true", help="a template with generation markers")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.against.resolve(), "now": Path(__file__).parents[2]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = make_model(work / "model", has_markers=arguments.markers)
        for name, data in write_inputs(work, arguments.records).items():
            found: dict[str, list[dict[str, float]]] = {side: [] for side in checkouts}
            for _ in range(arguments.rounds):
                for side, checkout in checkouts.items():
                    found[side].append(measure(checkout, data, model, work))
            print(f"{name}, {arguments.records:,} records, {arguments.rounds} rounds")
            for step in (*STEPS, "all"):
                of = {
                    side: [sum(row.values()) if step == "all" else row[step] for row in rows]
                    for side, rows in found.items()
                }
                middle = {side: statistics.median(values) for side, values in of.items()}
                ratio = middle["now"] / middle["before"] if middle["before"] else float("nan")
                fastest = min(of["now"]) / min(of["before"]) if min(of["before"]) else float("nan")
                print(f"  {step:12} {middle['before']:7.3f} {middle['now']:7.3f} s  {ratio:.2f} ({fastest:.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
