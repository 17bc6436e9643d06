"""The Arrow tables of a job's output, built without a Python loop over tokens.

Token columns are ragged lists over one flat buffer with offsets, so numpy sees a whole shard as a few arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from qtune_service.config import PruneSpec
from qtune_service.ingest.plan import Plan
from qtune_service.ingest.reader import ShardRecords
from qtune_service.ingest.schema import output_names
from qtune_service.output.columns import (
    IGNORE_INDEX,
    PRUNED_RESERVED,
    SCORES_RESERVED,
    Ragged,
    list_column,
    quadrant_names,
    ragged,
    row_sums,
)
from qtune_service.pipeline.shard_selection import SampleLabels
from qtune_service.samples import Sample, TokenScores, sample_means
from qtune_service.selection.strategies import Weighing
from qtune_service.selection.token_masks import neighbor_scores, trainable
from qtune_service.tokenize.encoded_batch import EncodedBatch

TOKENIZED_COLUMNS = frozenset({"input_ids", "attention_mask", "labels", "loss_mask"})
ENCODED_FIELDS: list[pa.Field[Any]] = [
    pa.field("sample_id", pa.string()),
    pa.field("source", pa.string()),
    pa.field("line", pa.int64()),
    pa.field("truncated", pa.bool_()),
    pa.field("input_ids", pa.list_(pa.int32())),
    pa.field("loss_mask", pa.list_(pa.int8())),
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


def own_names(plan: Plan) -> dict[str, str]:
    """Own columns of the records -> their names in scores/. Token columns of tokenized input are ours to write."""
    tokenized = (
        {"input_ids", "loss_mask", "labels", "attention_mask"} if "tokenized" in plan.formats.values() else set()
    )
    return output_names([name for name in plan.schema.names if name not in tokenized], SCORES_RESERVED)


def pruned_names(plan: Plan) -> dict[str, str]:
    """Name in scores/ -> name in pruned/, for the own columns where these differ."""
    in_scores = own_names(plan)
    in_pruned = output_names(in_scores, PRUNED_RESERVED)
    return {in_scores[name]: in_pruned[name] for name in in_scores if in_scores[name] != in_pruned[name]}


def encoded_rows(records: ShardRecords, batch: EncodedBatch, names: dict[str, str]) -> pa.Table:
    """Encoded records with their own columns. `batch.tokens.rows` are indices in `records`."""
    tokens = batch.tokens
    indices: list[int] = tokens.rows.tolist()
    sample_ids = records.sample_ids
    ours = [
        pa.array([sample_ids[i] for i in indices], pa.string()),
        pa.repeat(pa.scalar(records.source, pa.string()), len(indices)),
        pa.array([records.lines[i] for i in indices], pa.int64()),
        pa.array(batch.truncated, pa.bool_()),
        list_column(tokens.input_ids, tokens.offsets, pa.int32()),
        list_column(tokens.loss_mask, tokens.offsets, pa.int8()),
    ]
    own = records.own_columns(indices).select(list(names))
    fields = [own.schema.field(name).with_name(renamed) for name, renamed in names.items()]
    return pa.table([*ours, *own.columns], schema=pa.schema([*ENCODED_FIELDS, *fields]))


def samples_of(table: pa.Table) -> list[Sample]:
    """The encoded rows as the engine takes them."""
    ids, masks = ragged(table["input_ids"]), ragged(table["loss_mask"])
    return [Sample(i, m) for i, m in zip(ids.rows(), masks.rows(), strict=True)]  # type: ignore[arg-type]


def with_scores(encoded: pa.Table, scores: Sequence[TokenScores]) -> pa.Table:
    """Encoded rows with their scores: the columns of scores/. Own columns stay behind ours."""
    counts = np.fromiter((len(s.nll) for s in scores), np.int64, len(scores))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    nll = np.concatenate([s.nll for s in scores]) if scores else np.empty(0, np.float32)
    entropy = np.concatenate([s.entropy for s in scores]) if scores else np.empty(0, np.float32)
    mean_nll, mean_entropy = sample_means(nll, offsets), sample_means(entropy, offsets)
    with np.errstate(over="ignore"):
        perplexity = np.exp(mean_nll)
    ours = {
        **{name: encoded[name] for name in ("sample_id", "source", "line", "truncated")},
        "mean_nll": pa.array(mean_nll, pa.float64()),
        "perplexity": pa.array(perplexity, pa.float64()),
        "mean_entropy": pa.array(mean_entropy, pa.float64()),
        "num_tokens": pa.array(counts, pa.int32()),
        "input_ids": encoded["input_ids"],
        "loss_mask": encoded["loss_mask"],
        "nll": list_column(nll, offsets, pa.float32()),
        "entropy": list_column(entropy, offsets, pa.float32()),
    }
    own = {name: encoded[name] for name in encoded.column_names if name not in ENCODED_NAMES}
    schema = pa.schema([pa.field(n, c.type) for n, c in ours.items()] + [encoded.schema.field(n) for n in own])
    return pa.table({**ours, **own}, schema=schema)


def partial_bytes(scores: Mapping[int, TokenScores], engine: str) -> pa.Buffer:
    """Scores of some samples of a shard as an Arrow file. scores: index among the encoded rows -> its scores."""
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
    """Read what `partial_bytes` wrote; nothing of another engine, for a shard has one."""
    table = pa.ipc.open_file(data).read_all()
    if (table.schema.metadata or {}).get(b"engine") != engine.encode():
        return {}
    indices: list[int] = table["index"].to_numpy().tolist()
    rows = zip(ragged(table["nll"]).rows(), ragged(table["entropy"]).rows(), strict=True)
    return {i: TokenScores(n, e) for i, (n, e) in zip(indices, rows, strict=True)}  # type: ignore[arg-type]


def pruned_rows(
    scores: pa.Table, masks: Ragged, labels: SampleLabels, renamed: dict[str, str], weighing: Weighing | None
) -> pa.Table:
    """The kept rows of a score shard with their final masks: the columns of pruned/.

    `renamed` gives own columns that had to change their name in scores/ another one here.
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
    return pa.table([*(rows[field.name] for field in own), *ours.values()], schema=schema)


def example_rows(
    scores: pa.Table, quadrants: pa.Table, masks: Ragged, why: Mapping[int, str], prune: PruneSpec
) -> list[dict[str, Any]]:
    """Whole samples for the report, as plain data. why: row -> the kind of example."""
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
    """Why each sample was kept or dropped: its place on the plane. The columns of quadrants/."""
    return pa.table(
        {
            "sample_id": scores["sample_id"],
            "quadrant": quadrant_names(labels.quadrants),
            "error_rank": pa.array(labels.error_rank, pa.float64()),
            "entropy_rank": pa.array(labels.entropy_rank, pa.float64()),
            "kept": pa.array(labels.kept, pa.bool_()),
        }
    )
