"""Prepare a job: make its spec portable, plan its shards, and fill a new output.

A spec is made to mean the same on every node: absolute paths, and the text of a template instead of its file. The plan
says where the records are, cut into shards. It is made once, and a later run checks the files against it. An output
starts with the tokenizer that made its tokens, or with scores taken over from an earlier output.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from qtune_service.config import InputSpec, JobSpec
from qtune_service.errors import DataError, SpecError, StorageError
from qtune_service.importing import import_named
from qtune_service.ingest.compression import NAMES
from qtune_service.ingest.discovery import FEW_FILES, Found, discover, find
from qtune_service.ingest.hub_dataset import pin
from qtune_service.ingest.planner import Chunk, Plan, plan_input
from qtune_service.output.layout import Output, part_files
from qtune_service.pipeline.executor import Executor
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.scan_stage import SMALL_INPUT_BYTES, Scans
from qtune_service.pipeline.score_stage import Scored
from qtune_service.pipeline.stages import read_plan
from qtune_service.selection.plane import QuadrantRule
from qtune_service.storage import file_io
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.named_sources import model_folder, read_chat_template

LONG_STREAM_BYTES = 256 << 20
"""Size of a compressed file above which a notice says that it cannot be split."""
STREAM_BYTES_PER_S = 16e6
"""Compressed text that one core reads, stores and counts in a second (benchmarks/scale/RESULTS.md)."""
BYTES_PER_TOKEN = 4


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


@dataclass(frozen=True, slots=True)
class JobInput:
    """The input of a job at its start: listed once, and compared with the plan if there is one."""

    earlier: Plan | None
    found: Found
    spec: InputSpec
    """At commits of the hub."""
    revisions: Mapping[str, str]
    unread: tuple[str, ...] = ()
    """A sentence if files that are new since the plan cannot be read."""

    @property
    def is_planned_by_workers(self) -> bool:
        """Return whether planning takes long enough that nodes can start meanwhile."""
        return self.earlier is None and sum(file.size_bytes for file in self.found.files) > SMALL_INPUT_BYTES


def find_input(spec: JobSpec, output: Output) -> JobInput:
    """List the input. An output with a plan reads the commits of its plan, and its files even if new ones fail.

    Raise QTuneError where files are missing or cannot be read. Listed files are opened only where they are few and not
    planned yet.
    """
    earlier = None if output.stat("_qtune", "plan.json") is None else read_plan(output)
    read, revisions = spec.input, dict[str, str]()
    if read.reads_hub:
        read, revisions = pin(read, earlier.revisions if earlier else None)
    try:
        found = find(read.paths, read.split, max_checked=FEW_FILES if earlier is None else 0)
    except (DataError, StorageError) as error:
        if earlier is None:
            raise
        planned = discover(file.uri for file in earlier.files)  # raises if the file is one of them
        text = f"The files of this job's plan are read. Others could not be listed: {error.message}."
        return JobInput(earlier, Found(planned, ()), read, revisions, (text,))
    return JobInput(earlier, found, read, revisions)


def plan_shards(
    spec: JobSpec, given: JobInput, output: Output, executor: Executor, tracker: Tracker
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan of this output, and sentences about files that it leaves out.

    A plan is made once. Later runs read its files, and leave out files that are new. Raise DataError where an input
    file changed since the plan was made.
    """
    if given.earlier is not None:
        new = given.earlier.verify_unchanged(given.found.files)
        for text in given.unread:
            tracker.say(text)
        return given.earlier, (*given.earlier.notices, *_left_out(new, tracker), *given.unread)

    streams: dict[str, None] = {}

    def begin(chunks: Sequence[Chunk], done: int) -> None:
        for text in _long_streams(chunks):
            if text not in streams:
                tracker.say(text)
            streams[text] = None
        tracker.stage("plan", len(chunks), unit="chunks", resumed=done)

    scans = Scans(spec, output, executor, tracker)
    plan = plan_input(given.found.files, spec.input, scans.run, begin)
    plan = replace(plan, notices=(*given.found.notices, *streams), revisions=dict(given.revisions))
    file_io.write_bytes(output.at("_qtune", "plan.json"), plan.to_json().encode())
    return plan, plan.notices


def _long_streams(chunks: Sequence[Chunk]) -> Iterator[str]:
    """Yield a sentence for each large compressed file that one core reads as one stream."""
    for file in (chunk.file for chunk in chunks if chunk.file.compression is not None and not chunk.is_part):
        if file.size_bytes > LONG_STREAM_BYTES:
            minutes = max(1, round(file.size_bytes / STREAM_BYTES_PER_S / 60))
            advice = " JSON lines in bgzip, or in zstd with frames, are read by all cores."
            what = f"one {NAMES[file.compression or 'gz']} stream of {file.size_bytes / 1e9:.1f} GB"
            yield (
                f"{file.name} is {what}, which cannot be split: planning reads it on one core, in about {minutes} min."
                f"{advice if file.kind == 'jsonl' else ''}"
            )


def mean_tokens(plan: Plan) -> float:
    """Return a rough mean length of the plan's samples in tokens, by the sizes of its files."""
    return sum(file.size_bytes for file in plan.files) / max(1, plan.num_records) / BYTES_PER_TOKEN


def _left_out(new: Sequence[str], tracker: Tracker) -> tuple[str, ...]:
    """Report files that are new since the plan was made, and return the sentence."""
    if not new:
        return ()
    shown = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
    number = "1 file is" if len(new) == 1 else f"{len(new):,} files are"
    text = f"{number} new since this job was planned, and not read: {shown}. Prune them in a job of their own."
    tracker.say(text)
    return (text,)
