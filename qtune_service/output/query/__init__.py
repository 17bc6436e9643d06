"""Queries of a finished output: matching samples, their order, counts by group, and their contents.

    records = samples_of(FinishedOutput(uri))                            or rejected_of(...)
    found = find(records, Selection(quadrant="Q2", where="perplexity > 50", sort="borderline", limit=5))
    rows = read_rows(records, found.index, ["sample_id", "perplexity", "category"])
    tokens = read_tokens(finished, found.index)

DuckDB evaluates conditions in a sandbox (conditions.py) over Arrow tables that are read through `storage`, so an output
on an object store is queried like a local one. The columns of one shard are in memory at a time, with those of a few
shards that are read ahead, and only the columns that the query names. Token columns are read only for the samples that
are shown.
"""

from qtune_service.output.query.conditions import Limits
from qtune_service.output.query.fields import Field, Records, rejected_of, samples_of
from qtune_service.output.query.search import (
    Found,
    Group,
    Selection,
    find,
    find_sample,
    group_by,
    index_of,
    read_rows,
    read_tokens,
)

__all__ = [
    "Field", "Found", "Group", "Limits", "Records", "Selection", "find", "find_sample", "group_by",
    "index_of", "read_rows", "read_tokens", "rejected_of", "samples_of",
]  # fmt: skip
