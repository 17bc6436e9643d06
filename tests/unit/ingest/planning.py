"""Plan and read whole inputs in one call, through JSON as a cluster would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qtune_service.config import InputSpec
from qtune_service.ingest.discovery import FEW_FILES, find
from qtune_service.ingest.plan import Chunk, ChunkScan, Plan
from qtune_service.ingest.planner import plan_input, scan
from qtune_service.ingest.reader import RecordProblem, ShardRecords, read_shard


def plan_of(work: Path | str, *paths: Path | str, max_checked: int = FEW_FILES, **options: Any) -> Plan:
    """Return the plan of an input. Chunks, scans and the plan go through JSON."""
    spec = InputSpec(paths=tuple(map(str, paths)), **options)

    def scan_chunks(chunks: Sequence[Chunk]) -> dict[int, ChunkScan]:
        sent = [Chunk.from_json(chunk.to_json()) for chunk in chunks]
        return {chunk.index: ChunkScan.from_json(scan(chunk, spec, work=str(work)).to_json()) for chunk in sent}

    files = find(spec.paths, spec.split, max_checked=max_checked).files
    return Plan.from_json(plan_input(files, spec, scan_chunks).to_json())


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
