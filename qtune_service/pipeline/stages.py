"""The stages of a job, each a function of one shard: encode, commit, prune. score is in score_shard.py.

Values between stages are frozen dataclasses, and markers are the JSON files that make a finished shard count. Heavy
objects are made once a process: plan and tokenizer are cached, the model is held by the scoring actor. An executor
(executor.py) decides where a stage runs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Self

import numpy as np
import pyarrow as pa

from qtune_service.config import EngineSpec, JobSpec, ModelSpec
from qtune_service.errors import ModelError, OutputConflictError, StorageError
from qtune_service.ingest.plan import Plan
from qtune_service.ingest.reader import RecordProblem, read_shard, sample_id
from qtune_service.ingest.rows import text_of
from qtune_service.output.columns import Ragged, final_masks, protected_of, ragged, row_sums
from qtune_service.output.layout import Output
from qtune_service.pipeline.executor import local_process_name
from qtune_service.pipeline.retries import RetryPolicy
from qtune_service.pipeline.shard_selection import ShardSelection
from qtune_service.pipeline.shard_tables import (
    ENCODED_FIELDS,
    REJECTED_SCHEMA,
    count_reasons_by,
    count_values,
    encoded_rows,
    example_rows,
    own_names,
    pruned_rows,
    quadrant_rows,
    rejected_records,
    tally,
    with_scores,
)
from qtune_service.scoring.model_config import SAME_FILES, ModelInfo, check_model, describe_model, planned_model
from qtune_service.scoring.scorer import FlatScores
from qtune_service.storage.model_cache import is_remote
from qtune_service.tokenize.encoded_batch import NO_ENDINGS, Endings
from qtune_service.tokenize.encoder import Encoder

MAX_PLAN_BYTES = 8 << 30
"""Limit of a plan's size, which is about 500 bytes a shard."""
STREAMED = "runai_streamer"
"""Beginning of the names of vLLM's loaders that read weights from an object store themselves."""

Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class JobContext:
    """The settings of a job for its scoring stages. It is small: the plan is read from the output, once a process."""

    spec: JobSpec
    model: ModelInfo
    threads: int = 1
    """CPU threads of an actor's engine."""
    retries: RetryPolicy | None = None
    """Receives progress, and reports when the job stops."""
    partials: frozenset[int] = frozenset()
    """Shards with scores of a run that was stopped."""
    plan_digest: str | None = None
    """Digest of the plan that the driver checked. None accepts any plan."""
    process_name: Callable[[], str] = local_process_name
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM for this run, where `engine.vllm` has no others."""
    tokenizer: str = ""
    """Fingerprint of the driver's encoder. Empty accepts any."""

    @property
    def node(self) -> str:
        """Return the name of this process's node."""
        return self.process_name().rpartition(":")[0]

    def engine(self) -> tuple[ModelSpec, EngineSpec]:
        """Return the model that was planned, with its files on this node, and the settings of its engine.

        Raise ModelError if this node has another model, and StorageError.
        """
        spec, given = self.spec.model, self.spec.engine
        check_model(spec, self.model, self.node)
        arguments = {**self.engine_arguments, **given.vllm}
        is_streamed = is_remote(spec.name) and str(arguments.get("load_format", "")).startswith(STREAMED)
        if is_streamed:
            arguments["model_weights"] = spec.name
        model = planned_model(spec, self.model, weights=not is_streamed)
        limit = {"max_model_len": self.model.max_model_len}
        return model.model_copy(update=limit), given.model_copy(update={"vllm": arguments})

    @property
    def output(self) -> Output:
        """Return the job's output."""
        return Output(self.spec.output.path)


# --- values between the stages


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """encode -> score: usable rows (ENCODED_FIELDS and own columns) and rejected ones (REJECTED_SCHEMA)."""

    rows: pa.Table
    rejected: pa.Table
    encode_s: float
    """Time of reading and encoding."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What usable records say and their samples do not contain (Conversation.notes): clause -> records."""
    endings: Endings = NO_ENDINGS


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """score -> commit: rows of scores/ and of rejected/."""

    rows: pa.Table
    rejected: pa.Table
    engine: Mapping[str, Any] = field(default_factory=dict)
    """EngineInfo. Empty where nothing was scored."""
    actor: str = ""
    """The process that scored it, as NODE:PROCESS."""
    started_at_s: float = 0.0
    """When the engine began, in seconds since 1970."""
    engine_s: float = 0.0
    encode_s: float = 0.0
    notes: Mapping[str, int] = field(default_factory=dict)
    endings: Endings = NO_ENDINGS


class Marker:
    """A dataclass that is stored as a JSON object when a shard is finished in a stage."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the marker as it is stored."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]  # subclasses are dataclasses

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return a stored marker."""
        names = [one.name for one in fields(cls) if one.name in body or one.default_factory is MISSING]  # type: ignore[arg-type]
        return cls(**{name: body[name] for name in names})


@dataclass(frozen=True, slots=True)
class ScoredMarker(Marker):
    """commit -> thresholds: the counts and files of a scored shard."""

    read: int
    scored: int
    rejected: int
    reasons: Counts
    rejected_by_source: dict[str, Counts]
    """Source -> reason -> records."""
    rejected_by_category: dict[str, Counts]
    truncated: int
    tokens: int
    """All tokens that went through the model."""
    trained_tokens: int
    engine: dict[str, Any]
    started_at_s: float
    engine_s: float
    actor: str
    encode_s: float
    committed_at_s: float
    files: list[dict[str, Any]]
    notes: Counts = field(default_factory=dict)
    endings: dict[str, Any] = field(default_factory=dict)
    """Endings.to_dict: the tokens that end trained spans."""


@dataclass(frozen=True, slots=True)
class PrunedMarker(Marker):
    """prune -> report: the counts, files and shown samples of a pruned shard."""

    kept: int
    tokens_before: int
    """Trained tokens of kept samples before token pruning."""
    tokens_after: int
    by_source: dict[str, list[int]]
    """Source -> samples in Q1, Q2, Q3, Q4, kept samples, trained tokens before and after."""
    by_category: dict[str, list[int]]
    points: list[str]
    """Ids of the samples that the report draws as points."""
    examples: list[dict[str, Any]]
    files: list[dict[str, Any]]
    lost_end_of_turn: int = 0
    """Kept samples of which an end-of-turn token left the loss."""


# --- the stages


def encode_shard(index: int, _value: None, context: JobContext) -> EncodedShard:
    """Read a shard, render and tokenize its records, and reject unusable ones with a reason."""
    started = time.perf_counter()
    plan = plan_of(context)
    shard = plan.shards[index]
    records = read_shard(plan, shard)
    good = {i: record for i, record in enumerate(records.records) if not isinstance(record, RecordProblem)}
    encoder = _encoder(context)
    batch = encoder.encode_columns(list(good.values()), shard.format).renumbered(list(good))
    problems = {i: (r.reason, r.detail) for i, r in enumerate(records.records) if isinstance(r, RecordProblem)}
    problems |= {i: (problem.reason_code, problem.detail) for i, problem in batch.problems.items()}
    rows = encoded_rows(records, batch, own_names(plan), encoder.end_of_turn_ids)
    rejected = rejected_records(records, dict(sorted(problems.items())), context.spec.input.category_field)
    return EncodedShard(
        rows, rejected, encode_s=time.perf_counter() - started, notes=batch.notes, endings=batch.endings
    )


def commit_shard(index: int, scored: ScoredShard | None, context: JobContext) -> ScoredMarker:
    """Write a scored shard: rejected rows, scores, and last the marker that makes it count.

    A shard that is finished already stays as it is. Of two attempts at a time, the first marker counts.
    """
    if (finished := context.output.marker("scored", index)) is not None:
        return ScoredMarker.from_dict(finished)
    if scored is None:
        raise OutputConflictError(
            f"the marker of shard {index} is missing from {context.output.root}", "Run the job again."
        )
    rows, rejected, output = scored.rows, scored.rejected, context.output
    files = [*_write(output, "rejected", index, rejected), *_write(output, "scores", index, rows)]
    marker = ScoredMarker(
        read=rows.num_rows + rejected.num_rows,
        scored=rows.num_rows,
        rejected=rejected.num_rows,
        reasons=count_values(rejected["reason"]),
        rejected_by_source=count_reasons_by(rejected, "source"),
        rejected_by_category=count_reasons_by(rejected, "category") if context.spec.input.category_field else {},
        truncated=int(np.count_nonzero(rows["truncated"].to_numpy())),
        tokens=len(ragged(rows["input_ids"]).flat),
        trained_tokens=int(rows["num_tokens"].to_numpy().sum()),
        engine=dict(scored.engine),
        started_at_s=scored.started_at_s,
        engine_s=scored.engine_s,
        actor=scored.actor,
        encode_s=scored.encode_s,
        committed_at_s=time.time(),
        files=files,
        notes=dict(scored.notes),
        endings=scored.endings.to_dict(),
    )
    return ScoredMarker.from_dict(output.mark("scored", index, marker.to_dict()))


def reject_shard(index: int, problem: str, context: JobContext) -> ScoredMarker:
    """Reject all records of a shard that failed. Where it cannot be read, they have no lines and no text."""
    plan = plan_of(context)
    shard = plan.shards[index]
    try:
        records = read_shard(plan, shard)
        problems = dict.fromkeys(range(len(records.records)), ("shard_failed", problem))
        rejected = rejected_records(records, problems, context.spec.input.category_field)
    except StorageError:
        first = {"source": plan.files[shard.file_index].name, "reason": "shard_failed", "detail": problem, "record": ""}
        name = sample_id(shard.file_index, shard.first_line)
        rows = [{**first, "sample_id": f"{name}+{i}"} for i in range(shard.num_records)]
        rejected = pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
    none = with_scores(pa.schema(ENCODED_FIELDS).empty_table(), FlatScores.of([]))
    return commit_shard(index, ScoredShard(none, rejected), context)


def prune_shard(
    index: int,
    selection: ShardSelection,
    spec: JobSpec,
    renamed: dict[str, str],
    category: str | None,
    stop_ids: Sequence[int],
) -> PrunedMarker:
    """Write a shard's quadrants and pruned rows, count them, and pick the samples that the report shows."""
    output = Output(spec.output.path)
    if (finished := output.marker("pruned", index)) is not None:
        return PrunedMarker.from_dict(finished)
    labels = selection.labels.read()
    assert spec.prune is not None
    scores = output.read_part(selection.scores)
    population = selection.start + np.arange(scores.num_rows)
    masks = final_masks(scores, labels.quadrants, labels.kept, population, spec.prune, stop_ids)
    quadrants = quadrant_rows(scores, labels)
    pruned = pruned_rows(scores, masks, labels, renamed, selection.weighing)
    before = scores["num_tokens"].to_numpy().astype(np.int64)
    after = np.where(labels.kept, row_sums(masks), 0)
    protected = protected_of(scores, stop_ids)
    num_lost = row_sums(Ragged(protected.flat & (masks.flat == 0), protected.offsets))
    points: Any = scores["sample_id"].take(pa.array(selection.points, pa.int64())).to_pylist()
    marker = PrunedMarker(
        kept=pruned.num_rows,
        tokens_before=int(before[labels.kept].sum()),
        tokens_after=int(after.sum()),
        lost_end_of_turn=int(np.count_nonzero(num_lost[labels.kept])),
        by_source=tally(scores["source"], labels, before, after),
        by_category=tally(text_of(scores, category), labels, before, after) if category else {},
        points=points,
        examples=example_rows(scores, quadrants, masks, selection.examples, spec.prune),
        files=[*_write(output, "quadrants", index, quadrants), *_write(output, "pruned", index, pruned)],
    )
    return PrunedMarker.from_dict(output.mark("pruned", index, marker.to_dict()))


def _write(output: Output, folder: str, index: int, table: pa.Table) -> list[dict[str, Any]]:
    """Write a part and return its manifest entry. A table without rows is not written: some readers fail on it."""
    if table.num_rows == 0:
        return []
    return [output.write_part(folder, index, table).to_dict()]


# --- loaded once a process


def plan_of(context: JobContext) -> Plan:
    """Return the plan of a job. Raise OutputConflictError where it changed while the job was running."""
    return _plan(context.output.root, context.plan_digest)


@functools.lru_cache(maxsize=2)
def _plan(root: str, digest: str | None) -> Plan:
    plan = read_plan(Output(root))
    if digest not in (None, plan.digest):
        raise OutputConflictError(f"the plan in {root} changed while its job was running", "Run the job again.")
    return plan


def read_plan(output: Output) -> Plan:
    """Return the plan of an output. Raise OutputConflictError where it names files outside the job's input."""
    plan = Plan.from_json(output.read_bytes("_qtune", "plan.json", max_bytes=MAX_PLAN_BYTES))
    plan.verify_sources(output.at("_qtune", "input"))
    return plan


def prepare(spec: JobSpec) -> tuple[JobContext, Encoder]:
    """Read the model's configuration and load its tokenizer. Raise ModelError where one of them fails."""
    context = JobContext(spec, describe_model(spec.model))
    return context, _encoder(context)


_ENCODERS: dict[str, Encoder] = {}


def _encoder(context: JobContext) -> Encoder:
    key = context.spec.input.model_dump_json() + context.spec.model.model_dump_json() + context.model.fingerprint
    if key not in _ENCODERS:
        limits = {"max_model_len": context.model.max_model_len, "vocab_size": context.model.vocab_size}
        model = planned_model(context.spec.model, context.model, weights=False)
        encoder = Encoder(model, context.spec.input, **limits)
        if context.tokenizer not in ("", encoder.fingerprint):
            where = f"{context.spec.model.name} on node {context.node}"
            raise ModelError(f"the tokenizer of {where} is not the one that this job was planned with", SAME_FILES)
        _ENCODERS[key] = encoder
    return _ENCODERS[key]
