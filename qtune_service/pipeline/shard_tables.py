"""Build the Arrow tables of a job's output, and count their rows, without a Python loop over tokens.

Token columns are ragged lists over one flat buffer with offsets, so numpy sees a whole shard as a few arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.ingest.plan import Plan
from qtune_service.ingest.reader import RecordProblem, ShardRecords, category_of
from qtune_service.ingest.rows import records_of
from qtune_service.ingest.schema import as_json_type, output_names
from qtune_service.output.columns import (
    IGNORE_INDEX,
    PRUNED_RESERVED,
    SCORES_RESERVED,
    Ragged,
    coded,
    list_column,
    quadrant_names,
    ragged,
    row_sums,
)
from qtune_service.pipeline.shard_selection import SampleLabels
from qtune_service.samples import Sample, TokenScores, sample_means
from qtune_service.scoring.scorer import FlatScores, Outcomes
from qtune_service.selection.strategies import Weighing
from qtune_service.selection.token_masks import neighbor_scores, protected_tokens, trainable
from qtune_service.tokenize.encoded_batch import EncodedBatch

ENCODED_FIELDS: list[pa.Field[Any]] = [
    pa.field("sample_id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("line", pa.int64()),
    pa.field("truncated", pa.bool_()),
    pa.field("input_ids", pa.list_(pa.int32())),
    pa.field("loss_mask", pa.list_(pa.int8())),
    pa.field("num_protected_tokens", pa.int32()),
]
REJECTED_FIELDS: list[pa.Field[Any]] = [
    pa.field("sample_id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("line", pa.int64()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("category", pa.string()),
    pa.field("record", pa.string()),
]
ENCODED_NAMES = frozenset(field.name for field in ENCODED_FIELDS)
REJECTED_SCHEMA = pa.schema(REJECTED_FIELDS)
EXCERPT_CHARS = 2_000
"""Characters of a rejected record that are kept."""


def own_names(plan: Plan) -> dict[str, str]:
    """Return own column of the records -> its name in scores/, without the token columns of tokenized input."""
    tokenized = (
        {"input_ids", "loss_mask", "labels", "attention_mask"} if "tokenized" in plan.formats.values() else set()
    )
    return output_names([name for name in plan.schema.names if name not in tokenized], SCORES_RESERVED)


def pruned_names(plan: Plan) -> dict[str, str]:
    """Return name in scores/ -> name in pruned/, for the own columns where these differ."""
    in_scores = own_names(plan)
    in_pruned = output_names(in_scores, PRUNED_RESERVED)
    return {in_scores[name]: in_pruned[name] for name in in_scores if in_scores[name] != in_pruned[name]}


def encoded_rows(
    records: ShardRecords, batch: EncodedBatch, names: dict[str, str], stop_ids: Collection[int]
) -> pa.Table:
    """Return encoded records with their own columns. `batch.tokens.rows` are indices in `records`."""
    tokens = batch.tokens
    indices: list[int] = tokens.rows.tolist()
    sample_ids = records.sample_ids
    protected = protected_tokens(tokens.input_ids, trainable(tokens.loss_mask, tokens.offsets), stop_ids)
    ours = [
        pa.array([sample_ids[i] for i in indices], pa.string()),
        pa.repeat(pa.scalar(records.source, pa.string()), len(indices)),
        pa.array([records.lines[i] for i in indices], pa.int64()),
        pa.array(batch.truncated, pa.bool_()),
        list_column(tokens.input_ids, tokens.offsets, pa.int32()),
        list_column(tokens.loss_mask, tokens.offsets, pa.int8()),
        pa.array(row_sums(Ragged(protected, tokens.offsets)), pa.int32()),
    ]
    own = records.own_columns(indices).select(list(names))
    fields = [own.schema.field(name).with_name(renamed) for name, renamed in names.items()]
    return pa.table([*ours, *own.columns], schema=pa.schema([*ENCODED_FIELDS, *fields]))


def samples_of(table: pa.Table) -> list[Sample]:
    """Return the encoded rows as samples for the engine."""
    ids, masks = ragged(table["input_ids"]), ragged(table["loss_mask"])
    return [Sample(i, m) for i, m in zip(ids.rows(), masks.rows(), strict=True)]  # type: ignore[arg-type]


def problems_of(outcomes: Outcomes) -> dict[int, tuple[str, str]]:
    """Return the samples of a shard without usable scores: index -> (reason, detail), in order."""
    offsets = outcomes.scores.offsets
    wrong = ~np.isfinite(outcomes.scores.values).all(1)
    counts = np.diff(np.concatenate([[0], np.cumsum(wrong, dtype=np.int64)])[offsets])
    sizes = np.diff(offsets)
    problems = {i: ("scoring_failed", reason) for i, reason in outcomes.problems.items()}
    for i in np.flatnonzero(counts).tolist():
        problems[i] = "non_finite_score", f"{counts[i]} of {sizes[i]} tokens have no finite score"
    return dict(sorted(problems.items()))


def without_rows(scores: FlatScores, samples: Mapping[int, object]) -> FlatScores:
    """Return the scores of the other samples."""
    if not samples:
        return scores
    kept = np.ones(len(scores.offsets) - 1, np.bool_)
    kept[list(samples)] = False
    sizes = np.diff(scores.offsets)
    offsets = np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64)
    return FlatScores(scores.values[np.repeat(kept, sizes)], offsets)


def with_scores(encoded: pa.Table, scores: FlatScores) -> pa.Table:
    """Return encoded rows with their scores: the columns of scores/, own columns last."""
    offsets, counts = scores.offsets, np.diff(scores.offsets)
    nll, entropy = np.ascontiguousarray(scores.values[:, 0]), np.ascontiguousarray(scores.values[:, 1])
    mean_nll, mean_entropy = sample_means(nll, offsets), sample_means(entropy, offsets)
    with np.errstate(over="ignore"):
        perplexity = np.exp(mean_nll)
    ours = {
        **{name: encoded[name] for name in ("sample_id", "source", "line", "truncated")},
        "mean_nll": pa.array(mean_nll, pa.float64()),
        "perplexity": pa.array(perplexity, pa.float64()),
        "mean_entropy": pa.array(mean_entropy, pa.float64()),
        "num_tokens": pa.array(counts, pa.int32()),
        "num_protected_tokens": encoded["num_protected_tokens"],
        "input_ids": encoded["input_ids"],
        "loss_mask": encoded["loss_mask"],
        "nll": list_column(nll, offsets, pa.float32()),
        "entropy": list_column(entropy, offsets, pa.float32()),
    }
    own = {name: encoded[name] for name in encoded.column_names if name not in ENCODED_NAMES}
    schema = pa.schema([pa.field(n, c.type) for n, c in ours.items()] + [encoded.schema.field(n) for n in own])
    return pa.table({**ours, **own}, schema=schema)


def partial_bytes(scores: Mapping[int, TokenScores], engine: str) -> pa.Buffer:
    """Return the scores of some samples of a shard as an Arrow file. scores: index of the encoded row -> its scores."""
    values = list(scores.values())
    offsets = np.concatenate([[0], np.cumsum([len(s.nll) for s in values], dtype=np.int64)])
    columns = {
        name: list_column(
            np.concatenate([np.empty(0, np.float32), *(getattr(s, name) for s in values)]), offsets, pa.float32()
        )
        for name in ("nll", "entropy")
    }
    table = pa.table({"index": pa.array(list(scores), pa.int64()), **columns})
    table = table.replace_schema_metadata({"engine": engine})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def partial_scores(data: bytes, engine: str) -> dict[int, TokenScores]:
    """Return the scores in a file of `partial_bytes`. Ignore those of another engine: one engine scores a shard."""
    table = pa.ipc.open_file(data).read_all()
    if (table.schema.metadata or {}).get(b"engine") != engine.encode():
        return {}
    indices: list[int] = table["index"].to_numpy().tolist()
    rows = zip(ragged(table["nll"]).rows(), ragged(table["entropy"]).rows(), strict=True)
    return {i: TokenScores(n, e) for i, (n, e) in zip(indices, rows, strict=True)}  # type: ignore[arg-type]


def pruned_rows(
    scores: pa.Table, masks: Ragged, labels: SampleLabels, renamed: dict[str, str], weighing: Weighing | None
) -> pa.Table:
    """Return the kept rows of a score shard with their final masks: the columns of pruned/.

    renamed: name in scores/ -> name here, for the own columns where these differ.
    """
    kept = labels.kept
    rows, quadrants = scores.filter(pa.array(kept)), labels.quadrants[kept]
    ids = ragged(rows["input_ids"])
    final = masks.flat[np.repeat(kept, np.diff(masks.offsets))]
    before = rows["num_tokens"].to_numpy().astype(np.int64)
    after = row_sums(Ragged(final, ids.offsets))
    mask_column = list_column(final, ids.offsets, pa.int8())
    about: dict[str, Any] = {
        "sample_id": rows["sample_id"].combine_chunks(),
        "perplexity": rows["perplexity"].combine_chunks(),
        "entropy": rows["mean_entropy"].combine_chunks(),
        "quadrant": quadrant_names(quadrants),
        "tokens_kept": pa.array(after, pa.int32()),
        "tokens_removed": pa.array(before - after, pa.int32()),
    }
    if weighing is not None:
        about["loss_weight"] = pa.array(weighing.of(rows["mean_nll"].to_numpy()), pa.float64())
    ours: dict[str, Any] = {
        "input_ids": rows["input_ids"],
        "attention_mask": list_column(np.ones(len(final), np.int8), ids.offsets, pa.int8()),
        "labels": list_column(np.where(final == 1, ids.flat, IGNORE_INDEX), ids.offsets, pa.int32()),
        "loss_mask": mask_column,
        "assistant_masks": mask_column,
        "qtune": pa.StructArray.from_arrays(list(about.values()), names=list(about)),
    }
    own = [rows.schema.field(name) for name in rows.column_names if name not in SCORES_RESERVED]
    fields = [field.with_name(renamed.get(field.name, field.name)) for field in own]
    schema = pa.schema(fields + [pa.field(name, column.type) for name, column in ours.items()])
    return as_json_type(pa.table([*(rows[field.name] for field in own), *ours.values()], schema=schema))


def example_rows(
    scores: pa.Table, quadrants: pa.Table, masks: Ragged, why: Mapping[int, str], prune: PruneSpec
) -> list[dict[str, Any]]:
    """Return whole samples for the report, as plain data. why: row -> the kind of example."""
    at = np.array(list(why), np.int64)
    names = ["sample_id", "source", "line", "perplexity", "mean_entropy", "input_ids", "loss_mask", "nll", "entropy"]
    found = scores.select(names).take(at).to_pylist()
    places = quadrants.drop_columns("sample_id").take(at).to_pylist()
    finals = masks.rows()
    for row, (i, kind) in zip(found, why.items(), strict=True):
        mask = np.array(row["loss_mask"], np.int8)
        positions = np.flatnonzero(trainable(mask, np.array([0, len(mask)])))
        smoothed = neighbor_scores(np.array(row["nll"], np.float64), positions, prune.smoothing)
        row |= {"final_mask": finals[i].tolist(), "smoothed": smoothed.tolist(), "why": kind}
    return [row | place for row, place in zip(found, places, strict=True)]


def quadrant_rows(scores: pa.Table, labels: SampleLabels) -> pa.Table:
    """Return each sample's quadrant, ranks, and whether it is kept: the columns of quadrants/."""
    return pa.table(
        {
            "sample_id": scores["sample_id"],
            "quadrant": quadrant_names(labels.quadrants),
            "error_rank": pa.array(labels.error_rank, pa.float64()),
            "entropy_rank": pa.array(labels.entropy_rank, pa.float64()),
            "kept": pa.array(labels.kept, pa.bool_()),
        }
    )


# --- rejected rows


def rejected_records(
    records: ShardRecords, problems: Mapping[int, tuple[str, str]], category_field: str | None
) -> pa.Table:
    """Return the rows of rejected/ for records that could not be encoded. problems: index -> (reason, detail)."""
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


def rejected_samples(rows: pa.Table, problems: Mapping[int, tuple[str, str]], category_column: str | None) -> pa.Table:
    """Return the rows of rejected/ for samples that the engine could not score."""
    if not problems:
        return REJECTED_SCHEMA.empty_table()
    names = [n for n in ("sample_id", "source", "line", category_column) if n in rows.column_names]
    rejected = []
    for (reason, detail), row in zip(
        problems.values(), records_of(rows.select(names).take(pa.array(list(problems), pa.int64()))), strict=True
    ):
        category = row.pop(category_column, None) if category_column else None
        rejected.append(
            {**row, "reason": reason, "detail": detail, "category": None if category is None else str(category)}
        )
    return pa.Table.from_pylist(rejected, schema=REJECTED_SCHEMA)


# --- counts of a shard, for its marker


def count_values(column: Any) -> dict[str, int]:
    """Return how often each value occurs. The name of null is (none)."""
    codes, names = coded(column)
    return dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))


def count_reasons_by(rejected: pa.Table, column: str) -> dict[str, dict[str, int]]:
    """Return how often each reason occurs for each value of a column. The name of null is (none)."""
    counts: dict[str, dict[str, int]] = {}
    pairs: Any = zip(rejected[column].to_pylist(), rejected["reason"].to_pylist(), strict=True)
    for name, reason in pairs:
        of_name = counts.setdefault("(none)" if name is None else name, {})
        of_name[reason] = of_name.get(reason, 0) + 1
    return counts


def tally(
    column: Any, labels: SampleLabels, before: NDArray[np.int64], after: NDArray[np.int64]
) -> dict[str, list[int]]:
    """Return for each value of a column: samples in Q1 to Q4, kept samples, trained tokens before and after."""
    codes, names = coded(column)
    size = len(names)
    quadrants = np.bincount(codes * 4 + labels.quadrants - 1, minlength=4 * size).reshape(-1, 4)
    sums = [np.bincount(codes, weights=weight, minlength=size) for weight in (labels.kept, before, after)]
    counts = np.column_stack([quadrants, *(total.astype(np.int64) for total in sums)])
    return dict(zip(names, counts.tolist(), strict=True))
