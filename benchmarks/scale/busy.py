"""Measure how busy scoring keeps a device, on short samples, in two checkouts in turn.

    git worktree add ../before COMMIT
    python -m benchmarks.scale.busy --against ../before [--engines plain vllm] [--seconds 4] [--shards 6]

A real Ray actor scores encoded shards on a simulated device (device.py). The figure is the time that the device was
occupied, over the time from its first to its last step. Encoding and writing are left out: they have other workers. A
shard occupies the device for `--seconds`, which is less than a shard of full size takes below 700,000 tokens/s, so the
share between shards is not flattered.
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
from typing import Any

import numpy as np

REPO = Path(__file__).resolve().parents[2]
LENGTHS, RATES = (50, 200, 2000), (20_000, 100_000, 500_000)
REQUIRED = {20_000: 0.97, 100_000: 0.9, 500_000: 0.8}
LONGEST_TOKENS = 4096


def score_shards(engine: str, length: int, rate: int, shards: int, seconds: float, work: Path) -> None:
    """Score made shards in a Ray actor, in this process's checkout."""
    import pyarrow as pa

    from benchmarks.scale.material import make_model
    from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
    from qtune_service.ingest.discovery import discover
    from qtune_service.ingest.planner import make_plan, scan, split
    from qtune_service.output.columns import list_column
    from qtune_service.output.layout import Output
    from qtune_service.pipeline.executor import Pool
    from qtune_service.pipeline.ray_executor import RayExecutor
    from qtune_service.pipeline.score_stage import ScoringRun
    from qtune_service.pipeline.shard_tables import ENCODED_FIELDS, REJECTED_SCHEMA
    from qtune_service.pipeline.shutdown import Stop
    from qtune_service.pipeline.stages import EncodedShard, JobContext
    from qtune_service.scoring.model_config import describe_model
    from qtune_service.storage import file_io

    data = work / "data.jsonl"
    data.write_text(json.dumps({"input_ids": [1, 2], "labels": [-100, 2]}) + "\n")
    model = make_model(work / "model", has_markers=False)
    spec = JobSpec(
        input=InputSpec(paths=(str(data),)),
        model=ModelSpec(name=str(model), max_model_len=LONGEST_TOKENS, dtype="float32"),
        engine=EngineSpec(name=f"benchmarks.scale.device:{engine}"),
        output=OutputSpec(path=str(work / "out")),
    )
    files = discover(spec.input.paths)
    chunks = split(files, spec.input)
    scans = [scan(chunk, spec.input, work=str(work)) for chunk in chunks]
    plan = make_plan(files, chunks, scans, spec.input)
    file_io.write_bytes(Output(spec.output.path).at("_qtune", "plan.json"), plan.to_json().encode())

    def shard(index: int) -> EncodedShard:
        count = max(1, round(rate * seconds / length))
        rng = np.random.default_rng(index)
        ids = rng.integers(0, 8000, count * length).astype(np.int32)
        mask = np.tile((np.arange(length) >= length // 2).astype(np.int8), count)
        offsets = np.arange(count + 1) * length
        columns: list[Any] = [
            pa.array([f"{index}-{i}" for i in range(count)]),
            pa.repeat("made", count),
            pa.array(np.arange(count)),
            pa.array(np.zeros(count, np.bool_)),
            list_column(ids, offsets, pa.int32()),
            list_column(mask, offsets, pa.int8()),
            pa.array(np.ones(count, np.int32)),
        ]
        return EncodedShard(pa.table(columns, schema=pa.schema(ENCODED_FIELDS)), REJECTED_SCHEMA.empty_table(), 0.0)

    executor, stop = RayExecutor(), Stop()
    executor.start(stop)
    retries = executor.retry_policy(3)
    context = JobContext(spec, describe_model(spec.model), retries=retries, process_name=executor.process_name)
    run = ScoringRun(context, executor, Pool(1, 1, 1.0, 0.0, 1), tracker=None, stop=stop)  # type: ignore[arg-type]
    (stage,) = (stage for stage in run._stages() if stage.name == "score")  # noqa: SLF001 - as the checkout runs it
    tokens = 0
    for result in executor.run([(i, shard(i)) for i in range(shards)], stage, retries=retries):
        assert result.problem is None, result.problem
        tokens += len(result.value.rows["input_ids"].combine_chunks().values)
    assert tokens == shards * max(1, round(rate * seconds / length)) * length
    executor.close()


def measure(checkout: Path, arguments: argparse.Namespace, engine: str, length: int, rate: int) -> float:
    """Return the busy share in a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        work, log = Path(folder), Path(folder) / "device.log"
        for name, home in (("qtune_service", checkout), ("benchmarks", REPO)):
            (work / name).symlink_to(home / name)
        device = {"QTUNE_DEVICE_TOKENS_PER_S": str(rate), "QTUNE_DEVICE_LOG": str(log)}
        child = ["--child", engine, str(length), str(rate), str(arguments.shards), str(arguments.seconds), str(work)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale.busy", *child],
            env={**os.environ, **device, "PYTHONPATH": str(work)},
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{checkout}: {done.stderr[-3000:]}")
        calls = [json.loads(line) for line in log.read_text().splitlines()]
    span_s = max(call["ended_s"] for call in calls) - min(call["begun_s"] for call in calls)
    return float(sum(call["busy_s"] for call in calls) / span_s)


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the other checkout")
    parser.add_argument("--engines", nargs="+", choices=("plain", "vllm"), default=["plain", "vllm"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--rates", nargs="+", type=int, default=RATES)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0, help="device time of a shard")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        engine, length, rate, shards, seconds, work = arguments.child
        score_shards(engine, int(length), int(rate), int(shards), float(seconds), Path(work))
        return 0
    sides = {"before": arguments.against.resolve()} if arguments.against else {}
    sides["now"] = REPO
    print("| engine | tokens/s | tokens a sample | " + " | ".join(sides) + " | required |")
    print("| --- | ---: | ---: |" + " ---: |" * len(sides) + " ---: |")
    for engine in arguments.engines:
        for rate in arguments.rates:
            for length in arguments.lengths:
                found: dict[str, list[float]] = {side: [] for side in sides}
                for _ in range(arguments.rounds):
                    for side, checkout in sides.items():
                        found[side].append(measure(checkout, arguments, engine, length, rate))
                shares = " | ".join(f"{statistics.median(values):.3f}" for values in found.values())
                print(f"| {engine} | {rate:,} | {length:,} | {shares} | {REQUIRED.get(rate, '')} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
