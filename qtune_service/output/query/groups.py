"""How the values of a field fared: samples, quadrants and scores for each, in one pass over the shards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qtune_service.output.query.fields import Records, quoted
from qtune_service.output.query.parts import empty_part, parts
from qtune_service.output.query.sandbox import Limits, Sandbox
from qtune_service.output.query.search import DEFAULTS, Filtered, Selection

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
MEASURED = ("num_tokens", "mean_nll", "mean_entropy")
MAX_NLL_NATS = 709.0
"""The largest that exp takes."""


@dataclass(frozen=True, slots=True)
class Group:
    """The samples that share a value."""

    value: str
    """As text; null is (none)."""
    num_samples: int
    quadrants: Mapping[str, int]
    """Samples in Q1 to Q4; empty where the output was only scored."""
    kept: int | None
    num_tokens: int
    """Trained tokens."""
    perplexity: float
    """Geometric mean of its samples'."""
    entropy: float  # mean of its samples', nats


def group_by(records: Records, name: str, selection: Selection, limits: Limits = DEFAULTS) -> list[Group]:
    """The groups of a field among the samples that match, largest first, at most `selection.limit` from `offset` on.

    All distinct values are in memory. Raises QueryError.
    """
    value = records.field(name).name
    places = [name for name in ("quadrant", "kept") if name in records.fields]
    with Sandbox(limits, records.hint()) as sandbox:
        filtered = Filtered.of(records, selection, [value, *MEASURED, *places], sandbox)
        split = _split_sql(quoted(value, '"'), bool(places), filtered.sql)
        groups = sandbox.table(split, {"part": empty_part(records, filtered.fields)})
        merge = _merge_sql(groups.column_names[1:])
        for part in parts(records, filtered.fields):
            groups = sandbox.table(merge, {"groups": pa.concat_tables([groups, sandbox.table(split, {"part": part})])})
    rows = groups.sort_by([("samples", "descending"), ("value", "ascending")]).to_pylist()
    last = None if selection.limit is None else selection.offset + selection.limit
    return [_group(row) for row in rows[selection.offset : last]]


def _split_sql(value: str, has_places: bool, source: str) -> str:
    """Sums for each value of a shard."""
    sums = {"samples": "count(*)", **{name: f"sum({name})" for name in MEASURED}}
    if has_places:
        sums |= {name: f"count(*) FILTER (quadrant = '{name}')" for name in QUADRANTS}
        sums |= {"in_product": "count(*) FILTER (kept)"}
    columns = ", ".join(f"CAST({sql} AS DOUBLE) AS {name}" for name, sql in sums.items())
    return f"SELECT coalesce(CAST({value} AS VARCHAR), '(none)') AS value, {columns} {source} GROUP BY 1"


def _merge_sql(names: list[str]) -> str:
    sums = ", ".join(f"sum({name}) AS {name}" for name in names)
    return f"SELECT value, {sums} FROM groups GROUP BY value"  # noqa: S608 - ours


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
