"""The Arrow tables of a job's output, built without a Python loop over tokens.

Token columns are ragged lists over one flat buffer with offsets, so numpy sees a whole shard as a few arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.config import PruneSpec
from qtune_service.core.metrics import Sample, TokenScores, sample_means
from qtune_service.core.plane import Quadrant
from qtune_service.core.tokens import prune_token_masks
from qtune_service.data.batches import EncodedBatch
from qtune_service.data.plan import Plan
from qtune_service.data.reading import ShardRecords
from qtune_service.data.schema import output_names

IGNORE_INDEX = -100
"""The label that trainers leave out of the loss."""

SCORES_RESERVED = frozenset(
    {"sample_id", "source", "line", "truncated", "mean_nll", "perplexity", "mean_entropy", "num_tokens"}
    | {"input_ids", "loss_mask", "nll", "entropy", "quadrant"}
)
PRUNED_RESERVED = frozenset({"input_ids", "attention_mask", "labels", "loss_mask", "assistant_masks", "qtune"})
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


@dataclass(frozen=True, slots=True)
class Ragged:
    """Lists of different lengths over one buffer: row i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: NDArray[np.generic]  # (L,)
    offsets: NDArray[np.int64]  # (S + 1,)

    def rows(self) -> list[NDArray[np.generic]]:
        """Views, one a row."""
        return [self.flat[low:high] for low, high in pairwise(self.offsets.tolist())]


def ragged(column: Any) -> Ragged:
    """View a list column (a chunked array) as numpy."""
    array = column.combine_chunks()
    offsets = array.offsets.to_numpy().astype(np.int64)
    flat = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return Ragged(flat, offsets - offsets[0])


def list_column(flat: NDArray[np.generic], offsets: NDArray[np.int64], value_type: pa.DataType) -> Any:
    """A list column of a flat array and its offsets."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, value_type))


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


def final_masks(scores: pa.Table, labels: NDArray[np.int8], spec: PruneSpec) -> Ragged:
    """Stage 2 for a score shard: each row's final loss mask. labels: (S,) quadrant codes."""
    masks, nll = ragged(scores["loss_mask"]), ragged(scores["nll"])
    final = prune_token_masks(
        masks.flat.astype(np.int8),
        masks.offsets,
        nll.flat.astype(np.float32),
        labels == Quadrant.Q2,
        token_keep_ratio=spec.token_keep_ratio,
        neighbor_lambda=spec.neighbor_lambda,
        min_tokens_to_prune=spec.min_tokens_to_prune,
        reverse_token_order=spec.reverse_token_order,
    )
    return Ragged(final, masks.offsets)


def pruned_rows(
    scores: pa.Table, masks: Ragged, labels: NDArray[np.int8], kept: NDArray[np.bool_], renamed: dict[str, str]
) -> pa.Table:
    """The kept rows of a score shard with their final masks: the columns of pruned/.

    labels, kept: (S,). `renamed` gives own columns that had to change their name in scores/ another one here.
    """
    rows, quadrants = scores.filter(pa.array(kept)), labels[kept]
    ids = ragged(rows["input_ids"])
    final = masks.flat[np.repeat(kept, np.diff(masks.offsets))]
    before = rows["num_tokens"].to_numpy().astype(np.int64)
    after = np.diff(np.concatenate([[0], np.cumsum(final, dtype=np.int64)])[ids.offsets])
    mask_column = list_column(final, ids.offsets, pa.int8())
    ours: dict[str, Any] = {
        "input_ids": rows["input_ids"],
        "attention_mask": list_column(np.ones(len(final), np.int8), ids.offsets, pa.int8()),
        "labels": list_column(np.where(final == 1, ids.flat, IGNORE_INDEX), ids.offsets, pa.int32()),
        "loss_mask": mask_column,
        "assistant_masks": mask_column,
        "qtune": pa.StructArray.from_arrays(
            [
                *(rows[name].combine_chunks() for name in ("sample_id", "perplexity", "mean_entropy")),
                quadrant_names(quadrants),
                pa.array(after, pa.int32()),
                pa.array(before - after, pa.int32()),
            ],
            names=["sample_id", "perplexity", "entropy", "quadrant", "tokens_kept", "tokens_removed"],
        ),
    }
    own = [rows.schema.field(name) for name in rows.column_names if name not in SCORES_RESERVED]
    fields = [field.with_name(renamed.get(field.name, field.name)) for field in own]
    schema = pa.schema(fields + [pa.field(name, column.type) for name, column in ours.items()])
    return pa.table([*(rows[field.name] for field in own), *ours.values()], schema=schema)


def example_rows(scores: pa.Table, labels: NDArray[np.int8], masks: Ragged, rows: list[int]) -> list[dict[str, Any]]:
    """Whole samples for the report, as plain data."""
    names = ["sample_id", "source", "line", "perplexity", "mean_entropy", "input_ids", "loss_mask", "nll", "entropy"]
    found = scores.select(names).take(pa.array(rows, pa.int64())).to_pylist()
    finals = masks.rows()
    for row, i in zip(found, rows, strict=True):
        row["quadrant"], row["final_mask"] = Quadrant(labels[i]).name, finals[i].tolist()
    return found


def quadrant_names(labels: NDArray[np.int8]) -> Any:
    """Q1 to Q4 as text, (S,)."""
    return pa.array(np.array([q.name for q in Quadrant])[labels.astype(np.int64) - 1], pa.string())


def quadrant_rows(
    scores: pa.Table, labels: NDArray[np.int8], error_rank: NDArray[np.float64], entropy_rank: NDArray[np.float64]
) -> pa.Table:
    """Why each sample was kept or dropped: its place on the plane. The columns of quadrants/."""
    return pa.table(
        {
            "sample_id": scores["sample_id"],
            "quadrant": quadrant_names(labels),
            "error_rank": pa.array(error_rank, pa.float64()),
            "entropy_rank": pa.array(entropy_rank, pa.float64()),
        }
    )
