"""Pair the samples of two finished outputs of the same data, and measure how the second one differs.

The outputs may have other models, checkpoints, ratios or strategies. Samples are paired by the first rule that applies:

    by place     both outputs list the same files and lines, the usual case
    by content   the same content id (columns.py), at the same place if it is there, and repeated ones in order
    by line      the same input file and position in it, for samples that no content pairs. Another model's tokenizer
                 gives other tokens

Memory: some 150 bytes a sample, without the tokens, which are read shard by shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.output.columns import CONTENT_ID_BYTES, content_ids
from qtune_service.output.reader import FinishedOutput
from qtune_service.selection.ranks import double_midranks

MAX_PAIRED_SAMPLES = 5_000_000
By = Literal["place", "content", "line"]


@dataclass(frozen=True, slots=True, eq=False)
class OutputSamples:
    """The samples of one output, in their order."""

    keys: pa.Table
    """Input file, and position of the sample in it (S rows)."""
    quadrant: NDArray[np.int8]  # (S,) 1..4
    kept: NDArray[np.bool_]  # (S,)
    ranks: NDArray[np.float64]  # (2, S) mid-ranks of error and of entropy in (0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """The samples of two outputs, a and b, matched."""

    a: OutputSamples
    b: OutputSamples
    rows: NDArray[np.int64]  # (2, C) positions in a and in b of the common samples, in a's order
    num_by: dict[By, int]
    """Rule -> pairs."""

    @property
    def moves(self) -> NDArray[np.int64]:
        """Count the common samples by their quadrant in a (row) and in b (column), (4, 4)."""
        cells = 4 * (self.a.quadrant[self.rows[0]] - 1).astype(np.int64) + self.b.quadrant[self.rows[1]] - 1
        return np.bincount(cells, minlength=16).reshape(4, 4)

    @property
    def kept_table(self) -> NDArray[np.int64]:
        """Count the common samples that a (row) and b (column) drop (0) or keep (1), (2, 2)."""
        cells = 2 * self.a.kept[self.rows[0]].astype(np.int64) + self.b.kept[self.rows[1]]
        return np.bincount(cells, minlength=4).reshape(2, 2)

    @property
    def shifts(self) -> NDArray[np.float64]:
        """Return how far each common sample moved on the rank plane, (C,): the distance, from 0 to sqrt(2)."""
        step = self.b.ranks[:, self.rows[1]] - self.a.ranks[:, self.rows[0]]
        distances: NDArray[np.float64] = np.hypot(step[0], step[1])
        return distances

    def rank_correlations(self) -> tuple[float | None, float | None]:
        """Return Spearman's correlation of the common samples' errors, and of their entropies.

        None where an output has one value for all of them, or there are fewer than two.
        """
        error, entropy = (
            _spearman(self.a.ranks[axis, self.rows[0]], self.b.ranks[axis, self.rows[1]]) for axis in (0, 1)
        )
        return error, entropy

    def kept_by_one(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return positions in a of the samples that only a keeps, and in b of those that only b keeps; (k,) each."""
        by_a, by_b = self.a.kept[self.rows[0]], self.b.kept[self.rows[1]]
        return self.rows[0][by_a & ~by_b], self.rows[1][by_b & ~by_a]

    def farthest(self, number: int) -> NDArray[np.int64]:
        """Return the pairs that moved most, as positions in `rows` (k,). Equal distances are in a's order."""
        shifts = self.shifts
        return np.argsort(-shifts, kind="stable")[: min(number, int(np.count_nonzero(shifts)))]


def pair(a: FinishedOutput, b: FinishedOutput) -> Pairing:
    """Read and match two outputs. Raise DataError for too many samples, OutputConflictError for an unpruned output."""
    for finished in (a, b):
        if finished.num_samples > MAX_PAIRED_SAMPLES:
            raise DataError(
                f"{finished.root} has {finished.num_samples:,} samples, "
                f"more than the {MAX_PAIRED_SAMPLES:,} that can be compared",
                "Compare their counts, or query quadrants/, which are Parquet files, with DuckDB.",
            )
        _ = finished.prune
    a_samples, b_samples = _read(a), _read(b)
    if a_samples.keys.equals(b_samples.keys):
        size = a_samples.keys.num_rows
        return Pairing(a_samples, b_samples, np.tile(np.arange(size), (2, 1)), {"place": size})
    ids = [_content_ids(finished) for finished in (a, b)]
    both = [samples.keys.append_column("id", one) for samples, one in zip((a_samples, b_samples), ids, strict=True)]
    same = _joined(*both)
    moved = _joined_rest(same, *(pa.table({"id": one}) for one in ids))
    found = np.concatenate([same, moved], axis=1)
    by_line = _joined_rest(found, a_samples.keys, b_samples.keys)
    rows = np.concatenate([found, by_line], axis=1)
    rows = rows[:, np.argsort(rows[0], kind="stable")]
    return Pairing(a_samples, b_samples, rows, {"content": found.shape[1], "line": by_line.shape[1]})


def _content_ids(finished: FinishedOutput) -> pa.Array[Any]:
    """Return the content id of each scored sample, in order of the population."""
    parts = [content_ids(finished.scores(shard, ["input_ids", "loss_mask"])) for shard in finished.shards]
    return pa.array([digest for part in parts for digest in part], pa.binary(CONTENT_ID_BYTES))


def _read(finished: FinishedOutput) -> OutputSamples:
    if not finished.shards:
        keys = pa.table({"source": pa.array([], pa.string()), "record": pa.array([], pa.string())})
        return OutputSamples(keys, np.empty(0, np.int8), np.empty(0, np.bool_), np.empty((2, 0)))
    labels = [finished.labels(shard) for shard in finished.shards]
    quadrants = pa.concat_tables(
        [finished.quadrants(shard).select(["error_rank", "entropy_rank"]) for shard in finished.shards]
    )
    names = pa.concat_tables([finished.scores(shard, ["sample_id", "source"]) for shard in finished.shards])
    record = pc.replace_substring_regex(names["sample_id"], "^[^-]*-", "")  # without the file number
    return OutputSamples(
        pa.table({"source": names["source"].cast(pa.string()), "record": record}),
        np.concatenate([label for label, _ in labels]),
        np.concatenate([kept for _, kept in labels]),
        np.stack([quadrants["error_rank"].to_numpy(), quadrants["entropy_rank"].to_numpy()]),
    )


def _joined_rest(found: NDArray[np.int64], a: pa.Table, b: pa.Table) -> NDArray[np.int64]:
    """Return the pairs (2, C) of the rows that are not among those found (2, F)."""
    rest = [np.setdiff1d(np.arange(t.num_rows), rows) for t, rows in zip((a, b), found, strict=True)]
    pairs = _joined(*(table.take(pa.array(rows)) for table, rows in zip((a, b), rest, strict=True)))
    return np.stack([rows[at] for rows, at in zip(rest, pairs, strict=True)])


def _joined(a: pa.Table, b: pa.Table) -> NDArray[np.int64]:
    """Return the positions (2, C) of the rows of two tables with equal values in all columns, in a's order.

    Repeated rows are paired in order.
    """
    numbered = [
        table.append_column("repeat", _repeats(table)).append_column(name, pa.array(np.arange(table.num_rows)))
        for table, name in ((a, "in_a"), (b, "in_b"))
    ]
    joined = numbered[0].join(numbered[1], [*a.column_names, "repeat"], join_type="inner").sort_by("in_a")
    return np.stack([joined["in_a"].to_numpy(), joined["in_b"].to_numpy()])


def _repeats(table: pa.Table) -> pa.Array[Any]:
    """Return the number of each row's earlier occurrences, (S,)."""
    codes = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        own = column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        codes = np.unique(codes * (int(own.max(initial=0)) + 1) + own, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    repeats = np.empty(len(codes), np.int64)
    repeats[order] = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])
    return pa.array(repeats)


def _spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if len(a) < 2:
        return None
    ranks = [double_midranks(values).astype(np.float64) for values in (a, b)]
    centred = [values - values.mean() for values in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else None
