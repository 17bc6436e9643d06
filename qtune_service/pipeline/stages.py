"""What happens to one shard: scan, encode, score, commit, prune. Thin functions that Ray Data maps.

Each takes and gives bytes (see cluster.py). Tables travel as pickled Arrow, so numpy columns are not copied item by
item. Heavy objects are made once a process: the tokenizer is cached, the model lives in the scoring actor.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import JobSpec
from qtune_service.errors import OutputConflictError, StorageError
from qtune_service.ingest.planner import Chunk, Plan, scan
from qtune_service.ingest.reader import RecordProblem, ShardRecords, category_of, read_shard, sample_id
from qtune_service.output.columns import coded, final_masks, ragged, row_sums
from qtune_service.output.file_lists import part_path
from qtune_service.output.layout import Output
from qtune_service.pipeline.ray_cluster import node_id
from qtune_service.pipeline.retries import Guard, StoppedError
from qtune_service.pipeline.shard_selection import SampleLabels, ShardSelection
from qtune_service.pipeline.shard_tables import (
    ENCODED_FIELDS,
    REJECTED_SCHEMA,
    encoded_rows,
    example_rows,
    own_names,
    partial_bytes,
    partial_scores,
    pruned_rows,
    quadrant_rows,
    samples_of,
    with_scores,
)
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.model_config import ModelInfo, describe_model
from qtune_service.storage import file_io
from qtune_service.tokenize.encoder import Encoder

MAX_PLAN_BYTES = 8 << 30
"""Of a plan: some 500 bytes a shard."""
EXCERPT_CHARS = 2_000
"""How much of a rejected record is kept to look at."""


@dataclass(frozen=True, slots=True)
class JobContext:
    """What every scoring stage knows of the job. Small: the plan is read from the output, once a process."""

    spec: JobSpec
    model: ModelInfo
    threads: int = 1
    """CPU threads of an actor's engine."""
    guard: Guard | None = None
    """To report progress to, and to learn from that the job stops."""
    partials: frozenset[int] = frozenset()
    """Shards of which a stopped run left scores."""
    plan_digest: str | None = None
    """Of the plan that the driver checked; None: any plan will do."""

    @property
    def output(self) -> Output:
        """Where the job writes."""
        return Output(self.spec.output.path)


@dataclass(frozen=True, slots=True)
class ShardTables:
    """A shard on its way: usable rows and rejected ones."""

    rows: pa.Table
    rejected: pa.Table
    engine: dict[str, Any]
    started_at_s: float = 0.0
    """When the engine began with it, and how long that took."""
    engine_s: float = 0.0
    actor: str = ""
    """Who scored it: NODE:PROCESS."""
    encode_s: float = 0.0
    """How long reading and encoding took."""


def scan_chunk(_index: int, payload: bytes, spec: JobSpec) -> bytes:
    """Look through one chunk of the input: counts, hash, format, schema."""
    chunk: Chunk = pickle.loads(payload)  # noqa: S301 - written by the driver of this job
    return pickle.dumps(scan(chunk, spec.input, work=Output(spec.output.path).at("_qtune", "input")))


def encode_shard(index: int, _payload: bytes, context: JobContext) -> bytes:
    """Read a shard, render and tokenise its records; what cannot be used is set aside with its reason."""
    started = time.perf_counter()
    plan = _plan(context.output.root, context.plan_digest)
    shard = plan.shards[index]
    records = read_shard(plan, shard)
    good = {i: record for i, record in enumerate(records.records) if not isinstance(record, RecordProblem)}
    batch = _encoder(context).encode_columns(list(good.values()), shard.format).renumbered(list(good))
    problems = {i: (r.reason, r.detail) for i, r in enumerate(records.records) if isinstance(r, RecordProblem)}
    problems |= {i: (problem.reason_code, problem.detail) for i, problem in batch.problems.items()}
    rows = encoded_rows(records, batch, own_names(plan))
    rejected = _rejected_rows(records, dict(sorted(problems.items())), context.spec.input.category_field)
    return pickle.dumps(ShardTables(rows, rejected, {}, encode_s=time.perf_counter() - started))


class ScoreShard:
    """A scoring actor: one loaded model, and one thread that alone runs it.

    Ray Data makes an actor in one thread and calls it in another; OpenMP keeps a team of threads for each that runs
    torch, so the engine is made and called in a thread of its own.
    """

    def __init__(self, context: JobContext) -> None:
        os.environ["OMP_NUM_THREADS"] = str(context.threads)
        from qtune_service.scoring.choose_engine import build_scorer

        limit = {"max_model_len": context.model.max_model_len}
        self._context = context
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        model = context.spec.model.model_copy(update=limit)
        self._scorer = self._engine.submit(build_scorer, model, context.spec.engine).result()
        self._actor = f"{node_id()}:{os.getpid()}"

    def __call__(self, index: int, payload: bytes) -> bytes:
        """Score a shard; a sample that cannot be scored is set aside and costs the others nothing."""
        if self._context.output.marker("scored", index) is not None:
            return payload  # done, and asked for again: see commit_shard
        tables: ShardTables = pickle.loads(payload)  # noqa: S301 - written by `encode_shard` of this job
        started_at_s, started = time.time(), time.perf_counter()
        outcomes = self._score(index, samples_of(tables.rows))
        engine_s = time.perf_counter() - started
        problems = {i: problem for i, o in enumerate(outcomes) if (problem := _problem_of(o))}
        good = [o for i, o in enumerate(outcomes) if i not in problems and isinstance(o, TokenScores)]
        scored = pa.array([i not in problems for i in range(len(outcomes))], pa.bool_())
        rows = with_scores(tables.rows.filter(scored), good)
        category = own_names(_plan(self._context.output.root, self._context.plan_digest)).get(
            self._context.spec.input.category_field or ""
        )
        poisoned = _unscored_rows(tables.rows, problems, category)
        rejected = pa.concat_tables([tables.rejected, poisoned])
        info = asdict(self._scorer.info)
        return pickle.dumps(ShardTables(rows, rejected, info, started_at_s, engine_s, self._actor, tables.encode_s))

    def _score(self, index: int, samples: Sequence[Sample]) -> list[TokenScores | str]:
        """Score what an earlier, stopped run did not. Raises StoppedError after saving what this one has."""
        from qtune_service.scoring.scorer import InterruptedScoring, never, score_isolating

        output, guard = self._context.output, self._context.guard
        engine = f"{self._scorer.info.name} {self._scorer.info.version} {self._scorer.info.dtype}"
        done: dict[int, TokenScores | str] = {}
        if index in self._context.partials:
            done |= partial_scores(output.read_partial(index), engine)
        left = [i for i in range(len(samples)) if i not in done]
        watch = guard.watch(index) if guard else never
        try:
            fresh = self._engine.submit(score_isolating, self._scorer, [samples[i] for i in left], watch).result()
        except InterruptedScoring as stop:
            done |= {left[k]: scores for k, scores in stop.scores.items()}
            kept = {i: s for i, s in done.items() if isinstance(s, TokenScores)}
            file_io.write_bytes(output.partial_uri(index), partial_bytes(kept, engine))
            raise StoppedError(f"shard {index} was stopped with {len(kept)} of {len(samples)} samples scored") from None
        done |= dict(zip(left, fresh, strict=True))
        return [done[i] for i in range(len(samples))]


def commit_shard(index: int, payload: bytes, context: JobContext) -> bytes:
    """Write a scored shard: rejected rows, scores, and last the marker that makes it count.

    Ray does a task again whose result was lost with its worker; a shard that was finished by then stays as it is.
    """
    if (finished := context.output.marker("scored", index)) is not None:
        return json.dumps(finished).encode()
    tables: ShardTables = pickle.loads(payload)  # noqa: S301 - written by `ScoreShard` of this job
    rows, rejected, output = tables.rows, tables.rejected, context.output
    files = [*_write(output, "rejected", index, rejected), *_write(output, "scores", index, rows)]
    marker = {
        "read": rows.num_rows + rejected.num_rows,
        "scored": rows.num_rows,
        "rejected": rejected.num_rows,
        "reasons": _counts(rejected["reason"]),
        "rejected_by_source": _reasons(rejected, "source"),
        "rejected_by_category": _reasons(rejected, "category") if context.spec.input.category_field else {},
        "truncated": int(np.count_nonzero(rows["truncated"].to_numpy())),
        "tokens": len(ragged(rows["input_ids"]).flat),
        "trained_tokens": int(rows["num_tokens"].to_numpy().sum()),
        "engine": tables.engine,
        "started_at_s": tables.started_at_s,
        "engine_s": tables.engine_s,
        "actor": tables.actor,
        "encode_s": tables.encode_s,
        "committed_at_s": time.time(),
        "files": files,
    }
    output.mark("scored", index, marker)
    return json.dumps(marker).encode()


def reject_shard(index: int, payload: bytes, context: JobContext) -> bytes:
    """Set a failed shard's records aside; where it cannot even be read, without their lines and text."""
    plan, problem = _plan(context.output.root, context.plan_digest), payload.decode()
    shard = plan.shards[index]
    try:
        records = read_shard(plan, shard)
        problems = dict.fromkeys(range(len(records.records)), ("shard_failed", problem))
        rejected = _rejected_rows(records, problems, context.spec.input.category_field)
    except StorageError:
        first = {"source": plan.files[shard.file_index].name, "reason": "shard_failed", "detail": problem, "record": ""}
        name = sample_id(shard.file_index, shard.first_line)
        rows = [{**first, "sample_id": f"{name}+{i}"} for i in range(shard.num_records)]
        rejected = pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)
    none = with_scores(pa.schema(ENCODED_FIELDS).empty_table(), [])
    return commit_shard(index, pickle.dumps(ShardTables(none, rejected, {})), context)


def prune_shard(index: int, payload: bytes, spec: JobSpec, renamed: dict[str, str], category: str | None) -> bytes:
    """Write a shard's quadrants and its pruned rows, count them, and pick out what the report shows."""
    output = Output(spec.output.path)
    if (finished := output.marker("pruned", index)) is not None:
        return json.dumps(finished).encode()
    selection: ShardSelection = pickle.loads(payload)  # noqa: S301 - from this job's driver
    labels = selection.labels.read()
    assert spec.prune is not None
    scores = output.read_part("scores", index)
    population = selection.start + np.arange(scores.num_rows)
    masks = final_masks(scores, labels.quadrants, labels.kept, population, spec.prune)
    quadrants = quadrant_rows(scores, labels)
    pruned = pruned_rows(scores, masks, labels, renamed, selection.weighing)
    before = scores["num_tokens"].to_numpy().astype(np.int64)
    after = np.where(labels.kept, row_sums(masks), 0)
    tokens = [int(before[labels.kept].sum()), int(after.sum())]
    marker = {
        "kept": pruned.num_rows,
        "tokens_before": tokens[0],
        "tokens_after": tokens[1],
        "by_source": _tally(scores["source"], labels, before, after),
        "by_category": _tally(scores[category], labels, before, after) if category else {},
        "points": scores["sample_id"].take(pa.array(selection.points, pa.int64())).to_pylist(),
        "examples": example_rows(scores, quadrants, masks, selection.examples, spec.prune),
        "files": [*_write(output, "quadrants", index, quadrants), *_write(output, "pruned", index, pruned)],
    }
    output.mark("pruned", index, marker)
    return json.dumps(marker).encode()


# --- once a process


@functools.lru_cache(maxsize=2)
def _plan(root: str, digest: str | None) -> Plan:
    plan = read_plan(Output(root))
    if digest not in (None, plan.digest):
        raise OutputConflictError(f"the plan in {root} changed while its job was running", "Run the job again.")
    return plan


def read_plan(output: Output) -> Plan:
    """Read the plan of an output. Raise OutputConflictError where it reads anything but the job's input."""
    plan = Plan.from_json(output.read_bytes("_qtune", "plan.json", max_bytes=MAX_PLAN_BYTES))
    plan.verify_sources(output.at("_qtune", "input"))
    return plan


_ENCODERS: dict[str, Encoder] = {}


def prepare(spec: JobSpec) -> tuple[JobContext, Encoder]:
    """Look at the model and load its tokenizer. Raises ModelError."""
    context = JobContext(spec, describe_model(spec.model))
    return context, _encoder(context)


def _encoder(context: JobContext) -> Encoder:
    key = context.spec.input.model_dump_json() + context.spec.model.model_dump_json() + context.model.fingerprint
    if key not in _ENCODERS:
        limits = {"max_model_len": context.model.max_model_len, "vocab_size": context.model.vocab_size}
        _ENCODERS[key] = Encoder(context.spec.model, context.spec.input, **limits)
    return _ENCODERS[key]


# --- rejected rows


def _rejected_rows(records: ShardRecords, problems: dict[int, tuple[str, str]], category_field: str | None) -> pa.Table:
    """The columns of rejected/ for records that could not be encoded: index -> (reason, detail)."""
    ids = records.sample_ids
    rows = [
        {
            "sample_id": ids[i],
            "source": records.source,
            "line": records.lines[i],
            "reason": reason,
            "detail": detail,
            "category": _category(records.records[i], category_field),
            "record": records.excerpt(i, EXCERPT_CHARS),
        }
        for i, (reason, detail) in problems.items()
    ]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


def _category(record: Any, field: str | None) -> str | None:
    return None if field is None or isinstance(record, RecordProblem) else category_of(record, field)


def _problem_of(outcome: TokenScores | str) -> tuple[str, str] | None:
    """Why an outcome cannot be used: (reason, detail)."""
    if isinstance(outcome, str):
        return "scoring_failed", outcome
    wrong = int(np.count_nonzero(~(np.isfinite(outcome.nll) & np.isfinite(outcome.entropy))))
    return ("non_finite_score", f"{wrong} of {len(outcome.nll)} tokens have no finite score") if wrong else None


def _unscored_rows(rows: pa.Table, problems: dict[int, tuple[str, str]], category_column: str | None) -> pa.Table:
    """The columns of rejected/ for samples that the engine could not score."""
    names = [n for n in ("sample_id", "source", "line", category_column) if n in rows.column_names]
    rejected = []
    for (reason, detail), row in zip(
        problems.values(), rows.select(names).take(pa.array(list(problems), pa.int64())).to_pylist(), strict=True
    ):
        category = row.pop(category_column, None) if category_column else None
        rejected.append(
            {**row, "reason": reason, "detail": detail, "category": None if category is None else str(category)}
        )
    return pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)


# --- counting and writing


def _write(output: Output, folder: str, index: int, table: pa.Table) -> list[dict[str, Any]]:
    """Write a part and describe it for the manifest. No part without rows: some readers stumble over those."""
    if table.num_rows == 0:
        return []
    written = file_io.write_table(output.part(folder, index), table)
    path = part_path(folder, index)
    return [{"path": path, "rows": table.num_rows, "bytes": written.size_bytes, "sha256": written.sha256}]


def _counts(column: Any) -> dict[str, int]:
    """How often each value occurs; null is (none)."""
    codes, names = coded(column)
    return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))


def _reasons(rejected: pa.Table, column: str) -> dict[str, dict[str, int]]:
    """How often each reason occurs for each value of a column; null is (none)."""
    counts: dict[str, dict[str, int]] = {}
    pairs: Any = zip(rejected[column].to_pylist(), rejected["reason"].to_pylist(), strict=True)
    for name, reason in pairs:
        of_name = counts.setdefault("(none)" if name is None else name, {})
        of_name[reason] = of_name.get(reason, 0) + 1
    return counts


def _tally(
    column: Any, labels: SampleLabels, before: NDArray[np.int64], after: NDArray[np.int64]
) -> dict[str, list[int]]:
    """For each value of a column: samples in Q1, Q2, Q3, Q4, kept samples, trained tokens before and after."""
    codes, names = coded(column)
    size = len(names)
    quadrants = np.bincount(codes * 4 + labels.quadrants - 1, minlength=4 * size).reshape(-1, 4)
    sums = [np.bincount(codes, weights=weight, minlength=size) for weight in (labels.kept, before, after)]
    counts = np.column_stack([quadrants, *(total.astype(np.int64) for total in sums)])
    return dict(zip(names, counts.tolist(), strict=True))
