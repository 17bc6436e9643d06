"""Shards of what is asked about, as Arrow tables of the fields that a question names, and no others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.errors import StorageError
from qtune_service.output.layout import Output
from qtune_service.output.query.fields import Field, Records

AHEAD = 4
"""Shards that are read while one is worked on: an object store takes its time to answer, not to send."""
BATCH_ROWS = 1024
"""Rows decoded at a time where few are wanted."""


def parts(records: Records, names: Iterable[str]) -> Iterator[pa.Table]:
    """All shards in order: `index` and the stored fields behind `names`."""
    wanted = list(names)
    waiting: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for shard in records.shards:
            waiting.append(pool.submit(read_part, records, shard, wanted))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_part(records: Records, shard: int, names: Iterable[str], rows: NDArray[np.int64] | None = None) -> pa.Table:
    """A shard, or some of its rows (ascending)."""
    at = np.arange(records.shards[shard]) if rows is None else rows
    columns: dict[str, Any] = {"index": pa.array(records.starts[shard] + at, pa.int64())}
    schema = [pa.field("index", pa.int64())]
    stored = records.stored(names)
    for folder in records.folders:
        fields = [field for field in stored if field.folder == folder]
        if not fields:
            continue
        table = read_rows_of(records.output, folder, shard, [field.column for field in fields], rows)
        if table.num_rows != len(at):
            raise StorageError(
                f"{folder} of shard {shard} in {records.output.root} has {table.num_rows:,} rows, "
                f"not the {len(at):,} of the manifest",
                "The output is damaged; run the job again.",
            )
        columns |= {field.name: table[field.column] for field in fields}
        schema += [table.schema.field(field.column).with_name(field.name) for field in fields]
    return pa.table(columns, schema=pa.schema(schema))


def empty_part(records: Records, names: Iterable[str]) -> pa.Table:
    """No rows of the same columns."""
    stored: list[Field] = records.stored(names)
    return pa.schema([pa.field("index", pa.int64()), *(pa.field(f.name, f.type) for f in stored)]).empty_table()


def read_rows_of(
    output: Output, folder: str, shard: int, columns: Sequence[str], rows: NDArray[np.int64] | None = None
) -> pa.Table:
    """Columns of a shard's file; of some rows (ascending) without holding the others."""
    with output.open_part(folder, shard) as file:
        if rows is None:
            return file.read(columns=list(columns))
        taken, start = [file.schema_arrow.empty_table().select(list(columns))], 0
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            here = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
            if len(here):
                taken.append(pa.Table.from_batches([batch.take(pa.array(here, pa.int64()))]).select(list(columns)))
            start += batch.num_rows
            if start > rows[-1]:
                break
        return pa.concat_tables(taken)
