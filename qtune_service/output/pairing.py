"""What became of the same samples in two finished outputs: which both keep, which changed their quadrant.

A sample is the same where its file and its place in it are. Two outputs of the same input, the usual case, list the
same samples in the same order, and their columns are compared as they are; else they are joined. Some 100 bytes a
sample are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.output.reader import FinishedOutput

MAX_SAMPLES = 5_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The samples of one output, in their order."""

    places: pa.Table
    """file, and the sample's place in it (S rows)."""
    quadrant: NDArray[np.int8]  # (S,) 1..4
    kept: NDArray[np.bool_]  # (S,)


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """Two outputs, a and b."""

    a: Side
    b: Side
    rows: NDArray[np.int64]  # (2, C) of the samples that both have: places in a and in b, in a's order

    @property
    def moves(self) -> NDArray[np.int64]:
        """How many of the common samples are in which quadrant of a (row) and of b (column), (4, 4)."""
        cells = 4 * (self.a.quadrant[self.rows[0]] - 1).astype(np.int64) + self.b.quadrant[self.rows[1]] - 1
        return np.bincount(cells, minlength=16).reshape(4, 4)

    @property
    def fates(self) -> NDArray[np.int64]:
        """How many of them are dropped (0) or kept (1) by a (row) and by b (column), (2, 2)."""
        cells = 2 * self.a.kept[self.rows[0]].astype(np.int64) + self.b.kept[self.rows[1]]
        return np.bincount(cells, minlength=4).reshape(2, 2)

    def kept_by_one(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in a of what only a keeps, and in b of what only b keeps; (k,) each."""
        by_a, by_b = self.a.kept[self.rows[0]], self.b.kept[self.rows[1]]
        return self.rows[0][by_a & ~by_b], self.rows[1][by_b & ~by_a]


def pair(a: FinishedOutput, b: FinishedOutput) -> Pairing:
    """Read both. Raises DataError where they are too large, and OutputConflictError where one is only scored."""
    for finished in (a, b):
        if finished.num_samples > MAX_SAMPLES:
            raise DataError(
                f"{finished.root} has {finished.num_samples:,} samples; more than {MAX_SAMPLES:,} are not compared",
                "Compare their counts, or ask with DuckDB: quadrants/ are Parquet files.",
            )
        _ = finished.prune
    sides = _read(a), _read(b)
    return Pairing(*sides, _common(sides[0].places, sides[1].places))


def _read(finished: FinishedOutput) -> Side:
    if not finished.shards:
        places = pa.table({"source": pa.array([], pa.string()), "record": pa.array([], pa.string())})
        return Side(places, np.empty(0, np.int8), np.empty(0, np.bool_))
    labels = [finished.labels(shard) for shard in finished.shards]
    names = pa.concat_tables([finished.scores(shard, ["sample_id", "source"]) for shard in finished.shards])
    record = pc.replace_substring_regex(names["sample_id"], "^[^-]*-", "")  # without the number of its file
    places = pa.table({"source": names["source"].cast(pa.string()), "record": record})
    return Side(places, np.concatenate([label for label, _ in labels]), np.concatenate([kept for _, kept in labels]))


def _common(a: pa.Table, b: pa.Table) -> NDArray[np.int64]:
    if a.equals(b):
        return np.tile(np.arange(a.num_rows), (2, 1))
    numbered = [
        table.append_column(name, pa.array(np.arange(table.num_rows))) for table, name in ((a, "in_a"), (b, "in_b"))
    ]
    joined = numbered[0].join(numbered[1], ["source", "record"], join_type="inner").sort_by("in_a")
    return np.stack([joined["in_a"].to_numpy(), joined["in_b"].to_numpy()])
