"""Plan and read whole inputs in one call, through JSON as a cluster would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtune_service.config import InputSpec
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.plan import Chunk, ChunkScan, Plan
from qtune_service.ingest.planner import make_plan, scan, split
from qtune_service.ingest.reader import RecordProblem, ShardRecords, read_shard


def plan_of(work: Path | str, *paths: Path | str, **options: Any) -> Plan:
    """Return the plan of an input. Chunks, scans and the plan go through JSON."""
    spec = InputSpec(paths=tuple(map(str, paths)), **options)
    files = discover(spec.paths, spec.split)
    chunks = split(files, spec)
    scans = [ChunkScan.from_json(scan(Chunk.from_json(c.to_json()), spec, work=str(work)).to_json()) for c in chunks]
    return Plan.from_json(make_plan(files, chunks, scans, spec).to_json())


def read_all(plan: Plan) -> list[ShardRecords]:
    """All shards, the last one first: their order must not matter."""
    return [read_shard(plan, shard) for shard in reversed(plan.shards)][::-1]


def records_of(plan: Plan) -> list[Any]:
    """All records, in order: dicts, and (reason, line) for those with a problem."""
    return [
        (record.reason, line) if isinstance(record, RecordProblem) else record
        for shard in read_all(plan)
        for line, record in zip(shard.lines, shard.records, strict=True)
    ]


def columns_of(plan: Plan) -> list[dict[str, Any]]:
    """Own columns of all records, in order."""
    return [row for shard in read_all(plan) for row in shard.own_columns(range(len(shard.records))).to_pylist()]
