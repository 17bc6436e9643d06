"""Kept samples as a stream of Arrow tables, cut to files of a wanted size. In memory: a shard, or a file if larger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from qtune_service.output.reader import FinishedOutput


def pruned_tables(finished: FinishedOutput, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """pruned/, shard by shard in order."""
    for shard in finished.pruned_shards:
        yield finished.pruned(shard, columns)


def resized(tables: Iterable[pa.Table], num_rows: int | None) -> Iterator[pa.Table]:
    """The same rows in tables of `num_rows`, the last one shorter; None: as they come, without empty ones."""
    if num_rows is None:
        yield from (table for table in tables if table.num_rows)
        return
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while sum(part.num_rows for part in waiting) >= num_rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, num_rows)
            waiting = [joined.slice(num_rows)]
    rest = pa.concat_tables(waiting) if waiting else None
    if rest is not None and rest.num_rows:
        yield rest
