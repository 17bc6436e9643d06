"""Prepare a job: make its spec portable, plan its shards, and fill a new output.

A spec is made to mean the same on every node: absolute paths, and the text of a template instead of its file. The plan
says where the records are, cut into shards. It is made once, and a later run checks the files against it. An output
starts with the tokenizer that made its tokens, or with scores taken over from an earlier output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from qtune_service.config import InputSpec, JobSpec
from qtune_service.errors import DataError, SpecError, StorageError
from qtune_service.importing import import_named
from qtune_service.ingest.discovery import SourceFile, discover, notices
from qtune_service.ingest.hub_dataset import pin
from qtune_service.ingest.planner import Chunk, ChunkScan, Plan, is_enough, make_plan, split
from qtune_service.output.layout import Output, part_files
from qtune_service.pipeline.executor import Executor, LocalExecutor, Stage
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.score_stage import Scored
from qtune_service.pipeline.stages import read_plan, scan_chunk
from qtune_service.pipeline.stall_watch import reading_text, steps_look, watching
from qtune_service.selection.plane import QuadrantRule
from qtune_service.storage import file_io
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.named_sources import model_folder, read_chat_template

SMALL_INPUT_BYTES = 32 << 20
"""The driver scans an input up to this size itself, in less time than a worker takes to start."""
SCAN_WAVE = 64
"""Chunks that are scanned before checking whether `limit` is reached."""


def load_rule(path: str | None) -> QuadrantRule | None:
    """Return the quadrant rule at `module:function`. Raise SpecError where it cannot be imported."""
    rule: QuadrantRule | None = None if path is None else import_named(path, "quadrant rule")
    return rule


def portable(spec: JobSpec) -> JobSpec:
    """Return the spec for processes with another working folder. Raise QTuneError where a template cannot be read."""
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
    """Return a local path from the root, or a URI as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _absolute_if_there(name: str) -> str:
    folder = model_folder(name)
    return str(folder.absolute()) if folder is not None and folder.exists() else name


def save_tokenizer(encoder: Encoder, output: Output) -> None:
    """Store the tokenizer in the output, so that reports and exports need nothing else."""
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
    """Take over the score shards of a finished output: as hard links, or as copies across filesystems.

    Raise SpecError where the earlier output has the scores of another input or model, and OutputConflictError where it
    names files that are not inside it.
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


def plan_shards(spec: JobSpec, output: Output, executor: Executor, tracker: Tracker) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan of this output, and sentences about files that it leaves out.

    A plan is made once. Later runs read its files, and leave out files that are new. Raise DataError where an input
    file changed since the plan was made.
    """
    earlier, files, read, revisions, unread = find_input(spec, output)
    if earlier is not None:
        new = earlier.verify_unchanged(files)
        for text in unread:
            tracker.say(text)
        return earlier, (*earlier.notices, *_left_out(new, tracker), *unread)
    chunks = split(files, spec.input)
    plan = make_plan(files, chunks, _scan(chunks, spec, executor, tracker), spec.input)
    plan = replace(plan, notices=tuple(notices(read.paths, read.split)), revisions=revisions)
    file_io.write_bytes(output.at("_qtune", "plan.json"), plan.to_json().encode())
    return plan, plan.notices


def _left_out(new: Sequence[str], tracker: Tracker) -> tuple[str, ...]:
    """Report files that are new since the plan was made, and return the sentence."""
    if not new:
        return ()
    shown = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
    number = "1 file is" if len(new) == 1 else f"{len(new):,} files are"
    text = f"{number} new since this job was planned, and not read: {shown}. Prune them in a job of their own."
    tracker.say(text)
    return (text,)


def find_input(
    spec: JobSpec, output: Output
) -> tuple[Plan | None, tuple[SourceFile, ...], InputSpec, dict[str, str], tuple[str, ...]]:
    """Return the plan of an output that has one, the input files, the input at commits of the hub, and these commits.

    An output with a plan reads the commits of its plan, and its files even where new ones cannot be read: the last
    item has a sentence about those. Raise QTuneError where files are missing or cannot be read.
    """
    earlier = None if output.stat("_qtune", "plan.json") is None else read_plan(output)
    read, revisions = spec.input, dict[str, str]()
    if read.reads_hub:
        read, revisions = pin(read, earlier.revisions if earlier else None)
    try:
        return earlier, discover(read.paths, read.split), read, revisions, ()
    except (DataError, StorageError) as error:
        if earlier is None:
            raise
        files = discover(file.uri for file in earlier.files)  # raises if the file is one of them
        text = f"The files of this job's plan are read. Others could not be listed: {error.message}."
        return earlier, files, read, revisions, (text,)


def _scan(chunks: list[Chunk], spec: JobSpec, executor: Executor, tracker: Tracker) -> list[ChunkScan]:
    """Scan the input, a small one in this process. With a `limit` scan in waves, and no further than needed."""
    tracker.stage("plan", len(chunks), unit="chunks")
    stage = Stage("plan", scan_chunk, (spec,), on_cpu_nodes=True)
    if sum({chunk.file.uri: chunk.file.size_bytes for chunk in chunks}.values()) <= SMALL_INPUT_BYTES:
        executor = LocalExecutor()
    wave = len(chunks) if spec.input.limit is None else SCAN_WAVE
    scans: list[ChunkScan] = []
    open_chunks: dict[int, Chunk] = {}
    with watching(
        tracker, steps_look(executor, stage.num_cpus, lambda: ("reading", reading_text(open_chunks.values())))
    ):
        while len(scans) < len(chunks) and not is_enough(scans, spec.input):
            todo = chunks[len(scans) : len(scans) + wave]
            open_chunks |= {chunk.index: chunk for chunk in todo}
            found = {}
            for result in executor.run([(chunk.index, chunk) for chunk in todo], stage):
                found[result.shard] = result.value
                del open_chunks[result.shard]
                tracker.advance(1)
            scans += [found[chunk.index] for chunk in todo]
    return scans
