"""Which records match, in which order: one pass over the shards, of which the best few are kept.

A shard at a time gives (index, sort key) of its matches; they join the best so far, of which no more than asked for
stay. Order is total: equal keys go by index, and what has no key comes last, so the same question has one answer and
pages (`offset`) fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.errors import QueryError
from qtune_service.output.query.conditions import parse_condition
from qtune_service.output.query.derived import derived_sql
from qtune_service.output.query.fields import Records, quoted
from qtune_service.output.query.parts import empty_part, parts
from qtune_service.output.query.rows import read_rows
from qtune_service.output.query.sandbox import Limits, Sandbox

DEFAULTS = Limits()
SPARE_ROWS = 50_000
"""Matches that wait until the best of them are picked."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records, and in which order."""

    quadrant: Literal["Q1", "Q2", "Q3", "Q4"] | None = None
    kept: bool | None = None
    where: str | None = None
    """SQL over the fields."""
    sort: str = ""
    """A field; with `-` before it, the highest first. Empty: in order of index."""
    limit: int | None = None
    """At most so many; None: all, at 16 bytes each."""
    offset: int = 0
    """Leave out so many of the first."""

    @property
    def is_all(self) -> bool:
        """Whether every record matches."""
        return self.quadrant is None and self.kept is None and self.where is None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The answer."""

    index: NDArray[np.int64]  # (k,) of those asked for, in their order
    num_matching: int
    """All that match, whatever the limit."""
    fields: tuple[str, ...] = ()
    """What the question names: its sort key, and the fields of its condition."""


def find(records: Records, selection: Selection, limits: Limits = DEFAULTS) -> Found:
    """Look through all records. Raises QueryError."""
    if not records.shards:
        return Found(np.empty(0, np.int64), num_matching=0)
    with Sandbox(limits, records.hint()) as sandbox:
        name, order = sort_of(records, selection.sort)
        filtered = Filtered.of(records, selection, [name], sandbox)
        return _search(filtered, quoted(name, '"'), order, selection, sandbox)


def sort_of(records: Records, sort: str) -> tuple[str, str]:
    """A field, and ASC or DESC."""
    order = "DESC" if sort.startswith("-") else "ASC"
    return records.field(sort.removeprefix("-") or "index").name, order


@dataclass(frozen=True, slots=True)
class Filtered:
    """The matching records of a shard: a table `part` seen as `records`, with its derived fields."""

    records: Records
    fields: tuple[str, ...]
    sql: str
    """FROM and WHERE."""

    @classmethod
    def of(cls, records: Records, selection: Selection, names: Sequence[str], sandbox: Sandbox) -> Filtered:
        """With the fields of the condition, and those of `names`."""
        terms = []
        used = {records.field(name).name for name in names}
        if selection.quadrant is not None:
            used.add(records.field("quadrant").name)
            terms.append(f"quadrant = {quoted(selection.quadrant)}")
        if selection.kept is not None:
            used.add(records.field("kept").name)
            terms.append("kept" if selection.kept else "NOT kept")
        if selection.where is not None:
            condition = parse_condition(selection.where, records, sandbox)
            used |= condition.fields
            terms.append(f"(\n{condition.sql}\n)")
        fields = tuple(sorted(used))
        where = f" WHERE {' AND '.join(terms)}" if terms else ""
        part = f"(SELECT *{derived_sql(records, fields)} FROM part)"  # noqa: S608 - ours
        return cls(records, fields, f"FROM {part} AS records{where}")


def _search(filtered: Filtered, key: str, order: str, selection: Selection, sandbox: Sandbox) -> Found:
    records, num_matching = filtered.records, 0
    last = None if selection.limit is None else selection.offset + selection.limit
    limit = "" if last is None else f" LIMIT {last}"
    match_sql = f"SELECT index, {key} AS key {filtered.sql}"
    best_sql = f"SELECT * FROM best ORDER BY key {order} NULLS LAST, index{limit}"  # noqa: S608 - ours
    # What is wrong with a condition shows on no rows, before any are read.
    best = [sandbox.table(match_sql, {"part": empty_part(records, filtered.fields)})]
    for part in parts(records, filtered.fields):
        best.append(sandbox.table(match_sql, {"part": part}))
        num_matching += best[-1].num_rows
        if last is not None and sum(table.num_rows for table in best) > 2 * last + SPARE_ROWS:
            best = [sandbox.table(best_sql, {"best": pa.concat_tables(best)})]
    ordered = sandbox.table(best_sql, {"best": pa.concat_tables(best)})
    return Found(ordered["index"].to_numpy()[selection.offset :], num_matching, filtered.fields)


def index_of(records: Records, sample_id: str) -> int | None:
    """The index of a record by its id; None where there is none."""
    for part in parts(records, ["sample_id"]):
        rows = np.flatnonzero(part["sample_id"].to_numpy() == sample_id)
        if len(rows):
            return int(part["index"][rows[0]].as_py())
    return None


def find_sample(records: Records, sample_id: str, limits: Limits = DEFAULTS) -> int:
    """The same, but raises QueryError that names the nearest ids."""
    index = index_of(records, sample_id)
    if index is not None:
        return index
    near = ", ".join(_nearest_ids(records, sample_id, limits))
    own = [name for name, field in records.fields.items() if field.is_own and name.lower().endswith("id")]
    example = f"{own[0]} = {quoted(sample_id)}" if own else "line = 4"
    raise QueryError(
        f"{records.output.root} has no sample {sample_id!r}" + (f"; the nearest are {near}" if near else ""),
        "An id is the number of the input file and the line there, as in 0000-00000004. "
        f'To find one by something else: --where "{example}"',
    )


def _nearest_ids(records: Records, sample_id: str, limits: Limits) -> list[str]:
    if not records.shards:
        return []
    wanted = Selection(limit=3)
    with Sandbox(limits) as sandbox:
        filtered = Filtered.of(records, wanted, ["sample_id"], sandbox)
        key = f"damerau_levenshtein(sample_id, {quoted(sample_id[:64])})"
        found = _search(filtered, key, "ASC", wanted, sandbox)
    return [row["sample_id"] for row in read_rows(records, found.index, ["sample_id"])]
