"""Search of records: find and order matches, read records and tokens by index, and group by a field.

`find` makes one pass over the shards. Each shard gives (index, sort key) of its matches, which join the best so far,
and only the requested number of these is kept. The order is total: equal keys are ordered by index, and records without
a key come last. The same query therefore has one answer, and pages (`offset`) fit together. `read_rows` and
`read_tokens` read only the shards that hold the requested records. `group_by` sums samples, quadrants and scores of
each value of a field in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.errors import QueryError
from qtune_service.ingest.rows import records_of
from qtune_service.output.columns import final_masks, ragged
from qtune_service.output.query.conditions import Limits, Sandbox, parse_condition
from qtune_service.output.query.fields import Records, derived_sql, empty_part, parts, quoted, read_part, read_rows_of
from qtune_service.output.reader import TOKEN_COLUMNS, FinishedOutput, SampleTokens, sample_tokens

DEFAULTS = Limits()
SPARE_ROWS = 50_000
"""Number of matches that are collected before the best of them are selected."""
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
MEASURED = ("num_tokens", "mean_nll", "mean_entropy")
MAX_NLL_NATS = 709.0
"""The largest argument of exp with a finite result."""


def read_rows(records: Records, index: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Read fields of some records (k,), in the given order. Columns that a record lacks are left out."""
    if not len(index):
        return []
    names = [records.field(name).name for name in names]
    table = pa.concat_tables(
        read_part(records, shard, names, np.unique(rows)) for shard, rows in rows_by_shard(records, index).items()
    )
    found = _derived(records, table, names, records_of(table))
    at = np.searchsorted(table["index"].to_numpy(), index).tolist()
    return [{name: found[i][name] for name in names if name in found[i]} for i in at]


def rows_by_shard(records: Records, index: NDArray[np.int64]) -> Mapping[int, NDArray[np.int64]]:
    """Return the shards, in order, with the rows of some records (k,) there."""
    shards, starts = np.array(list(records.starts)), np.array(list(records.starts.values()))
    at = np.searchsorted(starts, index, side="right") - 1
    return {int(shards[i]): index[at == i] - starts[i] for i in np.unique(at)}


def _derived(
    records: Records, table: pa.Table, names: Sequence[str], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows of a table, in order of index, with the derived ones of some fields."""
    more = derived_sql(records, names)
    if not more:
        return rows
    with Sandbox(Limits()) as sandbox:
        sql = f"SELECT index{more} FROM part ORDER BY index"  # noqa: S608 - ours
        derived = sandbox.table(sql, {"part": table}).to_pylist()
    return [row | values for row, values in zip(rows, derived, strict=True)]


def read_tokens(finished: FinishedOutput, records: Records, index: NDArray[np.int64]) -> list[SampleTokens]:
    """Read the tokens of some samples (k,), in the given order, from the shards that hold them.

    The final mask of a dropped sample is zero.
    """
    found: dict[int, SampleTokens] = {}
    for shard, rows in rows_by_shard(records, index).items():
        at = np.unique(rows)
        scores = read_rows_of(records.finished, "scores", shard, TOKEN_COLUMNS, at)
        tokens = sample_tokens(scores, _final_masks(finished, shard, at, scores), finished.spec.prune)
        found |= dict(zip((records.starts[shard] + at).tolist(), tokens, strict=True))
    return [found[i] for i in index.tolist()]


def _final_masks(
    finished: FinishedOutput, shard: int, rows: NDArray[np.int64], scores: pa.Table
) -> list[NDArray[np.generic]]:
    if finished.spec.prune is None:
        return ragged(scores["loss_mask"]).rows()
    labels, kept = finished.labels(shard)
    index = finished.starts[shard] + rows
    masks = final_masks(scores, labels[rows], kept[rows], index, finished.prune, finished.stop_ids).rows()
    return [mask if is_kept else np.zeros_like(mask) for mask, is_kept in zip(masks, kept[rows].tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of records and their order."""

    quadrant: Literal["Q1", "Q2", "Q3", "Q4"] | None = None
    kept: bool | None = None
    where: str | None = None
    """SQL over the fields."""
    sort: str = ""
    """A field; with `-` before it, in descending order. Empty: in order of index."""
    limit: int | None = None
    """Largest number of records. None: all, at 16 bytes each."""
    offset: int = 0
    """Number of first records to leave out."""

    @property
    def is_all(self) -> bool:
        """Return whether every record matches."""
        return self.quadrant is None and self.kept is None and self.where is None


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The records that a query found."""

    index: NDArray[np.int64]  # (k,) in the requested order
    num_matching: int
    """Number of all matches, whatever the limit."""
    fields: tuple[str, ...] = ()
    """The fields that the query names: its sort key, and the fields of its condition."""


def find(records: Records, selection: Selection, limits: Limits = DEFAULTS) -> Found:
    """Search all records. Raise QueryError."""
    if not records.shards:
        return Found(np.empty(0, np.int64), num_matching=0)
    with Sandbox(limits, records.hint()) as sandbox:
        name, order = sort_of(records, selection.sort)
        filtered = Filtered.of(records, selection, [name], sandbox)
        return _search(filtered, quoted(name, '"'), order, selection, sandbox)


def sort_of(records: Records, sort: str) -> tuple[str, str]:
    """Return the field to sort by, and ASC or DESC."""
    order = "DESC" if sort.startswith("-") else "ASC"
    return records.field(sort.removeprefix("-") or "index").name, order


@dataclass(frozen=True, slots=True)
class Filtered:
    """The matching records of a shard: the table `part` as `records`, with its derived fields."""

    records: Records
    fields: tuple[str, ...]
    sql: str
    """FROM and WHERE."""

    @classmethod
    def of(cls, records: Records, selection: Selection, names: Sequence[str], sandbox: Sandbox) -> Filtered:
        """Return the matches of a selection, with the fields of its condition and those of `names`."""
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
    # An empty table shows the errors of a condition before any rows are read.
    best = [sandbox.table(match_sql, {"part": empty_part(records, filtered.fields)})]
    for part in parts(records, filtered.fields):
        best.append(sandbox.table(match_sql, {"part": part}))
        num_matching += best[-1].num_rows
        if last is not None and sum(table.num_rows for table in best) > 2 * last + SPARE_ROWS:
            best = [sandbox.table(best_sql, {"best": pa.concat_tables(best)})]
    ordered = sandbox.table(best_sql, {"best": pa.concat_tables(best)})
    return Found(ordered["index"].to_numpy()[selection.offset :], num_matching, filtered.fields)


def index_of(records: Records, sample_id: str) -> int | None:
    """Return the index of a record by its id, None if there is none."""
    for part in parts(records, ["sample_id"]):
        rows = np.flatnonzero(part["sample_id"].to_numpy() == sample_id)
        if len(rows):
            return int(part["index"][rows[0]].as_py())
    return None


def find_sample(records: Records, sample_id: str, limits: Limits = DEFAULTS) -> int:
    """Return the index of a record by its id. Raise QueryError with the nearest ids if there is none."""
    index = index_of(records, sample_id)
    if index is not None:
        return index
    near = ", ".join(_nearest_ids(records, sample_id, limits))
    own = [name for name, field in records.fields.items() if field.is_own and name.lower().endswith("id")]
    example = f"{own[0]} = {quoted(sample_id)}" if own else "line = 4"
    raise QueryError(
        f"{records.output.root} has no sample {sample_id!r}" + (f"; the nearest are {near}" if near else ""),
        "An id is the number of the input file and the line there, as in 0000-00000004. "
        f'To find a sample by another field: --where "{example}"',
    )


def _nearest_ids(records: Records, sample_id: str, limits: Limits) -> list[str]:
    if not records.shards:
        return []
    nearest = Selection(limit=3)
    with Sandbox(limits) as sandbox:
        filtered = Filtered.of(records, nearest, ["sample_id"], sandbox)
        key = f"damerau_levenshtein(sample_id, {quoted(sample_id[:64])})"
        found = _search(filtered, key, "ASC", nearest, sandbox)
    return [row["sample_id"] for row in read_rows(records, found.index, ["sample_id"])]


@dataclass(frozen=True, slots=True)
class Group:
    """The samples that share a value."""

    value: str
    """As text. A missing value is (none)."""
    num_samples: int
    quadrants: Mapping[str, int]
    """Number of samples in Q1 to Q4, empty for an output with scores only."""
    kept: int | None
    num_tokens: int
    """Trained tokens."""
    perplexity: float
    """Geometric mean of the samples' perplexities."""
    entropy: float  # mean of the samples' entropies, nats


def group_by(records: Records, name: str, selection: Selection, limits: Limits = DEFAULTS) -> list[Group]:
    """Return the groups of a field among the matching samples, largest first, within limit and offset.

    All distinct values are in memory. Raise QueryError.
    """
    value = records.field(name).name
    decisions = [name for name in ("quadrant", "kept") if name in records.fields]
    with Sandbox(limits, records.hint()) as sandbox:
        filtered = Filtered.of(records, selection, [value, *MEASURED, *decisions], sandbox)
        split = _split_sql(quoted(value, '"'), bool(decisions), filtered.sql)
        groups = sandbox.table(split, {"part": empty_part(records, filtered.fields)})
        sums = ", ".join(f"sum({name}) AS {name}" for name in groups.column_names[1:])
        merge = f"SELECT value, {sums} FROM groups GROUP BY value"  # noqa: S608 - ours
        for part in parts(records, filtered.fields):
            groups = sandbox.table(merge, {"groups": pa.concat_tables([groups, sandbox.table(split, {"part": part})])})
    rows = groups.sort_by([("samples", "descending"), ("value", "ascending")]).to_pylist()
    last = None if selection.limit is None else selection.offset + selection.limit
    return [_group(row) for row in rows[selection.offset : last]]


def _split_sql(value: str, has_decisions: bool, source: str) -> str:
    """Return SQL for the sums of each value in a shard."""
    sums = {"samples": "count(*)", **{name: f"sum({name})" for name in MEASURED}}
    if has_decisions:
        sums |= {name: f"count(*) FILTER (quadrant = '{name}')" for name in QUADRANTS}
        sums |= {"in_product": "count(*) FILTER (kept)"}
    columns = ", ".join(f"CAST({sql} AS DOUBLE) AS {name}" for name, sql in sums.items())
    return f"SELECT coalesce(CAST({value} AS VARCHAR), '(none)') AS value, {columns} {source} GROUP BY 1"


def _group(row: Mapping[str, Any]) -> Group:
    samples = int(row["samples"])
    return Group(
        value=row["value"],
        num_samples=samples,
        quadrants={name: int(row[name]) for name in QUADRANTS if name in row},
        kept=int(row["in_product"]) if "in_product" in row else None,
        num_tokens=int(row["num_tokens"]),
        perplexity=math.exp(min(row["mean_nll"] / samples, MAX_NLL_NATS)),
        entropy=row["mean_entropy"] / samples,
    )
