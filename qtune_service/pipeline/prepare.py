"""The plan of a job: where its records are, cut into shards. Made once; a later run checks the files against it.

Load a user's quadrant rule from `module:function`.

Make a spec mean the same on every node: absolute paths, and the text of a template instead of its file.

Starting points of an output: the tokenizer that made its tokens, and scores taken over from an earlier output.
"""

from __future__ import annotations

import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qtune_service.config import JobSpec
from qtune_service.errors import SpecError
from qtune_service.importing import import_named
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.planner import Chunk, ChunkScan, Plan, is_enough, make_plan, split
from qtune_service.output.file_lists import part_files
from qtune_service.output.layout import Output
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.ray_cluster import LIGHT_CPUS, Cluster, Stage, run_here, stream
from qtune_service.pipeline.score_stage import Scored
from qtune_service.pipeline.stages import read_plan, scan_chunk
from qtune_service.selection.plane import QuadrantRule
from qtune_service.storage import file_io
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.named_sources import model_folder, read_chat_template


def load_rule(path: str | None) -> QuadrantRule | None:
    """Import the function. Raises SpecError."""
    rule: QuadrantRule | None = None if path is None else import_named(path, "quadrant rule")
    return rule


def portable(spec: JobSpec) -> JobSpec:
    """The same job for processes with another working folder. Raises QTuneError where a template cannot be read."""
    template = spec.input.chat_template
    text = {"chat_template": read_chat_template(template)} if template is not None else {}
    names = {name: _absolute_if_there(value) for name in ("name", "tokenizer") if (value := getattr(spec.model, name))}
    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update=text),
            "model": spec.model.model_copy(update=names),
            "output": spec.output.model_copy(update={"path": _absolute(spec.output.path)}),
            "from_scores": None if spec.from_scores is None else _absolute(spec.from_scores),
        }
    )


def _absolute(path: str) -> str:
    """A local path from the root; a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_if_there(name: str) -> str:
    folder = model_folder(name)
    return str(folder.absolute()) if folder is not None and folder.exists() else name


def save_tokenizer(encoder: Encoder, output: Output) -> None:
    """Keep the tokenizer with the output, so that reports and exports need nothing else."""
    recorded = (output.read_object("_qtune", "tokenizer.json") or {}).get("files")
    if recorded and set(recorded) <= set(output.tokenizer_files()):
        return
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_tokenizer(Path(folder))
        paths = sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file())
        output.record("tokenizer", paths)
        for path in paths:
            file_io.write_bytes(output.at("tokenizer", path), Path(folder, path).read_bytes())


def adopt_scores(spec: JobSpec, output: Output) -> Scored:
    """Give the score shards of a finished output a place in this one: hard links, or copies across filesystems.

    Raises SpecError where the spec asks for other scores than the earlier output has, and OutputConflictError where
    the earlier output names files that are not inside it.
    """
    assert spec.from_scores is not None
    origin = Output(spec.from_scores)
    manifest = origin.require_manifest()
    earlier = JobSpec.model_validate(manifest["spec"])
    if (earlier.input, earlier.model) != (spec.input, spec.model):
        raise SpecError(
            f"from_scores: {spec.from_scores} was scored from another input or model",
            "Only `prune` and `output` may differ from the earlier job.",
        )
    parts = [file.path for file in part_files(manifest, "scores", "rejected")]
    tokenizer = origin.tokenizer_files()
    output.record("adopted", parts)
    output.record("tokenizer", tokenizer)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: output.adopt(origin, path), [*parts, *(f"tokenizer/{name}" for name in tokenizer)]))
    return Scored.from_manifest(manifest)


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
