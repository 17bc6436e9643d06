"""The plan of a job: where its records are, cut into shards. Made once; a later run checks the files against it."""

from __future__ import annotations

import pickle

from qtune_service.config import JobSpec
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.planner import Chunk, ChunkScan, Plan, is_enough, make_plan, split
from qtune_service.output.layout import Output
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.ray_cluster import LIGHT_CPUS, Cluster, Stage, run_here, stream
from qtune_service.pipeline.stages import read_plan, scan_chunk
from qtune_service.storage import file_io

SMALL_INPUT_BYTES = 32 << 20
"""Input that the driver scans itself, in less time than a worker takes to start."""
SCAN_WAVE = 64
"""Chunks scanned before looking whether `limit` is reached."""


def plan_shards(spec: JobSpec, output: Output, nodes: Cluster, tracker: Tracker) -> Plan:
    """The plan of this output. Raises DataError where an input file changed since it was made."""
    uri = output.at("_qtune", "plan.json")
    files = discover(spec.input.paths)
    if output.stat("_qtune", "plan.json") is not None:
        plan = read_plan(output)
        plan.verify_unchanged(files)
        return plan
    chunks = split(files, spec.input)
    plan = make_plan(files, chunks, _scan(chunks, spec, nodes, tracker), spec.input)
    file_io.write_bytes(uri, plan.to_json().encode())
    return plan


def _scan(chunks: list[Chunk], spec: JobSpec, nodes: Cluster, tracker: Tracker) -> list[ChunkScan]:
    """Scan the input; under `limit` in waves, and no further than needed. A small one here, without workers."""
    tracker.stage("plan", len(chunks), unit="chunks")
    max_tasks = nodes.max_tasks(len(chunks))
    stage = Stage("plan", scan_chunk, (spec,), num_cpus=LIGHT_CPUS, max_tasks=max_tasks)
    is_small = sum({chunk.file.uri: chunk.file.size_bytes for chunk in chunks}.values()) <= SMALL_INPUT_BYTES
    wave = len(chunks) if spec.input.limit is None else SCAN_WAVE
    scans: list[ChunkScan] = []
    while len(scans) < len(chunks) and not is_enough(scans, spec.input):
        todo = chunks[len(scans) : len(scans) + wave]
        items = [(chunk.index, pickle.dumps(chunk)) for chunk in todo]
        arrivals = run_here(items, stage) if is_small else stream(items, stage)
        found = {}
        for arrival in arrivals:
            found[arrival.shard] = pickle.loads(arrival.payload)  # noqa: S301 - written by `scan_chunk` of this job
            tracker.advance(1)
        scans += [found[chunk.index] for chunk in todo]
    return scans
