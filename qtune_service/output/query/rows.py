"""Records by their index, as plain values: only the shards that hold them are read, and of these only their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.ingest.schema import restore
from qtune_service.output.query.derived import derived_sql
from qtune_service.output.query.fields import Records
from qtune_service.output.query.parts import read_part
from qtune_service.output.query.sandbox import Limits, Sandbox


def read_rows(records: Records, index: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Fields of some records (k,), in the order asked for. JSON text of the records' own columns is parsed."""
    if not len(index):
        return []
    names = [records.field(name).name for name in names]
    table = pa.concat_tables(
        read_part(records, shard, names, np.unique(rows)) for shard, rows in rows_by_shard(records, index).items()
    )
    found = _derived(records, table, names, restore(table.to_pylist(), table.schema))
    at = np.searchsorted(table["index"].to_numpy(), index).tolist()
    return [{name: found[i][name] for name in names} for i in at]


def rows_by_shard(records: Records, index: NDArray[np.int64]) -> Mapping[int, NDArray[np.int64]]:
    """Shard, in order -> rows there of some records (k,)."""
    shards, starts = np.array(list(records.starts)), np.array(list(records.starts.values()))
    at = np.searchsorted(starts, index, side="right") - 1
    return {int(shards[i]): index[at == i] - starts[i] for i in np.unique(at)}


def _derived(
    records: Records, table: pa.Table, names: Sequence[str], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a table, in order of index, with the derived ones of some fields."""
    more = derived_sql(records, names)
    if not more:
        return rows
    with Sandbox(Limits()) as sandbox:
        sql = f"SELECT index{more} FROM part ORDER BY index"  # noqa: S608 - ours
        derived = sandbox.table(sql, {"part": table}).to_pylist()
    return [row | values for row, values in zip(rows, derived, strict=True)]
